"""The page, from a run folder made up here."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from aiflow_agents.evals.report import is_current, show, write_report
from aiflow_agents.evals.report.page import embedded

SKILLS = ("sums", "products", "sorting", "calendar", "logic", "counting", "nested", "compare")


class Page(HTMLParser):
    """Checks that tags nest, and collects the cells of every table row and all attributes that could fetch something."""

    VOID = {"meta", "link", "input", "br", "!doctype"}

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.fetches: list[str] = []
        self.text = ""
        self.scripts: list[tuple[dict, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.fetches += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        assert tag not in ("iframe", "object", "embed")
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        if "script" in self.open:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()

    @property
    def data(self) -> dict:
        """What the scripts draw from."""
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "run"))

    def row(self, *start: str) -> list[str]:
        return next(row for row in self.rows if [cell for cell in row if cell][: len(start)] == list(start))


@pytest.fixture(scope="module")
def page(run):
    return Page((run[1] / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_outside(run, page):
    html = (run[1] / "report.html").read_text(encoding="utf-8")
    assert {target for target in page.fetches if not target.startswith("#")} <= {"data:,"}
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\b *\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b *\(", html)
    assert not list(run[1].glob("*.part"))


def test_only_the_pages_own_script_may_run(run, page):
    html = (run[1] / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    (script,) = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_numbers_are_those_of_the_summary(run, page):
    summary, folder = run
    arm = summary["arms"]["debate"]
    cells = page.row("debatebest on dev")
    assert f"{100 * arm['accuracy']:.1f} %" in cells
    assert f"{100 * arm['ci95'][0]:.1f}–{100 * arm['ci95'][1]:.1f}" in cells
    assert page.row("debate", "▲ beats", "members")
    verdict = next(v for v in summary["verdicts"] if v["against"] == "vote")
    assert f"{verdict['wins']} / {verdict['losses']} / {verdict['ties']}" in page.row("debate", "▲ beats", "vote")
    assert f"aiflow eval --config {folder / 'config.json'}" in page.text and '"suite": "specialists"' in page.text


def test_the_verdict_comes_first(run, page):
    assert page.text.index("The team (debate) answers") < page.text.index("What the accuracy costs") < page.text.index("Every way of answering")


def test_skills_are_counted_from_the_samples(run, page):
    records = [json.loads(line) for line in (run[1] / "samples.jsonl").read_text().splitlines()]
    logic = [r["score"] for r in records if r["arm"] == "debate" and r["tags"] == ["logic"]]
    row = page.row("logic", str(len(logic)))
    header = next(r for r in page.rows if r[:2] == ["skill", "questions"])
    assert row[header.index("debate")] == f"{100 * np.mean(logic):.0f}"


def test_the_scripts_can_count_what_was_fixed_and_broken(run, page):
    """The page's own arithmetic, done here once more on its columns, must agree with the verdict."""
    data = page.data
    names = [arm["name"] for arm in data["arms"]]
    own, other = data["scored"][names.index("debate")], data["scored"][data["best_member"]]
    verdict = next(v for v in run[0]["verdicts"] if (v["arm"], v["against"]) == ("debate", "members"))
    assert names[data["best_topology"]] == "debate" and names[data["best_member"]] == "generalist-cloud"
    right = "y"  # 60 of 60
    assert sum(a == right != b for a, b in zip(own, other, strict=True)) == verdict["wins"]
    assert sum(a != right == b for a, b in zip(own, other, strict=True)) == verdict["losses"]


def test_failures_are_listed(page):
    assert page.row("star")[0] == "star"
    assert [row[2] for row in page.rows if row[0] == "star" and len(row) == 3] == ["words-device: out of memory"] * 2


def test_a_resumed_run_counts_the_last_record_and_skips_a_torn_line(tmp_path, made):
    made[0](tmp_path, n=40)
    first = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    lines = [json.dumps({**first, "arm": "star", "task_id": task, "error": None, "status": "ok", "score": 1.0})
             for task in {json.loads(line)["task_id"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()}]
    with (tmp_path / "samples.jsonl").open("a") as samples:
        samples.write("\n".join(lines) + '\n{"arm": "star", "task_')
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    header = next(r for r in page.rows if r[:2] == ["skill", "questions"])
    assert {row[header.index("star")] for row in page.rows if len(row) == len(header) and row[0] in SKILLS} == {"100"}
    assert "out of memory" not in page.text


def test_a_placebo_that_beats_is_pointed_at(tmp_path, made):
    summary = made[0](tmp_path, n=300)
    assert "Beware" not in Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    next(v for v in summary["verdicts"] if v["arm"] == "debate-zeros")["says"] = "beats"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert "Beware: debate-zeros beats the members too" in Page(write_report(tmp_path).read_text(encoding="utf-8")).text


EVIL = "</script><script>alert(1)</script><!--<script>\ud800\u2028&amp;"


def test_model_output_cannot_break_the_page(tmp_path, made):
    make_run, add_traces = made
    make_run(tmp_path, n=60, note=EVIL)
    add_traces(tmp_path, note=EVIL)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert len(page.scripts) == 2, "the data and the script: what a model says has ended neither, and begun none"
    data = page.data
    assert data["tasks"]["expected"][0] == f"0{EVIL}"
    assert any(text.endswith(EVIL) for row in data["conversations"]["rows"] for text in row["texts"].values())


@pytest.mark.parametrize("text", ["</script>", "<!--", "&lt;", "]]>", "\u2028"])
def test_what_is_embedded_comes_out_as_it_went_in(text):
    inside = str(embedded({"text": text}))
    assert not set("<>&") & set(inside) and json.loads(inside) == {"text": text}


@pytest.mark.parametrize("change", [
    {"best_topology": None, "verdicts": []},
    {"best_topology": {"arm": None, "chosen_on": "dev"}, "verdicts": []},
    {"git": None, "packages": {}, "split": "dev"},
    {"best_member": None, "best_topology": None, "verdicts": [], "arms": {}},
])
def test_runs_that_lack_something_still_have_a_page(tmp_path, made, change):
    summary = made[0](tmp_path, n=30) | change
    for arm in summary["arms"].values():
        arm |= {"flops": None, "tokens_in": None, "ci95": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "samples.jsonl").unlink()
    (tmp_path / "config.json").unlink()
    Page(write_report(tmp_path).read_text(encoding="utf-8"))
    show(summary, Console(file=(tmp_path / "out").open("w")))


def test_a_large_run_gives_a_page_of_sane_size(tmp_path, made):
    make_run, _ = made
    make_run(tmp_path, n=2000, extra_arms=6)
    start = time.process_time()
    page = write_report(tmp_path)
    assert time.process_time() - start < 5
    assert page.stat().st_size < 1_000_000


def test_a_page_is_current_until_something_it_is_drawn_from_changes(tmp_path, made):
    made[0](tmp_path, n=30)
    assert not is_current(tmp_path)
    page = write_report(tmp_path)
    for name in ("summary.json", "samples.jsonl"):
        os.utime(page)
        assert is_current(tmp_path)
        later = page.stat().st_mtime + 5
        os.utime(tmp_path / name, (later, later))
        assert not is_current(tmp_path), name
        os.utime(tmp_path / name, (1, 1))
    page.write_text(page.read_text(encoding="utf-8").replace('content="aiflow-agents', 'content="aiflow-agents 0.0 or', 1), encoding="utf-8")
    assert not is_current(tmp_path), "another version's"
