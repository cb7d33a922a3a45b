"""`aiflow bench resume`: killed and resumed again and again, does an evaluation end as if nothing had been?"""

from __future__ import annotations

from json import dumps
from typing import Annotated, Literal

import typer


def resume(
    suite: Annotated[str, typer.Argument(help="A suite by name or path.")] = "specialists",
    limit: Annotated[int, typer.Option(min=1, help="How many test tasks.")] = 100,
    topology: Annotated[list[str] | None, typer.Option(help="Only this topology; repeatable.", show_default=False)] = None,
    kills: Annotated[int, typer.Option(min=1, help="How often it is killed, by SIGKILL.")] = 10,
    kill_seed: Annotated[int, typer.Option(help="Draws the moments.")] = 0,
    runtime: Annotated[Literal["inline", "ray"], typer.Option(help="inline: one process; ray: one host a core.")] = "inline",
    seed: Annotated[int, typer.Option(help="Draws the questions, and every sampled answer.")] = 0,
    display: Annotated[Literal["rich", "plain", "none"], typer.Option(help="Progress, on stderr; rich is plain without a terminal.")] = "rich",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")] = False,
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
        typer.echo(dumps(found, indent=2))
    else:
        for number, kill in enumerate(found["kills"], 1):
            typer.echo(f"{number:3}  {kill['stage']}: {kill['at']}{'; last line torn' if kill['torn'] else ''}")
        same = ", ".join(f"{name} {'the same' if equal else 'DIFFERS'}" for name, equal in found["equal"].items())
        typer.echo(f"\n{found['suite']}, {found['runtime']}: killed {len(found['kills'])} times, {found['samples']:,} samples: {same}")
    return 0 if found["passed"] else 1
