"""What everything around the models costs: a whole evaluation beside the model batches that it asks for.

    evaluation   plan | run: worlds, network, memory, samples, verdict, report, and inside it  [batch] [batch] ...
    alone                                                                                      [batch] [batch] ...

Both sides use the same hosts, which hold their weights already, and an evaluation has run before, so that imports, Ray's start and loading are on
neither. `plan`, which reads the definitions and hashes the weights, is start-up too.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from aiflow_agents.bench.machine import cpu_seconds
from aiflow_agents.errors import AIFlowError
from aiflow_agents.evals.evaluate import plan
from aiflow_agents.evals.report import write_report
from aiflow_agents.evals.run_folder import RunFolder
from aiflow_agents.evals.runner import Evaluation, Silence, Watcher
from aiflow_agents.evals.start import start_hosts
from aiflow_agents.models.protocol import Reply, Request, Turn
from aiflow_agents.runtime.hosts import Answers, Batches, Hosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import no_collections

Asked = list[dict[str, list[Request]]]  # one entry per hand-over: what each model was asked in it


class Recorder:
    """Hosts that write down what they are asked, and let others answer."""

    def __init__(self, hosts: Hosts):
        self.hosts, self.asked = hosts, Asked()

    def generate(self, batches: Batches) -> dict[str, Answers]:
        self.asked.append({model: list(requests) for model, requests in batches.items()})
        return self.hosts.generate(batches)

    def know(self, model: str, request: Request, reply: Reply) -> None:
        self.hosts.know(model, request, reply)

    def close(self) -> None: ...


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and CPU seconds of this process and all hosts together."""

    wall_s: float
    cpu_s: float


def bench_overhead(
    suite: str = "specialists",
    *,
    runtime: str = "inline",
    limit: int | None = 200,
    seed: int = 0,
    repeats: int = 3,
    hosts: Hosts | None = None,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """Run a suite's evaluation, then what its models were asked once more through the bare hosts, by turns, `repeats` times.

    `limit` is that of `evaluate`. Every other round begins with the other side, so that neither is always the one that finds the machine warm or
    busy. The batches are those that `hosts.generate` was given, in the same order, and the Ray runtime cuts them up over the same hosts; an
    evaluation that asks for others than the first one did raises AIFlowError.

    Returns `suite, team, runtime, hosts, limit, seed, n_dev, n_test, calls, batches, handovers, rounds: [{first, evaluation: {wall_s, cpu_s}, alone:
    {wall_s, cpu_s}, wall_ratio, cpu_ratio}], wall_ratio, cpu_ratio`, the last two being medians over the rounds of

        wall_ratio = evaluation.wall_s / alone.wall_s
        cpu_ratio  = evaluation.cpu_s / alone.cpu_s

    With Ray `cpu_ratio` is the ratio per core used: cpu_s = wall_s * (cores that were busy on average), driver and hosts counted and Ray's own
    daemons not. There `wall_ratio` is higher, as the hosts stand still while the driver works. `cpu_s` is of this process alone where the system
    does not tell that of others.
    """
    watch = watch or Silence()
    evaluation = plan(suite, limit=limit, seed=seed)
    watch.stage("loading the models", 0)
    used = hosts or start_hosts(runtime)
    try:
        pids = _processes(used)
        _load(evaluation, used, max(1, len(pids)))
        first = Recorder(used)
        _evaluate(evaluation, first)  # not measured: says what is asked, and imports what only an evaluation needs
        rounds = []
        watch.stage(f"{evaluation.suite.name}, {runtime}", 2 * repeats)
        for number in range(repeats):
            recorder = Recorder(used)
            sides = {"evaluation": partial(_evaluate, evaluation, recorder), "alone": partial(_replay, first.asked, used)}
            spent: dict[str, Spent] = {}
            for side in list(sides) if number % 2 == 0 else reversed(sides):
                spent[side] = _spent(sides[side], pids)
                watch.advance(1)
            if recorder.asked != first.asked:
                raise AIFlowError("a second evaluation asked its models something else than the first; no two of its times can be compared")
            rounds.append(_round(spent))
    finally:
        if hosts is None:
            used.close()
    return {
        "suite": evaluation.suite.name,
        "team": evaluation.team.name,
        "runtime": runtime,
        "hosts": max(1, len(pids)),
        "limit": limit,
        "seed": seed,
        "n_dev": len(evaluation.dev),
        "n_test": len(evaluation.test),
        "calls": sum(len(requests) for batches in first.asked for requests in batches.values()),
        "batches": sum(map(len, first.asked)),
        "handovers": len(first.asked),
        "rounds": rounds,
        **{ratio: statistics.median(row[ratio] for row in rounds) for ratio in ("wall_ratio", "cpu_ratio")},
    }


def _evaluate(evaluation: Evaluation, hosts: Hosts) -> None:
    """What `evaluate` does after its plan, with a folder and a memory of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "run"
        with RunFolder(path, evaluation.config) as folder, closing(Memory(path / "calls.sqlite")) as memory:
            replace(evaluation).run(folder, hosts, memory, Silence())
        write_report(path)


def _replay(asked: Asked, hosts: Hosts) -> None:
    """The batches alone, with as few garbage collections as in an evaluation."""
    with no_collections():
        for batches in asked:
            hosts.generate(batches)


def _load(evaluation: Evaluation, hosts: Hosts, count: int) -> None:
    """Let every host load every model: one after the other, each with a batch that is cut into one piece for each host."""
    for folder in dict.fromkeys(agent.folder for agent in evaluation.team):
        hosts.generate({folder: [Request((Turn("user", f"{i}"),), max_tokens=1) for i in range(32 * count)]})


def _processes(hosts: Hosts) -> list[int]:
    """Process ids of hosts that are not this process."""
    return hosts.processes() if hasattr(hosts, "processes") else []


def _spent(work: Callable[[], None], pids: list[int]) -> Spent:
    def cpu() -> float:
        return time.process_time() + sum(cpu_seconds(pid) or 0.0 for pid in pids if pid != os.getpid())

    wall_s, cpu_s = time.perf_counter(), cpu()
    work()
    return Spent(time.perf_counter() - wall_s, cpu() - cpu_s)


def _round(spent: Mapping[str, Spent]) -> dict[str, Any]:
    """`spent` in the order in which the sides ran."""
    evaluation, alone = spent["evaluation"], spent["alone"]
    return {
        "first": next(iter(spent)),
        **{side: {"wall_s": s.wall_s, "cpu_s": s.cpu_s} for side, s in spent.items()},
        "wall_ratio": evaluation.wall_s / max(alone.wall_s, 1e-9),
        "cpu_ratio": evaluation.cpu_s / max(alone.cpu_s, 1e-9),
    }
