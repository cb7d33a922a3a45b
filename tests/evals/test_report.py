"""The page and the terminal tables, from a run folder made up here."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from aiflow_agents.evals.report import show, write_report
from aiflow_agents.evals.statistics import wilson
from aiflow_agents.evals.verdict import judge

SKILLS = ("sums", "products", "sorting", "calendar", "logic", "counting", "nested", "compare")
RIGHT = {"sums-device": ("member", 0.44), "words-device": ("member", 0.42), "logic-device": ("member", 0.39),
         "generalist-cloud": ("member", 0.63), "self-consistency@flops": ("rival", 0.66),
         "self-consistency@tokens": ("rival", 0.655), "vote": ("rival", 0.60), "random": ("rival", 0.46),
         "oracle": ("rival", 0.0), "debate": ("topology", 0.81), "star": ("topology", 0.76), "cascade": ("topology", 0.70),
         "mixture": ("topology", 0.625),
         "debate-zeros": ("placebo", 0.62)}


def make_run(folder: Path, n: int = 600, extra_arms: int = 0, seed: int = 0, note: str = "") -> dict:
    """A run as the runner leaves it; costs rise with the arm's position, some members cost no bytes."""
    rng = np.random.default_rng(seed)
    arms = RIGHT | {f"graph-{i}": ("topology", 0.5 + 0.01 * i) for i in range(extra_arms)}
    shared, skill = rng.random(n), rng.integers(len(SKILLS), size=n)
    scores = {arm: (np.where(rng.random(n) < 0.6, shared, rng.random(n)) < right + 0.2 * np.sin(skill * (i + 1))).astype(float)
              for i, (arm, (_, right)) in enumerate(arms.items())}
    scores["oracle"] = np.max([scores[arm] for arm, (kind, _) in arms.items() if kind == "member"], axis=0)
    summary = {"schema": 1, "run_id": "2026-01-02-specialists", "suite": "specialists", "seed": seed, "split": "test", "git": "0123abc", "n_tasks": n,
               "packages": {"torch": "2.13.0"}, "best_member": {"arm": "generalist-cloud", "chosen_on": "dev"},
               "best_topology": {"arm": "debate", "chosen_on": "dev"}, "arms": {}}
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as lines:
        for i, (arm, (kind, _)) in enumerate(arms.items()):
            failed = 2 if arm == "star" else 0
            cost = {"flops": 1e7 * 1.7**i, "tokens_in": 20.0 + 30 * i, "tokens_out": 4.0 + 3 * i,
                    "wire_bytes": 0.0 if i < 3 else 60.0 * i, "energy_j": 0.01 * 1.5**i}
            summary["arms"][arm] = {"kind": kind, "n": n, "n_failed": failed, "accuracy": float(scores[arm].mean()),
                                    "ci95": wilson(int(scores[arm].sum()), n), "latency_s": {"p50": 0.012 * (i + 1), "p95": 0.03 * (i + 1)}, **cost}
            for task in range(n):
                right, bad = scores[arm][task] > 0, task < failed
                lines.write(json.dumps({
                    "arm": arm, "task_id": f"{SKILLS[skill[task]]}-{task:05d}", "repeat": 0,
                    "answer": None if bad else str(task if right else task + 1),
                    "expected": f"{task}{note}", "score": float(right and not bad), "correct": bool(right), "status": "failed" if bad else "ok",
                    "error": "words-device: out of memory" if bad else None, "confidence": 0.5, "seed": 1, "tags": [SKILLS[skill[task]]],
                    "usage": {**cost, "calls": 1, "latency_s": 0.01}}) + "\n")
    verdicts = judge(scores, {arm: kind for arm, (kind, _) in arms.items()}, best_member="generalist-cloud", best_topology="debate", oracle="oracle")
    summary["verdicts"] = [dataclasses.asdict(v) for v in verdicts]
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"suite": "specialists", "seed": seed}), encoding="utf-8")
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Checks that tags nest, and collects the cells of every table row and all attributes that could fetch something."""

    VOID = {"meta", "link", "input", "br", "!doctype"}

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.fetches: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.fetches += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        assert tag not in ("script", "iframe", "object", "embed")
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
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()

    def row(self, *start: str) -> list[str]:
        return next(row for row in self.rows if [cell for cell in row if cell][: len(start)] == list(start))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    summary = make_run(folder)
    return summary, Page(write_report(folder).read_text(encoding="utf-8")), folder


def test_the_page_needs_nothing_from_outside(run):
    _, page, folder = run
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert set(page.fetches) <= {"data:,"}
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html
    assert not list(folder.glob("*.part"))


def test_numbers_are_those_of_the_summary(run):
    summary, page, folder = run
    arm = summary["arms"]["debate"]
    cells = page.row("debatebest on dev")
    assert f"{100 * arm['accuracy']:.1f} %" in cells
    assert f"{100 * arm['ci95'][0]:.1f}–{100 * arm['ci95'][1]:.1f}" in cells
    assert page.row("debate", "▲ beats", "members")
    verdict = next(v for v in summary["verdicts"] if v["against"] == "vote")
    assert f"{verdict['wins']} / {verdict['losses']} / {verdict['ties']}" in page.row("debate", "▲ beats", "vote")
    assert f"aiflow eval --config {folder / 'config.json'}" in page.text and '"suite": "specialists"' in page.text


def test_skills_are_counted_from_the_samples(run):
    summary, page, folder = run
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    logic = [r["score"] for r in records if r["arm"] == "debate" and r["tags"] == ["logic"]]
    row = page.row("logic", str(len(logic)))
    header = next(r for r in page.rows if r[:2] == ["skill", "questions"])
    assert row[header.index("debate")] == f"{100 * np.mean(logic):.0f}"


def test_examples_show_both_what_was_fixed_and_what_was_broken(run):
    summary, page, _ = run
    verdict = next(v for v in summary["verdicts"] if (v["arm"], v["against"]) == ("debate", "members"))
    assert f"Fixed by the team: {verdict['wins']} questions" in page.text and f"Broken by the team: {verdict['losses']} questions" in page.text
    assert len([row for row in page.rows if row[0] == "debate" and row[1].startswith(("✓", "✗"))]) == 16


def test_failures_are_listed(run):
    assert run[1].row("star")[0] == "star"
    assert [row[2] for row in run[1].rows if row[0] == "star" and len(row) == 3] == ["words-device: out of memory"] * 2


def test_a_resumed_run_counts_the_last_record_and_skips_a_torn_line(tmp_path):
    make_run(tmp_path, n=40)
    first = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    lines = [json.dumps({**first, "arm": "star", "task_id": task, "error": None, "status": "ok", "score": 1.0})
             for task in {json.loads(line)["task_id"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()}]
    with (tmp_path / "samples.jsonl").open("a") as samples:
        samples.write("\n".join(lines) + '\n{"arm": "star", "task_')
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    header = next(r for r in page.rows if r[:2] == ["skill", "questions"])
    assert {row[header.index("star")] for row in page.rows if len(row) == len(header) and row[0] in SKILLS} == {"100"}
    assert "out of memory" not in page.text


def test_a_placebo_that_beats_is_pointed_at(tmp_path):
    summary = make_run(tmp_path, n=300)
    assert "Beware" not in write_report(tmp_path).read_text(encoding="utf-8")
    next(v for v in summary["verdicts"] if v["arm"] == "debate-zeros")["says"] = "beats"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert "Beware: debate-zeros beats the members too" in Page(write_report(tmp_path).read_text(encoding="utf-8")).text


def test_model_output_cannot_break_the_page(tmp_path):
    make_run(tmp_path, n=60, note="<script>alert(1)</script>")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize("change", [
    {"best_topology": None, "verdicts": []},
    {"best_topology": {"arm": None, "chosen_on": "dev"}, "verdicts": []},
    {"git": None, "packages": {}, "split": "dev"},
    {"best_member": None, "best_topology": None, "verdicts": [], "arms": {}},
])
def test_runs_that_lack_something_still_have_a_page(tmp_path, change):
    summary = make_run(tmp_path, n=30) | change
    for arm in summary["arms"].values():
        arm |= {"flops": None, "tokens_in": None, "ci95": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "samples.jsonl").unlink()
    (tmp_path / "config.json").unlink()
    Page(write_report(tmp_path).read_text(encoding="utf-8"))
    show(summary, Console(file=(tmp_path / "out").open("w")))


def test_a_large_run_gives_a_small_page_quickly(tmp_path):
    make_run(tmp_path, n=2000, extra_arms=6)
    start = time.process_time()
    page = write_report(tmp_path)
    assert time.process_time() - start < 5
    assert page.stat().st_size < 300_000


def test_the_scatter_keeps_its_marks_inside_and_its_labels_apart(run):
    html = (run[2] / "report.html").read_text(encoding="utf-8")
    plot = html[html.index('<figure class="flops'):]
    plot = plot[: plot.index("</figure>")]
    marks = [(float(x), float(y)) for x, y in re.findall(r'translate\(([\d.]+) ([\d.]+)\)"', plot)]
    assert len(marks) == len(RIGHT) - 1 and all(50 < x < 740 and 10 < y < 385 for x, y in marks), "all arms but the oracle"
    assert [x for x, _ in sorted(marks)] == sorted(x for x, _ in marks)
    labels = []
    for x, y, anchor, name in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)</text></g>', plot):
        width = 6.7 * len(name)
        left = float(x) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        labels.append((left, left + width, float(y)))
    assert len(labels) >= 10
    for i, a in enumerate(labels):
        assert all(a[1] < b[0] or b[1] < a[0] or abs(a[2] - b[2]) > 10 for b in labels[:i])


def test_the_terminal_says_the_same(run, tmp_path):
    summary = run[0]
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        show(summary, Console(file=out, width=160))
    text = (tmp_path / "out").read_text(encoding="utf-8")
    lines = text.splitlines()
    kinds = [match[1] for line in lines if (match := re.match(r"\S+ +(member|rival|topology|placebo) ", line))]
    assert kinds == sorted(kinds, key=["member", "rival", "topology", "placebo"].index) and len(kinds) == len(RIGHT)
    shown = [float(re.search(r"([\d.]+) %", line)[1]) for line in lines if re.match(r"\S+ +topology ", line)]
    assert shown == sorted(shown, reverse=True)
    assert re.search(r"^debate +beats +members", text, re.MULTILINE) and re.search(r"^debate +\w.* +vote", text, re.MULTILINE)
    assert "The team (debate) answers" in text
