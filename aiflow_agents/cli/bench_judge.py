"""`aiflow bench judge`: the judge on trial, in worlds in which it is known who is better."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aiflow_agents.cli.options import Display, Json
from aiflow_agents.cli.output import print_json


def judge(
    runs: Annotated[int, typer.Option(min=100, help="Simulated runs of each world.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Draws the runs.")] = 0,
    worlds: Annotated[bool, typer.Option("--worlds", help="Also a line for every world.")] = False,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """Is the judge ever fooled? Simulated worlds in which it is known who is better, many runs in each.

    Best member and best topology are chosen on dev, as in a real evaluation. Exit code 1 where a criterion is missed. With few runs, or another seed,
    a true criterion may be missed by chance: power lies outside three standard errors in about one of 25 trials.
    """
    from ..bench.judge import bench_judge
    from .display import watcher

    with watcher(display) as watch:
        found = bench_judge(runs, seed, watch=watch)
    if json:
        print_json(found)
    else:
        _show(found, worlds)
    return 0 if found["passed"] else 1


def _show(found: dict[str, Any], every: bool) -> None:
    if every:
        typer.echo(f"{'world':20} {'tasks':>6} {'differ':>6} {'topologies':>10}  {'false beats':>11} {'over rivals':>11} {'false loses':>11}  covered")
        for row in found["worlds"]:
            rates = " ".join(f"{row[key]:>11.2%}" for key in ("false_beats", "false_beats_rival", "false_loses"))
            covered = ", ".join(f"{kind} {share:.1%}" for kind, share in row["covered"].items() if share is not None)
            typer.echo(f"{row['world']:20} {row['tasks']:6,} {row['discordance']:>6.0%} {row['topologies']:10}  {rates}  {covered}")
        typer.echo("")
        for row in found["power"]:
            where = f"{row['world']}, {row['tasks']:,} tasks, gain {row['gains'][0]:.1%} of {row['discordance']:.0%}"
            typer.echo(f"power {row['power']:.4f}, exactly {row['exact']:.4f} ({row['standard_errors']:+.1f} standard errors): {where}")
        typer.echo("")
    for one in found["criteria"]:
        typer.echo(f"{'passed' if one['passed'] else 'MISSED'}  {one['name']}: {one['found']}\n        wanted: {one['wanted']}")
    typer.echo(f"\n{len(found['worlds'])} worlds of {found['runs']:,} runs, {len(found['power'])} enumerated exactly; seed {found['seed']}")
