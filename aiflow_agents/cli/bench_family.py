"""`aiflow bench family`: is every exit better than the one before it, and as good as a plain model of its size?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .options import Display, Json, QuestionSeed
from .output import print_json

if TYPE_CHECKING:
    from ..bench.family import Rival


def family(
    name: Annotated[str, typer.Argument(metavar="FAMILY", help="A family by name or path.")],
    questions: Annotated[int, typer.Option(min=2, help="Different test questions, the family's skills in turn.")] = 1400,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER@EXIT", help="A plain model to hold an exit against, and the name it is shown by; repeatable.", show_default=False),
    ] = None,
    seed: QuestionSeed = 0,
    display: Display = "rich",
    json: Json = False,
) -> None:
    """Is each exit of a family better than the one before?

    All are asked the same fresh test questions: accuracy, and the exact McNemar test between neighbours.
    With --against device=FOLDER@1, exit 1 is also held against the plain model in FOLDER: the ratio of their accuracies, with its interval.
    """
    from .. import catalog
    from ..bench.family import bench_family, questions_for
    from ..models.family.config import DecoderConfig
    from .display import watcher

    folder = catalog.find("model", name).path
    rivals = [_rival(word) for word in against or []]
    asked = questions_for(folder, questions, seed)
    with watcher(display) as watch:
        watch.stage(f"{folder.name}: {len(asked):,} questions to each", len(DecoderConfig.read(folder).exits) + len(rivals))
        result = {**bench_family(folder, asked, rivals, seed=seed, watch=watch), "seed": seed, "split": "test"}
    if json:
        print_json(result)
    else:
        _show(result)


def _rival(word: str) -> Rival:
    from .. import catalog
    from ..bench.family import Rival

    match = re.fullmatch(r"([^=]+)=(.+)@(\d+)", word)
    if match is None:
        raise UserError(f"--against {word}: expected NAME=FOLDER@EXIT, as in device=models/small@1")
    return Rival(match[1], catalog.find("model", match[2]).path, int(match[3]))


def _show(result: dict[str, Any]) -> None:
    typer.echo(f"{result['family']}: {result['n']:,} test questions, greedy\n")
    typer.echo(f"{'exit':>4} {'blocks':>6} {'parameters':>12} {'FLOPs/token':>13} {'accuracy':>8}  {'95 % interval':13}  over the exit before")
    for row in result["exits"]:
        over = row["over"]
        step = "-" if over is None else f"+{over['wins']} -{over['losses']}, p {over['p']:.2g}"
        cost = f"{row['exit']:4} {row['blocks']:6} {row['parameters']:12,} {row['flops_per_token']:13,.0f}"
        typer.echo(f"{cost} {row['accuracy']:8.3f}  {row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}  {step}")
    if len(result["exits"]) > 1:
        p = result["every_exit_better"]
        typer.echo("\nnot every exit has more right than the one before" if p is None else f"\nevery exit better than the one before: p {p:.2g}")
    for row in result["against"]:
        share = "-" if row["ratio"] is None else f"{row['ratio']:.1%} ({row['ratio_ci95'][0]:.1%} to {row['ratio_ci95'][1]:.1%})"
        step = f"+{row['wins']} -{row['losses']}, p {row['p']:.2g}"
        typer.echo(f"exit {row['exit']} has {share} of {row['name']}'s accuracy: {row['exit_accuracy']:.3f} to {row['accuracy']:.3f}, {step}")
