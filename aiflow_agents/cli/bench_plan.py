"""`aiflow bench plan`: forecasts of plans beside runs of them under the real clock."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aiflow_agents.cli.options import AnswerTokens, Display, Json
from aiflow_agents.cli.output import print_json


def plan(
    family: Annotated[str, typer.Argument(help="A family by name or path.")] = "willow",
    network: Annotated[
        list[str] | None,
        typer.Option(help="A network by name or path; repeatable. Default: home-wifi, metro-5g, and home-wifi with a cloud far away.", show_default=False),
    ] = None,
    questions: Annotated[int, typer.Option(min=4, help="Dev questions: half of them measure the machine, half are asked.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is asked, and means count.")] = 3,
    max_tokens: AnswerTokens = 64,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Let the engine keep keys and values from one call of an answer to the next.")] = True,
    seed: Annotated[int, typer.Option(help="Draws the questions, and the network's luck.")] = 0,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """Do forecasts of `aiflow plan` come true? Messages cross throttled sockets, models answer, and the wall clock says how long that took.

    How fast this machine computes and passes messages on is measured meanwhile, on other questions, and stands for all nodes and links. Wants a quiet
    machine.
    """
    from aiflow_agents import catalog
    from aiflow_agents.bench.machine import machine
    from aiflow_agents.bench.plan import WITHIN, bench_plan, far
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.errors import UserError
    from aiflow_agents.evals.plans import Ground
    from aiflow_agents.net.network import Network
    from aiflow_agents.runtime.hosts import InlineHosts, load_model
    from aiflow_agents.skills.splits import balanced
    from aiflow_agents.training.sources import skills_of

    folder = catalog.find("model", family).path
    skills = [name for name, share in skills_of(folder).items() if share]
    if not skills:
        raise UserError(f"model folder {folder} has no recipe.yaml that names skills of ours, so it is not known what to ask it")
    nets = [Network.load(catalog.find("network", name).path) for name in network or ("home-wifi", "metro-5g")]
    nets += [] if network else [far(nets[0])]
    asked = [question.text for question in balanced(skills, "dev", questions, seed)]
    load = _caching if cache else load_model
    about = machine()
    with watcher(display) as watch:
        grounds = [Ground.of(folder, one) for one in nets]
        found = bench_plan(grounds, asked, lambda: InlineHosts(load), rounds=rounds, max_tokens=max_tokens, seed=seed, watch=watch)
    if json:
        print_json({"family": folder.name, "seed": seed, "cache": cache, "machine": about, **found})
        return 0
    for one in found["networks"]:
        _show(one, WITHIN)
    typer.echo(f"{about['cpu']}, {about['cores']} cores (load {about['load']})")
    return 0


def _caching(key: str) -> Any:
    from aiflow_agents.models.family.recent import Recent
    from aiflow_agents.runtime.hosts import load_model

    return Recent.of(load_model(key))


def _show(one: dict[str, Any], within: float) -> None:
    width = max(len(row["plan"]) for row in one["plans"])
    typer.echo(f"{one['network']}\n{'plan':{width}}  forecast       real  off by")
    for row in sorted(one["plans"], key=lambda row: row["real_s"]):
        typer.echo(f"{row['plan']:{width}}  {1000 * row['forecast_s']:5.1f} ms  {1000 * row['real_s']:6.1f} ms  {row['error']:+6.1%}")
    typer.echo(
        f"order: Spearman {one['spearman']:.3f}, Kendall {one['kendall']:.3f}, the same first: {'yes' if one['first_agrees'] else 'no'}; "
        f"off by {one['error']:.1%} on average, {one['worst']:.1%} at most, {one['within']} of {len(one['plans'])} within {within:.0%}"
    )
    for how in one["speed"]:
        typer.echo(
            f"{how['topology']}, exit {how['exit']}: {1000 * how['call_s']:.2f} ms a call, {1000 * how['overhead_s']:.2f} ms a pass, and "
            f"{how['bandwidth_Bps']:.3g} bytes of weights or {how['flops_rate']:.3g} FLOPs a second"
        )
    late = f"messages came {1000 * one['hop_late_s']:.2f} ms a hop later than the network file says"
    typer.echo(f"{late}; without that, forecasts would be off by {one['error_filed']:.1%} on average\n")
