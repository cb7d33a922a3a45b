"""How long a large run's report takes to draw and to open: a made-up run of many tasks and arms, and a real browser that loads its page.

Seconds are the browser's own, from the start of the navigation (Navigation Timing, W3C): `load_s` to the end of the `load` event, `drawn_s` until the
frame after the scripts have run, when the page can be read and used. `search_s` is one search through all questions, with the list drawn again.
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

from aiflow_agents.bench.browser import Browser
from aiflow_agents.evals.report import write_report
from aiflow_agents.evals.statistics import wilson
from aiflow_agents.evals.verdict import judge

SKILLS = tuple(f"skill-{i:02d}" for i in range(14))
NODES = ("phone", "tablet", "laptop", "pi", "edge", "cloud")
TRACED = 20  # as the runner keeps
WORDS = "the how many of which between when before town river price number second longest told red by after largest sum".split()


def bench_report(folder: Path, *, n_tasks: int, n_arms: int, repeats: int, seed: int, note: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Make the run in `folder`, draw its report, and open it `repeats` times, each time in a new browser. Raises UserError where there is no browser."""
    with Browser() as browser:  # before minutes are spent: is there one?
        version = browser.run("return navigator.userAgentData?.brands.map(b => b.brand + ' ' + b.version).join(', ') ?? navigator.userAgent")
    note(f"making a run of {n_tasks:,} tasks and {n_arms} arms")
    make_run(folder, n_tasks=n_tasks, n_arms=n_arms, seed=seed)
    note("drawing its report")
    began = time.perf_counter()
    page = write_report(folder)
    found: dict[str, Any] = {"tasks": n_tasks, "arms": n_arms, "browser": version, "write_s": time.perf_counter() - began, "bytes": page.stat().st_size}
    rounds = []
    for number in range(repeats):
        note(f"opening it, {number + 1} of {repeats}")
        with Browser() as browser:
            rounds.append(opened(browser, page))
    return found | {key: median(one[key] for one in rounds) for key in rounds[0]} | {"rounds": rounds}


def opened(browser: Browser, page: Path) -> dict[str, float]:
    """Seconds of one visit. Raises RuntimeError where the page put an error on its console."""
    began = time.perf_counter()
    browser.open(page)
    browser.wait("return performance.getEntriesByName('drawn').length > 0")
    wall_s = time.perf_counter() - began
    load_ms, drawn_ms = browser.run(
        "return [performance.getEntriesByType('navigation')[0].loadEventEnd, performance.getEntriesByName('drawn')[0].startTime]"
    )
    browser.run("document.getElementById('tasks').scrollIntoView()")
    browser.wait("return document.querySelector('#tasks .row') !== null")
    search_ms = browser.run(
        "const box = document.querySelector('#tasks input[type=search]'), from = performance.now();"
        "box.value = 'river 7'; box.dispatchEvent(new Event('input')); document.querySelector('#tasks .list').getBoundingClientRect();"
        "return performance.now() - from"
    )
    if said := browser.console():
        raise RuntimeError(f"{page} says on its console: {said[0]}")
    return {"load_s": load_ms / 1e3, "drawn_s": drawn_ms / 1e3, "wall_s": wall_s, "search_s": search_ms / 1e3}


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
        "packages": {}, "n_tasks": n_tasks, "best_member": {"arm": members[0], "chosen_on": "dev"}, "best_topology": {"arm": "topology-0", "chosen_on": "dev"},
        "arms": {},
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
    spans: list[dict[str, Any]] = []
    for i, node in enumerate(NODES):
        asked, said = 0.004 * i, 0.004 * i + 0.01
        if i:
            spans.append({"kind": "move", "who": "user", "node": NODES[0], "start_s": 0.0, "end_s": asked, "message": "q0", "text": question, "to": node, "nbytes": 90})
        spans.append({"kind": "call", "who": f"member-{i}", "node": node, "start_s": asked, "end_s": said, "message": f"m{i}", "text": answer, "confidence": 0.5})
        if i:
            spans.append({"kind": "move", "who": f"member-{i}", "node": node, "start_s": said, "end_s": said + 0.004 * i, "message": f"m{i}", "text": answer,
                          "to": NODES[0], "nbytes": 30})  # fmt: skip
    return spans
