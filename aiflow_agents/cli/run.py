"""`aiflow run`: one question to a team, and the conversation as it happens."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiflow_agents.errors import UserError

if TYPE_CHECKING:
    from aiflow_agents.runtime.trace import Span


def run(
    question: Annotated[str, typer.Argument(help='The question, such as "37*8=". A single dash reads it from standard input.')],
    team: Annotated[str, typer.Option(help="A team by name or path.")] = "specialists",
    topology: Annotated[str, typer.Option(help="How they talk; `aiflow list topology` shows what there is.")] = "debate",
    parameter: Annotated[list[str] | None, typer.Option("-T", help="name=value, a parameter of the topology.")] = None,
    network: Annotated[str | None, typer.Option(help="Another network than the team's own.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the answer, its cost and every span as JSON.")] = False,
) -> int:
    """Ask a team one question: who said what, where, when, and what moved."""
    from aiflow_agents.cli.evaluate import parameters
    from aiflow_agents.runtime.run import ask
    from aiflow_agents.runtime.team import Team
    from aiflow_agents.topology.load import load_topology

    people = Team.load(team, network=network)
    pattern = load_topology(topology, parameters(parameter))
    text = sys.stdin.read().strip() if question == "-" else question
    if not text.strip():
        raise UserError("the question is empty")
    listener = None if json else _teller()
    result = ask(people, pattern, text, seed=seed, listener=listener)
    if json:
        typer.echo(json_module.dumps(_as_json(result), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        Console().print(f"\n{result}", style="bold", highlight=False, markup=False, soft_wrap=True)
    return 0 if result.error is None else 1


def _teller() -> Any:
    """Prints each span as it ends: time, who, where, what."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    console.print(f"{'time':>10}  {'who':10} {'where':22} what", style="dim")

    def tell(span: Span) -> None:
        time = f"{span.end_s * 1000:8.2f}ms"
        if span.kind == "move":
            line = f"{time}  {span.who:10} {span.node + ' -> ' + span.to:22} {span.message}, {span.nbytes} bytes"
            console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
        else:
            sure = "" if span.confidence is None else f"  ({span.confidence:.0%} sure)"
            heard = f"  [dim]having heard {', '.join(span.heard)}[/dim]" if span.heard else ""
            console.print(f"{time}  {span.who:10} {span.node:22} [bold]{escape(span.text)}[/bold]{sure}{heard}", highlight=False, soft_wrap=True)

    return tell


def _as_json(result: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "answer": result.answer,
        "confidence": result.confidence,
        "error": result.error,
        "usage": asdict(result.usage),
        "spans": [span._asdict() for span in result.spans],
    }
