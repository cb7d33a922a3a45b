"""A run folder made up here, as the runner leaves one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from aiflow_agents.evals.report import write_report
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
                    "question": f"question {task}", "answer": None if bad else str(task if right else task + 1),
                    "expected": f"{task}{note}", "score": float(right and not bad), "correct": bool(right), "status": "failed" if bad else "ok",
                    "error": "words-device: out of memory" if bad else None, "confidence": 0.5, "seed": 1, "tags": [SKILLS[skill[task]]],
                    "usage": {**cost, "calls": 1, "latency_s": 0.01}}) + "\n")
    verdicts = judge(scores, {arm: kind for arm, (kind, _) in arms.items()}, best_member="generalist-cloud", best_topology="debate", oracle="oracle")
    summary["verdicts"] = [dataclasses.asdict(v) for v in verdicts]
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"suite": "specialists", "seed": seed}), encoding="utf-8")
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def spans(question: str, answer: str) -> list[dict]:
    """phone asks edge and cloud; both answer, and the cloud hears the edge."""

    def move(who, node, to, start, end, message, text, nbytes):
        return {"kind": "move", "who": who, "node": node, "start_s": start, "end_s": end, "message": message, "text": text, "to": to, "heard": [],
                "nbytes": nbytes, "confidence": None}

    def call(who, node, start, end, message, text, heard=()):
        return {"kind": "call", "who": who, "node": node, "start_s": start, "end_s": end, "message": message, "text": text, "to": "", "heard": list(heard),
                "nbytes": 0, "confidence": 0.5}

    return [move("user", "phone", "edge", 0.0, 0.002, "q0", question, 30), move("user", "phone", "cloud", 0.0, 0.01, "q0", question, 30),
            call("knot", "edge", 0.002, 0.006, "knot.1", answer), move("knot", "edge", "cloud", 0.006, 0.012, "knot.1", answer, 20),
            call("oak", "cloud", 0.012, 0.02, "oak.2", answer, ["knot.1"]), move("oak", "cloud", "phone", 0.02, 0.03, "oak.2", answer, 24)]


def add_traces(folder: Path, n: int = 3, note: str = "") -> None:
    """Traces of the first tasks of two arms, with their first records in samples.jsonl."""
    with (folder / "trace.jsonl").open("w", encoding="utf-8") as lines:
        for record in map(json.loads, (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()):
            if record["arm"] in ("debate", "star") and int(record["task_id"][-5:]) < n:
                row = {"arm": record["arm"], "task_id": record["task_id"], "spans": spans(record["question"], f"{record['answer']}{note}")}
                lines.write(json.dumps(row) + "\n")


def curve_of(summary: dict, over: str = "bytes", limits: tuple[float, ...] = (60, 120, 300, 900)) -> dict:
    """A curve as `aiflow curve` leaves it: every arm rises to what it has in the run."""
    n, arms = summary["n_tasks"], {name: arm for name, arm in summary["arms"].items() if arm["kind"] in ("member", "topology")}

    def points(end: float, **more) -> list[dict]:
        shares = [end * (1 - 0.7 / (1 + i)) for i in range(len(limits))]
        return [{"accuracy": round(s * n) / n, "ci95": list(wilson(round(s * n), n)), "n_over_budget": 10 - i, "spent": limit / 2, **more}
                for i, (s, limit) in enumerate(zip(shares, limits, strict=True))]

    curve = {name: {"kind": arm["kind"], "points": points(arm["accuracy"])} for name, arm in arms.items()}
    curve["self-consistency@budget"] = {"kind": "rival", "points": points(0.66, member="generalist-cloud", samples=5)}
    best = {role: summary[role]["arm"] for role in ("best_member", "best_topology")}
    gains = [{"delta": 0.1, "ci95": [0.05, 0.15], "p": 0.001, "p_holm": 0.004} for _ in limits]
    return {"over": over, "limits": list(limits), "n_tasks": n, **best, "arms": curve, "gains": gains}


@pytest.fixture(scope="session")
def curve():
    """Makes a curve of a summary."""
    return curve_of


@pytest.fixture(scope="session")
def made():
    """Functions that make a run folder, and traces in it."""
    return make_run, add_traces


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """(summary, folder) of a run whose report is drawn."""
    folder = tmp_path_factory.mktemp("run")
    summary = make_run(folder)
    (folder / "config.json").write_text(json.dumps({"suite": "specialists", "network": "home-wifi", "seed": 0}))
    add_traces(folder)
    write_report(folder)
    return summary, folder
