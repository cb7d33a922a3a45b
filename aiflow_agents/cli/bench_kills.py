"""`aiflow bench kills`: hosts and raylets of a cluster die in mid-run; does the evaluation end as if nothing had been?"""

from __future__ import annotations

from json import dumps
from typing import Annotated, Literal

import typer


def kills(
    suite: Annotated[str, typer.Argument(help="A suite by name or path.")] = "specialists",
    limit: Annotated[int, typer.Option(min=1, help="How many test tasks.")] = 2000,
    topology: Annotated[list[str] | None, typer.Option(help="Only this topology; repeatable.", show_default=False)] = None,
    kills: Annotated[int, typer.Option(min=1, help="How many, hosts and raylets in turn, by SIGKILL.")] = 20,
    kill_seed: Annotated[int, typer.Option(help="Draws the moments.")] = 0,
    seed: Annotated[int, typer.Option(help="Draws the questions, and every sampled answer.")] = 0,
    display: Annotated[Literal["rich", "plain", "none"], typer.Option(help="Progress, on stderr; rich is plain without a terminal.")] = "rich",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")] = False,
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
        typer.echo(dumps(found, indent=2))
    else:
        for number, kill in enumerate(found["kills"], 1):
            typer.echo(f"{number:3}  {kill['what']:6}  {kill['tier']:6}  batch {kill['batch']:,} of {found['batches']:,}")
        same = ", ".join(f"{name} {'the same' if equal else 'DIFFERS'}" for name, equal in found["equal"].items())
        took = found["seconds"]
        typer.echo(f"\n{found['suite']}: {len(found['kills'])} kills, {found['restarts']} hosts started again, {found['samples']:,} samples: {same}")
        typer.echo(f"in one process {took['alone']:.0f} s, on the cluster {took['cluster']:.0f} s")
    return 0 if found["passed"] else 1
