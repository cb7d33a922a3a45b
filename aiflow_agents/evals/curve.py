"""Accuracy against budget: every arm of a finished run at a ladder of limits, and self-consistency of the member that is best under each of them.

Arms are as the run's dev split has fitted them, without a limit. A limit that a task did not reach changes nothing (see `runtime.budget`), so only
those tasks are run again that had spent more, and all their answers are remembered: no model is asked but for samples that the rival has not drawn
yet. The rival is chosen on dev at each limit: the member that is best under it, with one greedy answer or the vote of as many samples as are best.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from aiflow_agents.errors import UserError
from aiflow_agents.evals import clusters, statistics
from aiflow_agents.evals.compare import paired
from aiflow_agents.evals.evaluate import plan
from aiflow_agents.evals.report import write_report
from aiflow_agents.evals.run_folder import CURVES, OK, OVER_BUDGET, RunFolder, Sample, read_config, read_curves, read_summary, write_whole
from aiflow_agents.evals.runner import Arm, Evaluation, Silence, Watcher
from aiflow_agents.evals.start import start_hosts
from aiflow_agents.evals.trial import DevTrial
from aiflow_agents.runtime.budget import Budget, spent
from aiflow_agents.runtime.hosts import Hosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, run_jobs
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology

RIVAL = "self-consistency@budget"
SAMPLES = (3, 5, 9, 17)  # that the rival may draw
ROUNDED = 1e-5  # samples keep six digits of what was spent
KINDS = ("member", "topology")  # rivals of one cost and placebos have no curve
Curve = dict[str, Any]
Name = TypeVar("Name", str, int)


def curve(
    path: Path,
    over: str,
    limits: Sequence[float] | None = None,
    *,
    points: int = 6,
    runtime: str = "inline",
    hosts: Hosts | None = None,
    watch: Watcher | None = None,
) -> Curve:
    """Draw one curve of a finished run: accuracy over `over` (tokens, flops, bytes or seconds a question) at these limits, or at `points` of them.

    Written to `curves.json` in the run's folder, where one of another kind stays, and drawn in its report: `over, limits, n_tasks, best_member,
    best_topology, arms`. `arms[name]` has `kind` and `points`, one a limit: `accuracy, ci95, n_over_budget`, the mean `spent`, and for the rival
    `member` and `samples` (1 is one greedy answer). `gains` compares the best topology with the rival at each limit: `delta, ci95, p, p_holm`.
    Raises UserError for what is no finished run, or for limits that are none.
    """
    if over not in Budget.model_fields:
        raise UserError(f"no budget of '{over}'; expected one of {', '.join(Budget.model_fields)}")
    summary, config = read_summary(path), read_config(path)
    watch = watch or Silence()
    asked = {key: getattr(config, key) for key in ("network", "seed", "limit", "repeats", "data", "budget", "faults")}
    evaluation = plan(config.suite, config.team, config.topologies, **asked)
    with RunFolder(path, evaluation.config, resume=True) as folder, closing(Memory(path / "calls.sqlite")) as memory:
        steps = _rounded(limits, over) if limits else ladder(summary, folder.samples, over, points)
        used = hosts or start_hosts(runtime)
        try:
            found = _Ladder(evaluation, folder, used, memory, watch, over, steps).climb()
        finally:
            if hosts is None:
                used.close()
        write_whole(path / CURVES, json.dumps(read_curves(path) | {over: found}, indent=2) + "\n")
        folder.log(f"curve over {over}: {', '.join(f'{step:g}' for step in steps)}")
    write_report(path)
    return found


def ladder(summary: Mapping[str, Any], samples: Mapping[Any, Sample], over: str, points: int) -> list[float]:
    """Limits from what the cheapest member takes for half of the questions to what the dearest arm takes for nearly all, evenly by ratio."""
    costs: dict[str, list[float]] = {}
    for (arm, _, _), sample in samples.items():
        if summary["arms"].get(arm, {}).get("kind") in KINDS:
            costs.setdefault(arm, []).append(spent(over, sample["usage"]))
    middle = [float(np.median(values)) for values in costs.values()]
    low = min((cost for cost in middle if cost > 0), default=0.0)
    high = max((float(np.percentile(values, 95)) for values in costs.values()), default=0.0)
    if not low:
        raise UserError(f"no arm of this run spends any {over}, so there is no curve over them")
    return _rounded(np.geomspace(low, max(high, low), max(points, 1)).tolist(), over)


def _rounded(limits: Sequence[float], over: str) -> list[float]:
    """In order, with two digits (up), whole where only whole ones can be spent. Raises UserError for what is no limit."""
    if any(not 0 <= limit < math.inf for limit in limits):
        raise UserError(f"limits of {over} are numbers from 0 up; found {', '.join(f'{limit:g}' for limit in limits)}")
    whole = over in ("tokens", "bytes")
    return sorted({float(math.ceil(limit - 1e-9)) if whole else float(limit) for limit in map(_two_digits, limits)})


def _two_digits(limit: float) -> float:
    step = 10.0 ** (math.floor(math.log10(limit)) - 1) if limit else 1.0
    return float(f"{math.ceil(limit / step - 1e-9) * step:.2g}")


class _Ladder:
    """One curve in the making."""

    def __init__(self, evaluation: Evaluation, folder: RunFolder, hosts: Hosts, memory: Memory, watch: Watcher, over: str, limits: Sequence[float]):
        self.evaluation, self.folder, self.over, self.limits, self.watch = evaluation, folder, over, limits, watch
        self.tasks, self.hosts, self.memory = evaluation.test, hosts, memory
        self.warm: dict[str, Topology] = {}

    def climb(self) -> Curve:
        evaluation = self.evaluation
        trial, arms, best = evaluation.choose(evaluation.executor(self.hosts, self.memory, self.watch), self.watch)
        arms = [arm for arm in arms if arm.kind in KINDS]
        kinds = {arm.name: arm.kind for arm in arms} | {RIVAL: "rival"}
        scores: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
        points: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
        cluster = clusters.numbered([task.cluster for task in self.tasks]) if any(task.cluster for task in self.tasks) else None
        for limit in self.limits:
            at = self._budget(limit)
            rival, member, samples = self._rival(trial, at)
            for arm in (*arms, Arm(RIVAL, "rival", rival)):
                rows = self._answers(arm, trial.team, at, limit)
                marks = np.array([np.mean([row[0] for row in repeats]) for repeats in rows])
                scores[arm.name].append(marks)
                flat = [row for repeats in rows for row in repeats]
                points[arm.name].append({
                    "accuracy": float(marks.mean()), "ci95": list(clusters.accuracy(marks, cluster)),
                    "n_over_budget": sum(row[1] for row in flat), "spent": float(np.mean([row[2] for row in flat])),
                    **({"member": member, "samples": samples} if arm.name == RIVAL else {}),
                })  # fmt: skip
        return {
            "over": self.over, "limits": list(self.limits), "n_tasks": len(self.tasks), "best_member": trial.best_member, "best_topology": best,
            "arms": {name: {"kind": kinds[name], "points": points[name]} for name in kinds},
            "gains": gains(scores[best], scores[RIVAL], evaluation.seed, cluster) if best else [],
        }  # fmt: skip

    def _budget(self, limit: float) -> Budget:
        return Budget.model_validate({self.over: int(limit) if self.over in ("tokens", "bytes") else limit})

    def _rival(self, trial: DevTrial, at: Budget) -> tuple[Topology, str, int]:
        """The best on dev under this limit, of equals the cheapest; whose answers it votes on, and how many of them."""
        alone = {name: load_topology("single", {"member": name, "budget": at}) for name in trial.scores}
        member = _best(alone, trial)
        if member not in self.warm:  # the temperature that is best for it, with few samples and no limit
            self.warm[member] = load_topology("self-consistency", {"member": member, "samples": SAMPLES[0]}).fit(trial)
        tried = {1: alone[member]} | {n: self.warm[member].model_copy(update={"samples": n, "budget": at}) for n in SAMPLES}
        samples = _best(tried, trial)
        return tried[samples], member, samples

    def _answers(self, arm: Arm, team: Team, at: Budget, limit: float) -> list[list[tuple[float, bool, float]]]:
        """(score, whether it was stopped, what was spent) by task and repeat: from the run where this limit changes nothing, else anew."""
        rows: dict[tuple[str, int], tuple[float, bool, float]] = {}
        again: list[Job] = []
        for task in self.tasks:
            for repeat in range(self.evaluation.repeats):
                sample = self.folder.samples.get((arm.name, task.id, repeat))
                price = math.inf if sample is None else spent(self.over, sample["usage"])
                if sample is not None and sample["status"] == OK and price * (1 + ROUNDED) <= limit:
                    rows[task.id, repeat] = sample["score"], False, price
                else:
                    again.append(Job(arm.name, arm.topology, task, team, repeat))
        if again:
            self.watch.stage(f"{arm.name} at {at}", len(again))

        def done(result: Result) -> None:
            job, row = result.job, self.evaluation.sample(result, arm.name)
            rows[job.task.id, job.repeat] = row["score"], row["status"] == OVER_BUDGET, spent(self.over, asdict(result.usage))
            self.watch.advance(1)

        run_jobs(again, self.hosts, self.memory, done, seed=self.evaluation.seed, budget=at & self.evaluation.budget)
        return [[rows[task.id, repeat] for repeat in range(self.evaluation.repeats)] for task in self.tasks]


def _best(tried: Mapping[Name, Topology], trial: DevTrial) -> Name:
    """The most accurate on dev, of equals the cheapest, of those the first."""
    found = {name: trial.accuracy(topology) for name, topology in tried.items()}
    return max(found, key=lambda name: (found[name][0], -found[name][1]))


def gains(own: Sequence[np.ndarray], other: Sequence[np.ndarray], seed: int = 0, cluster: np.ndarray | None = None) -> list[dict[str, Any]]:
    """One arm's scores minus another's at each limit, paired by task (by cluster, where there are some), with p-values adjusted by Holm's method."""
    rows: list[dict[str, Any]] = []
    for a, b in zip(own, other, strict=True):
        p, ci95 = paired(a, b, seed, cluster)
        rows.append({"delta": float(np.mean(a - b)), "ci95": list(ci95), "p": float(p)})
    for row, p_holm in zip(rows, statistics.holm([row["p"] for row in rows]).tolist(), strict=True):
        row["p_holm"] = p_holm
    return rows
