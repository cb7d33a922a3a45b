"""`aiflow bench drafting`: what a family gains that drafts for itself."""

from __future__ import annotations

from typing import Annotated

import typer

from aiflow_agents.cli.options import Display, Json, QuestionSeed
from aiflow_agents.cli.output import print_json


def drafting(
    model: Annotated[str, typer.Argument(help="A family by name or path.")] = "willow",
    draft: Annotated[int | None, typer.Option(help="The exit that drafts. Default: the shallowest.", show_default=False)] = None,
    exit: Annotated[int | None, typer.Option(help="The exit that checks. Default: the deepest.", show_default=False)] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a draft. Default: as is accepted.", show_default=False)] = None,
    questions: Annotated[int, typer.Option(min=1, help="Test questions of all skills.")] = 140,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds.")] = 5,
    seed: QuestionSeed = 0,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """Tokens per second of a family, one sequence at a time: its deepest exit alone, and with its shallowest one drafting ahead.

    Exit code 1 where the text differs otherwise than between two logits within 1e-4.
    """
    from aiflow_agents import catalog
    from aiflow_agents.bench.drafting import bench_drafting
    from aiflow_agents.bench.machine import machine
    from aiflow_agents.cli.display import watcher

    path = catalog.find("model", model).path
    with watcher(display) as watch:
        found = bench_drafting(path, draft=draft, exit=exit, length=length, questions=questions, repeats=repeats, seed=seed, watch=watch)
    if json:
        print_json({"machine": machine(), **found})
    else:
        typer.echo(f"{found['model']}: exit {found['draft']} drafts, exit {found['exit']} checks; {found['questions']} questions, {found['tokens']} tokens")
        typer.echo(f"whole    {found['whole_tokens_per_s']:7.0f} tok/s")
        typer.echo(f"drafted  {found['drafted_tokens_per_s']:7.0f} tok/s  {found['ratio']:.2f}x ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})")
        typer.echo(f"{found['acceptance_rate']:.1%} of the drafted tokens accepted, {found['tokens_a_check']:.2f} tokens a check")
        typer.echo(f"{found['identical']} answers identical, {found['ties']} part at a tie, {len(found['different'])} otherwise")
    return 1 if found["different"] else 0
