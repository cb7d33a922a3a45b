"""What an evaluation costs beside the models that it asks: the whole of it against the very same batches alone.

    wall     seconds of an evaluation, from its first call to the written report; hosts are up and weights are loaded
    alone    seconds of our engine, in this process on one core, for the batches that the evaluation handed over
    ratio    wall * cores / alone, where cores is how many hosts computed (inline: 1)

With Ray the ratio is per core used, so it counts batches that cannot be shared out evenly, transfers and idle hosts too.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from aiflow_agents.evals.evaluate import Silence, start_hosts
from aiflow_agents.evals.report import write_report
from aiflow_agents.evals.run_folder import RunFolder
from aiflow_agents.evals.runner import Evaluation, Watcher
from aiflow_agents.models.protocol import Request, Turn
from aiflow_agents.runtime.hosts import Answers, Batches, Hosts, InlineHosts, RayHosts
from aiflow_agents.runtime.memory import Memory

WARM = 600  # requests to each model before the first measurement: enough that every host gets a piece


class Recorded:
    """Hosts that keep what they are asked."""

    def __init__(self, hosts: Hosts):
        self.hosts = hosts
        self.batches: list[dict[str, list[Request]]] = []

    def generate(self, batches: Batches) -> dict[str, Answers]:
        self.batches.append({model: list(requests) for model, requests in batches.items()})
        return self.hosts.generate(batches)

    def close(self) -> None: ...


def bench_overhead(
    evaluation: Evaluation, runtimes: Sequence[str] = ("inline", "ray"), *, repeats: int = 3, watch: Watcher | None = None
) -> dict[str, Any]:
    """Measure an evaluation and its batches alone, by turns, `repeats` times on each runtime.

    Returns `suite, n_tasks, repeats, runtimes: {name: {cores, batches, calls, wall_s, alone_s, ratio, ratios}}`; the times and `ratio` are medians.
    """
    watch = watch or Silence()
    alone = InlineHosts()
    found: dict[str, Any] = {}
    for runtime in runtimes:
        watch.stage(f"{runtime}: starting", 0)
        with closing(start_hosts(runtime, None)) as hosts:
            cores = len(hosts.processes()) if isinstance(hosts, RayHosts) else 1
            warm = {agent.folder: [Request((Turn("user", str(i)),), 2) for i in range(WARM)] for agent in evaluation.team}
            for side in (hosts, alone):
                side.generate(warm)
            watch.stage(f"{runtime}: measuring", repeats)
            rounds = []
            for _ in range(repeats):
                recorded = Recorded(hosts)
                wall_s = _evaluated(evaluation, recorded)
                rounds.append((wall_s, _asked(alone, recorded.batches)))
                watch.advance(1)
        ratios = [wall_s * cores / alone_s for wall_s, alone_s in rounds]
        found[runtime] = {
            "cores": cores,
            "batches": sum(len(each) for each in recorded.batches),
            "calls": sum(len(requests) for each in recorded.batches for requests in each.values()),
            "wall_s": statistics.median(wall_s for wall_s, _ in rounds),
            "alone_s": statistics.median(alone_s for _, alone_s in rounds),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    return {"suite": evaluation.suite.name, "n_tasks": len(evaluation.test), "repeats": repeats, "runtimes": found}


def _evaluated(evaluation: Evaluation, hosts: Hosts) -> float:
    """Seconds of a whole evaluation into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as place:
        start, path = time.perf_counter(), Path(place) / "run"
        with RunFolder(path, evaluation.config) as folder, closing(Memory(path / "calls.sqlite")) as memory:
            evaluation.run(folder, hosts, memory, Silence())
        write_report(path)
        return time.perf_counter() - start


def _asked(hosts: Hosts, batches: Sequence[Batches]) -> float:
    """Seconds of these batches, one after the other, and nothing else."""
    start = time.perf_counter()
    for each in batches:
        hosts.generate(each)
    return time.perf_counter() - start
