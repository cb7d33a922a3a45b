"""`aiflow bench controls`: rooms in which no team can be smarter, for many seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aiflow_agents.cli.options import Display, Json
from aiflow_agents.cli.output import print_json


def controls(
    suite: Annotated[str, typer.Argument(help="A suite, or a group of suites, in which no topology can be better than every member.")] = "controls",
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 1000,
    dev: Annotated[int, typer.Option(min=2, help="Dev tasks of each room and seed.")] = 60,
    tasks: Annotated[int, typer.Option(min=1, help="Test tasks of each room and seed.")] = 200,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where results are kept; what is there already is gone on with.")] = Path("logs/controls"),
    display: Display = "rich",
    json: Json = False,
) -> int:
    """How often does the judge say `beats` where it must not? Each room of the controls, drawn anew for many seeds.

    At most 5 % of the seeds are allowed, for any topology of a room. Exit code 1 where a room has more than chance explains (exact binomial test). It
    takes about half an hour on a quiet core; stopped or killed, the same command goes on.
    """
    from aiflow_agents.bench.controls import bench_controls
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.errors import UserError
    from aiflow_agents.evals.run_folder import OtherRun

    try:
        with watcher(display) as watch:
            found = bench_controls(suite, seeds=seeds, first_seed=seed, dev=dev, tasks=tasks, folder=out, watch=watch)
    except OtherRun as other:
        raise UserError(f"{out} holds results of other settings: {other.said}; choose another folder with --out") from None
    if json:
        print_json(found)
    else:
        _show(found)
    return 0 if found["passed"] else 1


def _show(found: dict[str, Any]) -> None:
    typer.echo(f"{'room':20} {'best member':>11}  {'beats':>9} {'share':>6} {'p':>6}  {'loses':>5}  beats by topology")
    for row in found["rooms"]:
        by = ", ".join(f"{name} {count}" for name, count in row["of"].items())
        missed = "" if row["passed"] else "  MISSED"
        counts = f"{row['beats']:>3} of {row['seeds']}"
        typer.echo(f"{row['room']:20} {row['best_member']:>11.1%}  {counts:>9} {row['share']:>6.1%} {row['p']:>6.2g}  {row['loses']:>5}  {by}{missed}")
    last = found["first_seed"] + found["seeds"] - 1
    typer.echo(f"\nseeds {found['first_seed']} to {last}, {found['dev']:,} dev and {found['tasks']:,} test tasks each; 5 % of the seeds are allowed")
