"""`aiflow bench resume`: killed and resumed again and again, does an evaluation end as if nothing had been?"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from aiflow_agents.cli.options import AnswerSeed, Display, Json, KillSeed, OnlyTopology, Suite, TestTasks
from aiflow_agents.cli.output import print_json


def resume(
    suite: Suite = "specialists",
    limit: TestTasks = 100,
    topology: OnlyTopology = None,
    kills: Annotated[int, typer.Option(min=1, help="How often it is killed, by SIGKILL.")] = 10,
    kill_seed: KillSeed = 0,
    runtime: Annotated[Literal["inline", "ray"], typer.Option(help="inline: one process; ray: one host a core.")] = "inline",
    seed: AnswerSeed = 0,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """An evaluation killed at random moments and resumed each time, beside one that nobody disturbed: samples, traces and summary, line by line.

    Exit code 1 where anything differs but the run's name.
    """
    from aiflow_agents.bench.resume import bench_resume
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.suite import load_suite

    load_suite(suite)  # what is wrong with it is said before anything runs
    with watcher(display) as watch:
        found = bench_resume(suite, topologies=topology or (), limit=limit, kills=kills, runtime=runtime, seed=seed, kill_seed=kill_seed, watch=watch)
    if json:
        print_json(found)
    else:
        for number, kill in enumerate(found["kills"], 1):
            typer.echo(f"{number:3}  {kill['stage']}: {kill['at']}{'; last line torn' if kill['torn'] else ''}")
        same = ", ".join(f"{name} {'the same' if equal else 'DIFFERS'}" for name, equal in found["equal"].items())
        typer.echo(f"\n{found['suite']}, {found['runtime']}: killed {len(found['kills'])} times, {found['samples']:,} samples: {same}")
    return 0 if found["passed"] else 1
