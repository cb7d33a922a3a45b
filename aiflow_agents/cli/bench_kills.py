"""`aiflow bench kills`: hosts and raylets of a cluster die in mid-run; does the evaluation end as if nothing had been?"""

from __future__ import annotations

from typing import Annotated

import typer

from aiflow_agents.cli.options import AnswerSeed, Display, Json, KillSeed, OnlyTopology, Suite, TestTasks
from aiflow_agents.cli.output import print_json


def kills(
    suite: Suite = "specialists",
    limit: TestTasks = 2000,
    topology: OnlyTopology = None,
    kills: Annotated[int, typer.Option(min=1, help="How many, hosts and raylets in turn, by SIGKILL.")] = 20,
    kill_seed: KillSeed = 0,
    seed: AnswerSeed = 0,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """An evaluation on a cluster of three raylets on this machine, whose hosts and raylets are killed, beside one in one process.

    Samples, traces and summary are compared line by line; exit code 1 where anything differs but the run's name.
    """
    from aiflow_agents.bench.kills import bench_kills
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.suite import load_suite

    load_suite(suite)  # what is wrong with it is said before anything runs
    with watcher(display) as watch:
        found = bench_kills(suite, topologies=topology or (), limit=limit, kills=kills, seed=seed, kill_seed=kill_seed, watch=watch)
    if json:
        print_json(found)
    else:
        for number, kill in enumerate(found["kills"], 1):
            typer.echo(f"{number:3}  {kill['what']:6}  {kill['tier']:6}  batch {kill['batch']:,} of {found['batches']:,}")
        same = ", ".join(f"{name} {'the same' if equal else 'DIFFERS'}" for name, equal in found["equal"].items())
        took = found["seconds"]
        typer.echo(f"\n{found['suite']}: {len(found['kills'])} kills, {found['restarts']} hosts started again, {found['samples']:,} samples: {same}")
        typer.echo(f"in one process {took['alone']:.0f} s, on the cluster {took['cluster']:.0f} s")
    return 0 if found["passed"] else 1
