"""The controls again and again: rooms in which no team can be smarter, each drawn anew for many seeds, each judged as an evaluation judges.

    seed 1000   copies       dev, test  ->  every topology against every member  ->  a line on disk
                saturated    ...
    seed 1001   ...

One false `beats` says nothing: the judge allows itself some. Over many seeds it must not say it, of any topology of a room, in more than 5 % of
them. Rivals are left out, as they decide nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aiflow_agents.evals import verdict
from aiflow_agents.evals.evaluate import plan
from aiflow_agents.evals.run_folder import RunFolder
from aiflow_agents.evals.runner import Evaluation, Silence, Watcher
from aiflow_agents.evals.suite import load_suites
from aiflow_agents.evals.trial import DevTrial
from aiflow_agents.runtime.hosts import Hosts, InlineHosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job
from aiflow_agents.topology.load import load_topology

ALLOWED = 0.05  # of the seeds
ALPHA = 0.05  # of the test that it is no more, over all rooms


def bench_controls(
    suite: str = "controls",
    *,
    seeds: int = 200,
    first_seed: int = 1000,
    dev: int = 60,
    tasks: int = 200,
    folder: Path,
    hosts: Hosts | None = None,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """Judge each room of `suite` for the seeds from `first_seed` on, with so many dev and test tasks each.

    `folder` keeps a line for every room and seed (samples.jsonl) and all answers: a bench that was stopped goes on there, one with other settings or
    other models is refused (OtherRun). Models are loaded once.

    Returns `suite, seeds, first_seed, dev, tasks, rooms: [{room, team, seeds, beats, share, p, loses, of: {arm: seeds with beats}, passed}], passed`.
    p is that of the exact binomial test that `beats` is no more frequent than 5 %; a room passes where p, times the number of rooms, is above 0.05.
    """
    watch = watch or Silence()
    rooms = [plan(one) for one in load_suites(suite)]
    config = {"bench": "controls", "dev": dev, "tasks": tasks, "rooms": {room.suite.name: _about(room) for room in rooms}}
    used = hosts or InlineHosts()
    try:
        with RunFolder(folder, config, resume=(folder / "config.json").is_file()) as kept:
            watch.stage("rooms and seeds", seeds * len(rooms))
            for seed in range(first_seed, first_seed + seeds):
                for room in rooms:
                    if not kept.finished(room.suite.name, str(seed), 0):
                        with closing(Memory(folder / "calls.sqlite")) as memory:  # one a seed: what is known in memory alone would grow and grow
                            kept.add([_judge(room, seed, dev, tasks, used, memory)])
                    watch.advance(1)
            lines = [[kept.samples[room.suite.name, str(seed), 0] for seed in range(first_seed, first_seed + seeds)] for room in rooms]
    finally:
        if hosts is None:
            used.close()
    found = [_room(room, rows, len(rooms)) for room, rows in zip(rooms, lines, strict=True)]
    about = {"suite": suite, "seeds": seeds, "first_seed": first_seed, "dev": dev, "tasks": tasks}
    return about | {"rooms": found, "passed": all(row["passed"] for row in found)}


def _about(room: Evaluation) -> dict[str, Any]:
    """What decides a room's outcome, but for its questions."""
    return {key: room.config[key] for key in ("team", "network", "topologies", "members")}


def _judge(room: Evaluation, seed: int, dev: int, tasks: int, hosts: Hosts, memory: Memory) -> dict[str, Any]:
    """One room with the questions of one seed: a line that says which topologies beat the members."""
    execute = replace(room, seed=seed).executor(hosts, memory, Silence())
    trial = DevTrial(room.team, room.suite.tasks("dev", seed, dev), room.suite.scorer, execute)
    fitted = {name: topology.fit(trial) for name, topology in room.prepare().items() if not topology.control}
    single = {agent.name: load_topology("single", {"member": agent.name}) for agent in room.team}
    arms, test = single | fitted, room.suite.tasks("test", seed, tasks)
    results = execute([Job(name, topology, task, trial.team) for name, topology in arms.items() for task in test])
    marks = np.array([trial.score(result) for result in results]).reshape(len(arms), len(test))
    kinds = {name: "member" if name in single else "topology" for name in arms}
    rows = verdict.judge(
        dict(zip(arms, marks, strict=True)), kinds, best_member=trial.best_member, best_topology=None, oracle=None, seed=seed
    )
    said = {row.arm: {"says": row.says, "delta": row.delta, "p_holm": row.p_holm} for row in rows}
    best = float(marks[list(arms).index(trial.best_member)].mean())
    return {"arm": room.suite.name, "task_id": str(seed), "repeat": 0, "status": "ok", "n": len(test), "best_member": best, "verdicts": said}


def _room(room: Evaluation, rows: Sequence[dict[str, Any]], rooms: int) -> dict[str, Any]:
    """All seeds of one room."""
    from scipy.stats import binomtest

    said = [{name: row["says"] for name, row in line["verdicts"].items()} for line in rows]
    beats = sum("beats" in one.values() for one in said)
    p = float(binomtest(beats, len(rows), ALLOWED, alternative="greater").pvalue)
    return {
        "room": room.suite.name,
        "team": room.team.name,
        "seeds": len(rows),
        "best_member": float(np.mean([line["best_member"] for line in rows])),
        "beats": beats,
        "share": beats / len(rows),
        "p": p,
        "loses": sum("loses" in one.values() for one in said),
        "of": {name: sum(one[name] == "beats" for one in said) for name in said[0]},
        "passed": p * rooms > ALPHA,
    }
