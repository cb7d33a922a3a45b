"""`aiflow bench decoding`: is what several tiers decode together exactly what the last one says alone?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aiflow_agents.cli.options import Display, Json
from aiflow_agents.cli.output import print_json


def decoding(
    model: Annotated[str, typer.Argument(help="A family of three exits or more, by name or path.")] = "cedar",
    prompts: Annotated[int, typer.Option(min=1, help="Test questions of all skills, greedily.")] = 200,
    network: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: every shipped one.", show_default=False)] = None,
    fault: Annotated[list[str] | None, typer.Option(help="A plan of faults, its texts parted by commas; repeatable.", show_default=False)] = None,
    tokens: Annotated[int, typer.Option(min=0, help="Sampled tokens to test; 0: none.")] = 100_000,
    temperature: Annotated[float, typer.Option(min=0.1, help="Of the sampled tokens.")] = 2.0,
    runs: Annotated[int, typer.Option(min=1, help="Whole sampled runs of each of eight questions, with two tiers and with three.")] = 400,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one greedy answer.")] = 64,
    seed: Annotated[int, typer.Option(help="Draws the questions, and the luck.")] = 0,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """Test questions through draft-verify (three tiers and two) and split: is the text that of the last tier alone? Then what is drawn at a
    temperature: chi-square against the last tier's exact distribution, and against what wrong rules of acceptance say.

    Exit code 1 where a text differs otherwise than between two logits within 1e-4, where the chi-square test rejects at 0.01, or where it does not
    reject a wrong rule.
    """
    from aiflow_agents import catalog
    from aiflow_agents.bench.decoding import bench_greedy, bench_sampled
    from aiflow_agents.cli.display import watcher

    path = catalog.find("model", model).path
    networks = network or [entry.name for entry in catalog.entries("network")]
    plans = [[text.strip() for text in plan.split(",")] for plan in fault or []]
    with watcher(display) as watch:
        sampled = bench_sampled(path, networks[0], tokens=tokens, runs=runs, temperature=temperature, seed=seed, watch=watch) if tokens else None
        greedy = bench_greedy(path, networks, prompts=prompts, faults=plans, max_tokens=max_tokens, seed=seed, watch=watch)
    if json:
        print_json({"model": path.name, "seed": seed, "greedy": greedy, "sampled": sampled})
    else:
        _print(path.name, greedy, sampled)
    return 1 if any(row["different"] for row in greedy) or (sampled is not None and _wrong(sampled)) else 0


def _wrong(sampled: dict[str, Any]) -> bool:
    right = [sampled["calls"], *sampled["runs"].values()]
    return any(row["p"] <= 0.01 for row in right) or any(row["p"] > 0.01 for row in sampled["wrong"].values())


def _print(model: str, greedy: list[dict[str, Any]], sampled: dict[str, Any] | None) -> None:
    for row in greedy:
        faults = ", ".join(row["faults"]) or "no faults"
        counts = f"{row['identical']:6} of {row['prompts']} identical, {row['ties']} part at a tie, {len(row['different'])} otherwise"
        typer.echo(f"{row['network']:10} {row['arm']:26} {counts}{_failed(row)}   {faults}")
        for question in row["different"]:
            typer.echo(f"    another text: {question!r}")
    if sampled is None:
        return
    typer.echo(f"{model} at temperature {sampled['temperature']:g}, {sampled['acceptance_rate']:.1%} of the drafted tokens accepted")
    typer.echo(f"{'draft and check':38} {_tested(sampled['calls'])}")
    for tiers, row in sampled["runs"].items():
        typer.echo(f"{f'draft-verify, {tiers} tiers':38} {_tested(row)}")
    for rule, row in sampled["wrong"].items():
        typer.echo(f"{f'wrong: {rule}':38} {_tested(row)}")


def _failed(row: dict[str, Any]) -> str:
    return "".join(f", {count} failed ({why})" for why, count in row["failed"].items())


def _tested(row: dict[str, Any]) -> str:
    return f"{row['tokens']:7,} tokens in {row['contexts']} contexts: chi-square {row['chi2']:.0f} with {row['df']} degrees of freedom, p = {row['p']:.3g}"
