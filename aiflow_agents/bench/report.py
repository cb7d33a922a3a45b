"""How long a large run's report takes to draw and to open: a made-up run of many tasks and arms, and a real browser that loads its page.

Seconds are the browser's own, from the start of the navigation (Navigation Timing, W3C): `load_s` to the end of the `load` event, `drawn_s` until
the frame after the scripts have run, when the page can be read and used. On a busy machine most of that is waiting: `cpu_s` is what the main thread
of the page computed until then, and `blank_s` what an empty page takes beside it. `search_s` is one search through all questions, with the list
drawn again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from aiflow_agents.bench.browser import Browser, missing
from aiflow_agents.errors import UserError
from aiflow_agents.evals.report import write_report
from aiflow_agents.evals.statistics import wilson
from aiflow_agents.evals.verdict import judge

SKILLS = tuple(f"skill-{i:02d}" for i in range(14))
NODES = ("phone", "tablet", "laptop", "pi", "edge", "cloud")
TRACED = 20  # as the runner keeps
BLANK = "<!doctype html><title>blank</title><script>requestAnimationFrame(() => setTimeout(() => performance.mark('drawn')))</script>"
WORDS = "the how many of which between when before town river price number second longest told red by after largest sum".split()


def bench_report(
    folder: Path, *, n_tasks: int, n_arms: int, repeats: int, seed: int, note: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Make the run in `folder`, draw its report, and open it `repeats` times, each time in a new browser. Raises UserError where there is none."""
    if (why := missing()) is not None:
        raise UserError(why)  # before minutes are spent
    note(f"making a run of {n_tasks:,} tasks and {n_arms} arms")
    make_run(folder, n_tasks=n_tasks, n_arms=n_arms, seed=seed)
    note("drawing its report")
    began = time.perf_counter()
    page = write_report(folder)
    found: dict[str, Any] = {"tasks": n_tasks, "arms": n_arms, "write_s": time.perf_counter() - began, "bytes": page.stat().st_size}
    rounds = []
    for number in range(repeats):
        note(f"opening it, {number + 1} of {repeats}")
        with Browser() as browser:
            rounds.append(opened(browser, page))
            found["browser"] = browser.run("return navigator.userAgent.match(/\\S*Chrome\\S*/)[0]")
    return found | {key: median(one[key] for one in rounds) for key in rounds[0]} | {"rounds": rounds}


def opened(browser: Browser, page: Path) -> dict[str, float]:
    """Seconds of one visit, after one to an empty page. Raises RuntimeError where the page put an error on its console."""
    blank = page.with_name("blank.html")
    blank.write_text(BLANK, encoding="utf-8")
    blank_ms = _visit(browser, blank)[1]
    blank.unlink()
    browser.devtools("Performance.enable", timeDomain="threadTicks")
    before = _cpu_s(browser)
    load_ms, drawn_ms = _visit(browser, page)
    cpu_s = _cpu_s(browser) - before
    browser.run("document.getElementById('tasks').scrollIntoView()")
    browser.wait("return document.querySelector('#tasks .row') !== null")
    search_ms = browser.run(
        "const box = document.querySelector('#tasks input[type=search]'), from = performance.now();"
        "box.value = 'river 7'; box.dispatchEvent(new Event('input')); document.querySelector('#tasks .list').getBoundingClientRect();"
        "return performance.now() - from"
    )
    if said := browser.console():
        raise RuntimeError(f"{page} says on its console: {said[0]}")
    return {"load_s": load_ms / 1e3, "drawn_s": drawn_ms / 1e3, "blank_s": blank_ms / 1e3, "cpu_s": cpu_s, "search_s": search_ms / 1e3}


def _visit(browser: Browser, page: Path) -> tuple[float, float]:
    """Milliseconds from the start of the navigation to the end of the load event, and to the frame in which all is drawn."""
    browser.open(page)
    browser.wait("return performance.getEntriesByName('drawn').length > 0")
    load_ms, drawn_ms = browser.run(
        "return [performance.getEntriesByType('navigation')[0].loadEventEnd, performance.getEntriesByName('drawn')[0].startTime]"
    )
    return load_ms, drawn_ms


def _cpu_s(browser: Browser) -> float:
    """CPU seconds of the main thread so far."""
    return next(metric["value"] for metric in browser.devtools("Performance.getMetrics")["metrics"] if metric["name"] == "ThreadTime")


# --- a run that nobody ran ---


def make_run(folder: Path, *, n_tasks: int, n_arms: int, seed: int) -> None:
    """A run folder as the runner leaves it, of random answers; `n_arms` of at least 8, the oracle among them."""
    rng = np.random.default_rng(seed)
    kinds = arms_of(n_arms)
    shared, skill = rng.random(n_tasks), rng.integers(len(SKILLS), size=n_tasks)
    scores = {arm: (np.where(rng.random(n_tasks) < 0.6, shared, rng.random(n_tasks)) < 0.4 + 0.45 * rng.random()).astype(float) for arm in kinds}
    members = [arm for arm, kind in kinds.items() if kind == "member"]
    scores["oracle"] = np.max([scores[arm] for arm in members], axis=0)
    questions = [" ".join(rng.choice(WORDS, size=12)) + f" {i}?" for i in range(n_tasks)]
    summary: dict[str, Any] = {
        "schema": 1, "run_id": folder.name, "suite": "made-up", "team": "made-up", "network": "home-wifi", "seed": seed, "split": "test", "git": None,
        "packages": {}, "n_tasks": n_tasks, "best_member": {"arm": members[0], "chosen_on": "dev"},
        "best_topology": {"arm": "topology-0", "chosen_on": "dev"}, "arms": {},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as lines, (folder / "trace.jsonl").open("w", encoding="utf-8") as traces:
        for i, (arm, kind) in enumerate(kinds.items()):
            cost = {"flops": 1e7 * 1.4**i, "tokens_in": 20.0 + 9 * i, "tokens_out": 4.0 + i, "wire_bytes": 60.0 * i, "energy_j": 0.01 * 1.3**i}
            right = scores[arm]
            summary["arms"][arm] = {
                "kind": kind, "n": n_tasks, "n_failed": 0, "accuracy": float(right.mean()), "ci95": wilson(int(right.sum()), n_tasks),
                "latency_s": {"p50": 0.012 * (i + 1), "p95": 0.03 * (i + 1)}, **cost,
            }  # fmt: skip
            wrong = rng.integers(1, 50, size=n_tasks)
            for task in range(n_tasks):
                answer = f"{task * 7919 % 100_000}" if right[task] else f"{(task * 7919 + wrong[task]) % 100_000}"
                lines.write(json.dumps({
                    "arm": arm, "task_id": f"test-{seed}-{task:05d}", "repeat": 0, "question": questions[task], "answer": answer,
                    "expected": f"{task * 7919 % 100_000}", "score": float(right[task]), "correct": bool(right[task]), "status": "ok", "error": None,
                    "confidence": 0.5, "seed": seed, "tags": [SKILLS[skill[task]]], "usage": {**cost, "calls": 1, "latency_s": 0.01},
                }) + "\n")  # fmt: skip
                if task < TRACED and arm != "oracle":
                    traces.write(json.dumps({"arm": arm, "task_id": f"test-{seed}-{task:05d}", "spans": spans_of(questions[task], answer)}) + "\n")
    verdicts = judge(scores, kinds, best_member=members[0], best_topology="topology-0", oracle="oracle")
    summary["verdicts"] = [asdict(verdict) for verdict in verdicts]
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"suite": "made-up", "network": "home-wifi", "seed": seed}), encoding="utf-8")


def arms_of(n_arms: int) -> dict[str, str]:
    """Names and kinds: a third members, the oracle, and the rest rivals, topologies and placebos by turns."""
    kinds = {f"member-{i}": "member" for i in range(n_arms // 3)} | {"oracle": "rival"}
    others = ("topology", "rival", "topology", "placebo")
    for i in range(n_arms - len(kinds)):
        kind = others[i % len(others)]
        kinds[f"{kind}-{sum(known == kind for known in kinds.values())}"] = kind
    return kinds


def spans_of(question: str, answer: str) -> list[dict[str, Any]]:
    """Everyone is asked, everyone answers the first."""
    def span(kind: str, who: str, node: str, start_s: float, end_s: float, message: str, text: str, **more: Any) -> dict[str, Any]:
        return {"kind": kind, "who": who, "node": node, "start_s": start_s, "end_s": end_s, "message": message, "text": text, **more}

    home, spans = NODES[0], []
    for i, node in enumerate(NODES):
        way_s = 0.004 * i
        said_s = way_s + 0.01
        spans.append(span("call", f"member-{i}", node, way_s, said_s, f"m{i}", answer, confidence=0.5))
        if i:
            spans.append(span("move", "user", home, 0.0, way_s, "q0", question, to=node, nbytes=90))
            spans.append(span("move", f"member-{i}", node, said_s, said_s + way_s, f"m{i}", answer, to=home, nbytes=30))
    return spans
