"""`aiflow compare`: runs side by side on the tasks that they share."""

from __future__ import annotations

from typing import Annotated

import typer

from aiflow_agents.cli.options import Json
from aiflow_agents.cli.output import print_json


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN...", help="Run folders; RUN:ARM names an arm, and RUN,RUN (other seeds of one thing) is one side."),
    ],
    margin: Annotated[float, typer.Option(help="How far apart two accuracies may be and still count as the same (0.02 = 2 points).")] = 0.02,
    seed: Annotated[int, typer.Option(help="Draws the resamples.")] = 0,
    by_tag: Annotated[bool, typer.Option("--by-tag", help="Also on the tasks of each tag alone, such as a kind of question.")] = False,
    json: Json = False,
) -> None:
    """Is a run better than the first one, equally good, cheaper?

    Paired on the tasks that all runs share, by id and question; answers to one task are averaged over repeats and seeds. Without an arm it is a
    run's best topology. The margin is to be chosen before looking.
    """
    from ..evals.compare import COSTS, compare_runs
    from ..evals.verdict import p_text, percent, points, quantity

    found = compare_runs(runs, margin, seed, tagged=by_tag)
    if json:
        print_json(found)
        return
    width = max(len(side["name"]) for side in found["sides"])
    typer.echo(f"{'':{width}}  {'right':>7}  {'95 %':>11}" + "".join(f"  {name:>13}" for name in COSTS.values()))
    for side in found["sides"]:
        low, high = (f"{100 * end:.1f}" for end in side["ci95"])
        costs = [f"{quantity(value * 1000 if cost == 'latency_s' else value):>13}" for cost, value in side["costs"].items()]
        typer.echo(f"{side['name']:{width}}  {percent(side['accuracy']):>7}  {f'{low}-{high}':>11}  {'  '.join(costs)}")
    for row in found["comparisons"]:
        typer.echo(f"\n{row['sentence']}")
        if by_tag:
            typer.echo(f"\n{row['second']} against {row['first']}, by tag; p: Holm over the tags")
        for tag, one in row.get("tags", {}).items():
            first, second = map(percent, one["accuracy"])
            interval = f"{points(one['delta'])} ({points(one['ci95'][0])} to {points(one['ci95'][1])})"
            typer.echo(f"  {tag:16}  {one['tasks']:>6,} tasks  {second:>7} against {first:>7}  {interval:22}  {p_text(one['p_holm'])}")
