"""`aiflow plan`: how best to answer with a family on a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aiflow_agents.cli.options import Display
from aiflow_agents.cli.output import print_json, print_table
from aiflow_agents.errors import UserError

if TYPE_CHECKING:
    from aiflow_agents.evals.plan import Forecast, Questions


def plan(
    family: Annotated[str, typer.Argument(help="A family by name or path.")],
    network: Annotated[str, typer.Option(help="A network by name or path.")] = "home-wifi",
    floor: Annotated[float, typer.Option(min=0, max=1, help="The accuracy that must be reached, such as 0.85.")] = 0.0,
    minimise: Annotated[Literal["latency", "bytes", "energy", "cloud-flops"], typer.Option(help="What shall be small.")] = "latency",
    suite: Annotated[str | None, typer.Option(help="Whose dev questions are asked. Default: the family's own skills.", show_default=False)] = None,
    skill: Annotated[list[str] | None, typer.Option(help="A skill to ask for, instead of all of the family's; repeatable.", show_default=False)] = None,
    costs_as: Annotated[
        str | None,
        typer.Option(
            metavar="TIER=SHAPE,...",
            help="Times as of other sizes: device=qwen3-1.7b,edge=qwen3-8b,cloud=llama-3-70b prices the first exit, those between, and the last.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Dev questions that say how right an exit is.")] = 420,
    sample: Annotated[int, typer.Option(min=1, help="Of these, the first so many that say what each plan costs.")] = 28,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of one answer. Default: as the suite says, or 32; 64 where work is shown.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Draws the questions, and the network's luck.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the winner's team file, for run, eval and serve.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--plans", help="Show all plans, and not the frontier alone.")] = False,
    display: Display = "rich",
    json: Annotated[bool, typer.Option("--json", help="Print all plans as JSON, and nothing else on stdout.")] = False,
) -> int:
    """Choose exit, rank, node, split, codec and draft length: every plan is run in virtual time on a few questions, and the best one says why.

    Exit code 1 where no plan reaches the floor.
    """
    from aiflow_agents import catalog
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.plan import find_plan
    from aiflow_agents.evals.plan_words import HEAD, as_json, row, why, write
    from aiflow_agents.evals.plans import Ground
    from aiflow_agents.net.network import Network

    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    folder, at = catalog.find("model", family).path, catalog.find("network", network)
    ground = Ground.of(folder, Network.load(at.path), _shapes(costs_as), model="" if Path(family).exists() else family)
    asked = _questions(folder, suite, skill, questions, sample, max_tokens, seed)
    with watcher(display) as watch:
        found = find_plan(ground, asked, quantity=minimise, floor=floor, seed=seed, watch=watch)
    where = str(at.path.absolute()) if Path(network).exists() else network
    given = write(found, where, out, asked.max_tokens, suite or "SUITE") if out and found.winner else []
    if json:
        print_json(as_json(found) | {"commands": given})
        return 0 if found.winner else 1
    sizes = "" if costs_as is None else f"; times are those of {costs_as}"
    typer.echo(f"{folder.name} on {found.network}: {len(found.forecasts)} plans, {len(asked.sample)} questions each{sizes}\n")
    print_table([list(HEAD), *(row(one) for one in (found.forecasts if every else found.frontier))], left=2)
    _strangers(found.forecasts)
    typer.echo("\n" + " ".join(why(found)))
    for command in given:
        typer.echo(command)
    return 0 if found.winner else 1


def _shapes(given: str | None) -> dict[str, str]:
    """What --costs-as says. Raises UserError."""
    from aiflow_agents.net.cost import named_shape

    found = {}
    for part in given.split(",") if given else ():
        tier, equals, shape = part.strip().partition("=")
        if not equals:
            raise UserError(f"--costs-as: '{part}' is no TIER=SHAPE, such as cloud=llama-3-70b")
        named_shape(shape)
        found[tier] = shape
    return found


def _questions(folder: Path, suite: str | None, skills: list[str] | None, count: int, sample: int, max_tokens: int | None, seed: int) -> Questions:
    """Dev questions of the suite, of these skills, or of all that the family was taught. Raises UserError where nobody knows any."""
    from aiflow_agents.evals.plan import Questions
    from aiflow_agents.evals.suite import load_suite
    from aiflow_agents.runtime.extraction import extraction
    from aiflow_agents.runtime.task import Task
    from aiflow_agents.skills.splits import balanced
    from aiflow_agents.skills.worked import WORKED
    from aiflow_agents.training.sources import skills_of

    if suite is not None:
        if skills:
            raise UserError("--suite and --skill both say what is asked: give one of them")
        one = load_suite(suite)
        tasks = one.tasks("dev", seed, max(count, sample))
        return Questions(tasks[:sample], tasks[:count], one.scorer, extraction(one.file.extract), max_tokens or one.file.max_tokens)
    from aiflow_agents.evals.scorer import exact

    names = skills or [name for name, share in skills_of(folder).items() if share]
    if not names:
        raise UserError(f"model folder {folder} has no recipe.yaml that names skills of ours: say with --suite or --skill what to ask")
    drawn = balanced(names, "dev", max(count, sample), seed)
    tasks = [Task(f"dev-{seed}-{i:05}", q.text, q.answer, (q.skill,)) for i, q in enumerate(drawn)]
    return Questions(tasks[:sample], tasks[:count], exact, max_tokens=max_tokens or (64 if set(names) & set(WORKED) else 32))


def _strangers(found: tuple[Forecast, ...]) -> None:
    """Plans that are exact say what their last exit says; where one does not, at a tie of two tokens, it is told."""
    for one in found:
        if one.plan.mark == "exact" and one.others:
            typer.echo(f"aiflow: {one.plan.name}: {one.others} answers of the sample are not those of its last exit alone", err=True)
