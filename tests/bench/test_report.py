"""The made-up run is one, and a page's opening is measured in a real browser."""

from __future__ import annotations

import json

import pytest

from aiflow_agents.bench import browser as module
from aiflow_agents.bench import report
from aiflow_agents.bench.browser import missing
from aiflow_agents.cli.main import main
from aiflow_agents.evals.report import write_report


@pytest.mark.parametrize("n_arms", [8, 20])
def test_the_made_up_run_has_so_many_arms_and_tasks(tmp_path, n_arms):
    report.make_run(tmp_path, n_tasks=30, n_arms=n_arms, seed=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["arms"]) == n_arms and {arm["kind"] for arm in summary["arms"].values()} == {"member", "rival", "topology", "placebo"}
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(records) == 30 * n_arms and all((r["answer"] == r["expected"]) == r["correct"] for r in records)
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 20 * (n_arms - 1)
    assert write_report(tmp_path).stat().st_size > 50_000


@pytest.mark.browser
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_it_is_opened_and_measured(tmp_path, capsys):
    assert main(["bench", "report", "--tasks", "40", "--arms", "8", "--repeats", "1", "--keep", str(tmp_path / "run"), "--display", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == (tmp_path / "run" / "report.html").stat().st_size and "Chrom" in found["browser"]
    assert 0 < found["cpu_s"] and 0 < found["load_s"] <= found["drawn_s"] and found["search_s"] > 0 and len(found["rounds"]) == 1
    assert main(["bench", "report", "--keep", str(tmp_path / "run")]) == 2 and "is not empty" in capsys.readouterr().err


@pytest.mark.browser
def test_an_error_on_the_console_is_told(tmp_path, browser):
    page = tmp_path / "page.html"
    page.write_text(report.BLANK + '<div id="tasks"><input type="search"><div class="list"><div class="row"></div></div></div><script>nonsense()</script>')
    with pytest.raises(RuntimeError, match="nonsense is not defined"):
        report.opened(browser, page)


def test_without_a_browser_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert main(["bench", "report", "--display", "none"]) == 2
    assert "apt-get install chromium chromium-driver" in capsys.readouterr().err
