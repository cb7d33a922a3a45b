"""`aiflow view`: which page is opened, and when it is drawn anew."""

from __future__ import annotations

import json
import os

import pytest

from aiflow_agents.bench.report import make_run
from aiflow_agents.cli.main import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder without a report, and the addresses that were opened."""
    import webbrowser

    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    make_run(tmp_path / "a run", n_tasks=10, n_arms=8, seed=0)
    return tmp_path / "a run", opened


def test_a_missing_report_is_drawn_and_opened(run, capsys):
    folder, opened = run
    assert main(["view", str(folder)]) == 0
    assert opened == [(folder / "report.html").resolve().as_uri()] and "member-0" in (folder / "report.html").read_text()
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


def test_it_is_drawn_anew_where_it_is_old_or_where_asked(run):
    folder, opened = run
    assert main(["view", str(folder), "--no-open"]) == 0 and opened == []
    page = folder / "report.html"
    page.write_text(page.read_text() + "<!-- mine -->")
    assert main(["view", str(folder), "--no-open"]) == 0 and "mine" in page.read_text(), "a current one is left alone"
    assert main(["view", str(folder), "--no-open", "--remake"]) == 0 and "mine" not in page.read_text()
    page.write_text(page.read_text() + "<!-- mine -->")
    later = page.stat().st_mtime + 5
    os.utime(folder / "samples.jsonl", (later, later))
    assert main(["view", str(folder), "--no-open"]) == 0 and "mine" not in page.read_text()


@pytest.mark.parametrize(("files", "said"), [
    (None, "is no folder"), ({}, "is no run"), ({"config.json": "{}"}, "aiflow eval --resume"), ({"summary.json": "7"}, "is damaged"),
    ({"summary.json": "{}", "config.json": "{"}, "is damaged"), ({"summary.json": "{}"}, "is damaged"),
])  # fmt: skip
def test_what_is_no_run_is_said_in_a_line(tmp_path, capsys, files, said):
    folder = tmp_path / "run"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    assert main(["view", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and str(folder) in error


def test_where_no_browser_opens_its_path_is_still_told(run, monkeypatch, capsys):
    import webbrowser

    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    assert main(["view", str(run[0])]) == 0
    said = capsys.readouterr()
    assert "no browser" in said.err and said.out.strip().endswith("report.html") and json.loads((run[0] / "summary.json").read_text())
