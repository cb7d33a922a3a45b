"""Marking saved answers again: no model is asked. What was chosen on dev stays as it was chosen, with the marks of then."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.evals.report import write_report
from aiflow_agents.evals.run_folder import CURVES, RunConfig, RunFolder, Sample, read_config, read_summary
from aiflow_agents.evals.scorer import Scorer, load_scorer
from aiflow_agents.evals.suite import load_suites
from aiflow_agents.evals.summary import judge_samples, oracle
from aiflow_agents.runtime.task import Task


@dataclass(frozen=True)
class Rescored:
    """`before` and `after` are summaries; `changed` has, for each arm, the (task, repeat, old score, new score) of marks that are other ones now."""

    scorer: str
    before: dict[str, Any]
    after: dict[str, Any]
    changed: dict[str, list[tuple[str, int, float, float]]] = field(default_factory=dict)

    @property
    def verdicts(self) -> list[tuple[str, str, str, str]]:
        """(arm, against, what was said, what is said) where that differs."""
        was, now = ({(v["arm"], v["against"]): v["says"] for v in summary["verdicts"]} for summary in (self.before, self.after))
        return [(*key, was.get(key, "nothing"), says) for key, says in now.items() if was.get(key) != says]


def rescore(path: Path, scorer: str | None = None) -> Rescored:
    """Mark every answer in a finished run's folder with its suite's present scorer, or another one, by name or as a Python file.

    New marks are lines behind the old ones, which stay; then summary and report are written anew, each in one step. Killed anywhere, it can be run
    again.
    Raises UserError for what is no finished run, for a scorer that cannot be used, and while another process writes there.
    """
    before, config = read_summary(path), read_config(path)
    name, mark = _scorer(config, scorer)
    with RunFolder(path, json.loads((path / "config.json").read_bytes()), resume=True) as folder:
        arms: dict[str, dict[str, Any]] = before["arms"]
        old = dict(folder.samples)
        tasks, repeats = _order(config, before, old), int(before["repeats"])
        missing = next(((arm, task) for arm in arms for task in tasks for r in range(repeats) if (arm, task, r) not in old), None)
        if missing or not tasks:
            raise UserError(f"{path} has no sample of {' on '.join(missing or ('any arm',))}: finish it first: aiflow eval --resume {path}")
        folder.add([row for key, sample in old.items() if key[0] != "oracle" and (row := _marked(sample, mark)) != sample])
        folder.add(oracle([arm for arm in arms if arms[arm]["kind"] == "member"], tasks, repeats, folder) if "oracle" in arms else [])
        rows = {arm: [[folder.samples[arm, task, r] for r in range(repeats)] for task in tasks] for arm in arms}
        best = (before["best_topology"] or {}).get("arm")
        kinds = {arm: row["kind"] for arm, row in arms.items()}
        capacity = {arm: (row.get("measures") or {}).get("information_capacity") for arm, row in arms.items()}  # no mark is part of it
        fidelity = {arm: row["fidelity"] for arm, row in arms.items() if row.get("fidelity")}
        member, seed = before["best_member"]["arm"], int(before["seed"])
        judged = judge_samples(rows, kinds, best_member=member, best_topology=best, seed=seed, folder=folder, capacity=capacity, fidelity=fidelity)
        after = json.loads(json.dumps(before | judged | {"scorer": name}))
        folder.summarise(after)
        (path / CURVES).unlink(missing_ok=True)  # drawn with the marks of then
        folder.log(f"marked again by {name}")
        changed: dict[str, list[tuple[str, int, float, float]]] = {}
        for (arm, task, repeat), sample in folder.samples.items():
            was = old.get((arm, task, repeat), sample)["score"]
            if sample["score"] != was:
                changed.setdefault(arm, []).append((task, repeat, was, sample["score"]))
        write_report(path)
    return Rescored(name, before, after, changed)


def _scorer(config: RunConfig, named: str | None) -> tuple[str, Scorer]:
    """The scorer and its name: a path is relative to the current directory, and `scorer.py` alone to the suite."""
    if named and named.endswith(".py") and Path(named).expanduser().is_file():
        file = Path(named).expanduser().absolute()
        return named, load_scorer(file.name, file.parent)
    if named and not named.endswith(".py"):
        return named, load_scorer(named, Path())
    suites = load_suites(config.suite)
    if len(suites) != 1:
        raise UserError(f"'{config.suite}' has become a group of suites; name a scorer with --scorer")
    return named or suites[0].file.scorer, load_scorer(named, suites[0].folder) if named else suites[0].scorer


def _order(config: RunConfig, summary: dict[str, Any], samples: dict[tuple[str, str, int], Sample]) -> list[str]:
    """The ids of the tasks, in the suite's order where its questions can still be had: intervals that are drawn depend on it in their last digits."""
    there = {task for _, task, _ in samples}
    try:
        [suite] = load_suites(config.suite)
        ids = [task.id for task in suite.reading(config.data).tasks("test", config.seed, config.limit)]
    except (UserError, ValueError):
        ids = []
    return ids if set(ids) == there else sorted(there)


def _marked(sample: Sample, score: Scorer) -> Sample:
    """The sample with its mark of now; one that failed has no answer and stays wrong."""
    if sample["answer"] is None:
        return sample
    task = Task(sample["task_id"], sample["question"], sample["expected"], tuple(sample["tags"]))
    mark = score(sample["answer"], task)
    return sample | {"score": mark, "correct": mark >= 1.0}
