"""`aiflow bench monolith`: is a team better than one model of its size that was trained on as much?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from aiflow_agents.cli import Interrupted
from aiflow_agents.cli.again import command, option_words
from aiflow_agents.cli.options import Display, Json, Limit, ready_to_train
from aiflow_agents.cli.output import print_json


def monolith(
    suite: Annotated[str, typer.Argument(help="A suite by name or path; its own team is trained anew.")] = "specialists",
    scale: Annotated[float, typer.Option(min=0.0001, max=1, help="The share of the recipes' tokens, for both sides.")] = 0.05,
    train_seed: Annotated[int, typer.Option(min=0, help="Other weights and training questions for every model.")] = 0,
    seed: Annotated[int, typer.Option(help="Draws the test questions, and every sampled answer.")] = 0,
    limit: Limit = None,
    work: Annotated[
        Path | None, typer.Option(help="Where all is kept. Default: logs/monolith/SUITE-SCALE-TRAINSEED.", show_default=False)
    ] = None,
    runtime: Annotated[Literal["inline", "ray"], typer.Option(help="Of the evaluation. inline: this process; ray: one host a core.")] = "inline",
    display: Display = "rich",
    json: Json = False,
) -> None:
    """A suite's team against one model with as many parameters, trained on as many tokens as the whole team together.

    Every member is trained anew, then the single model: with the members' skills, in the shares in which they had them. It answers alone, as the arm
    `monolith`. Stopped or killed, the same command goes on. A scale of 0.05 takes half an hour on one quiet core for `specialists`.
    """
    from aiflow_agents.bench.monolith import judge_both, plan_monolith, questions_at, train_both
    from aiflow_agents.cli.display import training, watcher
    from aiflow_agents.training.nursery import Nursery

    plan = plan_monolith(suite, scale=scale, train_seed=train_seed)
    folder = work or Path("logs/monolith") / f"{plan.suite.name}-{scale:g}-{train_seed}"
    ready_to_train("cpu")
    names = [*plan.recipes, *plan.peers]
    try:
        with training({recipe.name: [phase.kind for phase in recipe.phases] for recipe in names} | {"monolith": ["answer", "recall"]}) as (note, progress):
            nursery = Nursery(folder, folder / "models", folder, questions=questions_at(scale), note=note, progress=progress)
            whole, trained = train_both(plan, nursery)
        with watcher(display) as watch:
            report = judge_both(plan, nursery, seed=seed, limit=limit, runtime=runtime, watch=watch)
    except KeyboardInterrupt:
        options = {"scale": f"{scale:g}", "train-seed": train_seed, "seed": seed, "limit": limit, "work": work, "runtime": runtime}
        raise Interrupted(command("bench", "monolith", suite, *option_words(options))) from None
    if json:
        about = {"scale": scale, "train_seed": train_seed, "models": trained, "recipe": whole.model_dump(mode="json")}
        print_json(about | {"folder": str(report.folder), "summary": report.summary})
        return
    typer.echo(str(report))
    _show(trained, len(plan.members))
    typer.echo(f"report: {report.folder / 'report.html'}")


def _show(trained: list[dict[str, Any]], members: int) -> None:
    *team, whole = trained
    typer.echo(f"\n{'model':12} {'parameters':>12} {'tokens seen':>12}")
    for row in trained:
        typer.echo(f"{row['name']:12} {row['parameters']:>12,} {row['tokens']:>12,}")
    parameters = sum(row["parameters"] for row in team)
    typer.echo(f"the team: {members} members of {len(team)} models, {parameters:,} parameters, {sum(row['tokens'] for row in team):,} tokens; "
               f"the monolith: {whole['parameters'] / parameters:.3f} and {whole['tokens'] / sum(row['tokens'] for row in team):.3f} times as many\n")
