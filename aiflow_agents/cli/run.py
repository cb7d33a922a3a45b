"""`aiflow run`: one question to a team, and the conversation as it happens."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aiflow_agents.cli.options import Fault, Fitted, limits, parameters
from aiflow_agents.cli.output import print_json
from aiflow_agents.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from aiflow_agents.runtime.reading import Reading
    from aiflow_agents.runtime.run import Result
    from aiflow_agents.runtime.team import Team
    from aiflow_agents.runtime.trace import Listener, Span
    from aiflow_agents.topology.base import Topology


def run(
    question: Annotated[str, typer.Argument(help='The question, such as "37*8=". A single dash reads it from standard input.')],
    team: Annotated[str | None, typer.Option(help="A team by name or path.", show_default="specialists, or the run's")] = None,
    topology: Annotated[
        str | None, typer.Option(help="How they talk; `aiflow list topology` shows what there is.", show_default="debate, or the run's best")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-T", metavar="NAME=VALUE", help="A parameter of the topology; repeatable.", show_default=False)
    ] = None,
    fitted: Fitted = None,
    network: Annotated[str | None, typer.Option(help="Another network than the team's own.", show_default=False)] = None,
    fault: Fault = None,
    seed: Annotated[int, typer.Option(help="Of sampled answers.")] = 0,
    max_tokens_total: Annotated[int | None, typer.Option(min=0, help="Stop before more tokens are read and made.", show_default=False)] = None,
    max_flops: Annotated[float | None, typer.Option(min=0, help="Stop before more FLOPs are spent.", show_default=False)] = None,
    max_bytes: Annotated[int | None, typer.Option(min=0, help="Stop before more bytes are on links.", show_default=False)] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0, help="Stop after so many seconds of the clock.", show_default=False)] = None,
    clock: Annotated[Literal["virtual", "real"], typer.Option(help="virtual: seconds of the simulated network; real: the wall clock's.")] = "virtual",
    pace: Annotated[bool, typer.Option("--pace", help="Under the real clock, let messages take as long as on the simulated network.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer alone, each token as it reaches home.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the answer, its cost and every span as JSON.")] = False,
) -> int:
    """Ask a team one question: who said what, where, when, and what moved. Times are those of the simulated network, unless the clock is real."""
    from aiflow_agents.evals.rehearsal import rehearse_one
    from aiflow_agents.runtime.live import Live
    from aiflow_agents.runtime.reading import Reading
    from aiflow_agents.runtime.run import ask
    from aiflow_agents.runtime.task import Task

    if pace and clock == "virtual":
        raise UserError("--pace is for --clock real: virtual seconds keep the network's pace without being waited for")
    people, pattern = _cast(team, topology, parameter, fitted, network)
    people = people.with_faults(*fault or ())
    text = sys.stdin.read().strip() if question == "-" else question
    if not text.strip():
        raise UserError("the question is empty")
    pattern.check(people)
    rehearse_one(pattern, people, Task("question", text))
    budget = limits(max_tokens_total, max_flops, max_bytes, max_seconds)
    listener = None if json or stream else _teller(people)
    reading = Reading(people)
    reader = None if json or not stream else lambda portion: typer.secho(reading.add(portion), bold=True, nl=False)

    async def live() -> Result:
        async with Live(people, pace=pace, seed=seed, budget=budget) as now:
            await now.warm()
            return await now.ask(pattern, text, listener=listener, reader=reader)

    simulated = clock == "virtual"
    result = ask(people, pattern, text, seed=seed, listener=listener, budget=budget, reader=reader) if simulated else asyncio.run(live())
    if json:
        print_json(_asked(text, people, pattern, seed, clock) | _as_json(result), ascii=False)
    elif result.error is None:
        typer.secho(_last(result, reading) if stream else f"\n{result.answer or 'no answer'}", bold=True, nl=False)
        typer.echo(f"   {_cost(result)}" + (f"; over budget: {result.over}" if result.over else ""))
    elif reading.read:
        typer.echo()
    if result.error is not None:
        typer.echo(f"aiflow: {result.error}", err=True)
    return 0 if result.error is None else 1


def _cast(team: str | None, topology: str | None, given: list[str] | None, fitted: Path | None, network: str | None) -> tuple[Team, Topology]:
    """Who answers, and how they talk: as named, or as an evaluation has left them."""
    from aiflow_agents.evals.fitted import Fitted
    from aiflow_agents.runtime.team import Team
    from aiflow_agents.topology.load import load_topology

    if fitted is None:
        return Team.load(team or "specialists", network=network), load_topology(topology or "debate", parameters(given))
    run = Fitted.read(fitted)
    people = run.team(Team.load(team, network=network)) if team else run.load_team(network)
    return people, run.topology(topology, parameters(given))


def _teller(team: Team) -> Listener:
    """Prints each span as it ends: time, who, where, what."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    nodes = {team.home, *(agent.node for agent in team)}
    who, where = max(map(len, ("user", *team.agents))), 2 * max(map(len, nodes)) + 4
    said: dict[str, str] = {}  # message -> whose it is, and what it says
    console.print(f"{'time':>10}  {'who':{who}}  {'where':{where}}  what", style="dim")

    def tell(span: Span) -> None:
        moved = span.kind == "move"
        place = f"{span.node} -> {span.to}" if moved else span.node
        line = Text(f"{span.end_s * 1000:7.1f} ms  {span.who:{who}}  {place:{where}}  ")
        if moved:
            line.append(f"{_brief(span.text)}, {span.nbytes:,} bytes")
            line.stylize("dim")
        else:
            said[span.message] = f"{span.who} {_brief(span.text)}"
            line.append(span.text.replace("\n", "\n" + " " * len(line.plain)) or '""', style="bold")
            if span.confidence is not None:
                line.append(f"  {span.confidence:.0%} sure")
            if span.heard:
                line.append(f"  heard {', '.join(said.get(id, id) for id in span.heard)}", style="dim")
        console.print(line)

    return tell


def _brief(text: str) -> str:
    """In one short line."""
    line = " ".join(text.split()) or '""'
    return line if len(line) <= 40 else f"{line[:37]}..."


def _cost(result: Result) -> str:
    from aiflow_agents.evals.verdict import quantity

    used, came = result.usage, ""
    if result.delivery and (each := result.delivery.ms_per_token) is not None:
        came = f"; the first token after {result.delivery.first_token_s * 1000:.1f} ms, then {each:.2f} ms per token"
    came += "; nobody has verified it" if result.mark == "unverified" else ""
    if result.decoding and result.decoding.checked:
        came += f"; {result.decoding.kept} of {result.decoding.checked} drafted tokens kept"
    fidelity = getattr(result.job.topology, "fidelity", None)
    came += f"; text {how}" if fidelity is not None and (how := fidelity(result.job.team)) else ""
    return f"after {used.latency_s * 1000:.1f} ms: {used.calls} calls, {used.wire_bytes:,} bytes on links, {quantity(used.energy_j, 'J')}{came}"


def _last(result: Result, reading: Reading) -> str:
    """What has not been printed yet of a streamed answer; where the answer is only a part of what was said, that too."""
    text = result.text or ""
    part = f"\n{result.answer}" if result.answer and result.answer != text.strip() else ""
    return (reading.rest(text) if text else "no answer") + part


def _asked(text: str, team: Team, topology: Topology, seed: int, clock: str) -> dict[str, Any]:
    how = {"fidelity": topology.fidelity(team)} if topology.fidelity(team) else {}
    faults = {"faults": list(map(str, team.network.faults))} if team.network.faults else {}
    asked = {"question": text, "team": team.name, "network": team.network.name, "topology": topology.name(), "seed": seed, "clock": clock}
    return how | asked | faults


def _as_json(result: Result) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "answer": result.answer,
        "confidence": result.confidence,
        "error": result.error or result.over,
        "status": "failed" if result.error else "over budget" if result.over else "ok",
        "usage": asdict(result.usage),
        "decoding": result.decoding and result.decoding.as_json(),
        "mark": result.mark,
        "delivery": result.delivery and result.delivery.as_json(),
        "spans": [span._asdict() for span in result.spans],
    }
