"""`aiflow sweep`: where drafting beats streaming, over round trips, rates and how often drafts are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from aiflow_agents.cli.options import Display, run_folder
from aiflow_agents.cli.output import print_json, print_lines
from aiflow_agents.errors import UserError


def sweep(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run with arms that draft and stream.", show_default=False)],
    arm: Annotated[str | None, typer.Option(help="The arm that drafts. Default: the quickest.", show_default=False)] = None,
    against: Annotated[str, typer.Option(help="The arm that streams.")] = "stream",
    rtt: Annotated[str, typer.Option(metavar="MS,MS,...", help="Milliseconds to the cloud and back.")] = "2,10,30,60,120,250",
    mbps: Annotated[str, typer.Option(metavar="N,N,...", help="Mbit/s of the last link to the cloud, both ways.")] = "0.05,20",
    heat: Annotated[str, typer.Option(metavar="T,T,...", help="Temperatures at which drafts are drawn: the higher, the fewer are kept.")] = "0,1.5,2.5,3.5,5",
    questions: Annotated[int, typer.Option(min=1, help="So many of the run's test questions.")] = 45,
    runtime: Annotated[Literal["ray", "inline"], typer.Option(help="Where drafts that are new are made; all else is remembered.")] = "inline",
    display: Display = "rich",
    json: Annotated[bool, typer.Option("--json", help="Print the cells as JSON, and nothing else on stdout.")] = False,
) -> None:
    """Time per token of an arm that drafts and of one that streams, over round trips, rates and acceptance; a map in the run's report.

    The network is the run's own but for its last link to the cloud. Kept in sweep.json in the run's folder.
    """
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.sweep import sweep as measure

    folder = run_folder(run)
    axes = {"rtt_ms": _numbers("rtt", rtt), "mbps": _numbers("mbps", mbps, least=1e-6), "heats": _numbers("heat", heat)}
    with watcher(display) as watch:
        found = measure(folder, arm=arm, against=against, questions=questions, runtime=runtime, watch=watch, **axes)  # type: ignore[arg-type]
    if json:
        print_json(found | {"folder": str(folder)})
    else:
        print_lines(_table(found), folder)


def _numbers(option: str, given: str, least: float = 0.0) -> list[float]:
    try:
        found = [float(part) for part in given.split(",")]
    except ValueError:
        found = []
    if not found or any(not least <= one < float("inf") for one in found):
        raise UserError(f"--{option} {given}: expected numbers from 0 up with commas between, such as 1,20")
    return sorted(set(found))


def _table(found: dict[str, Any]) -> list[str]:
    """How many times as quick as streaming: for each rate, acceptance a line and round trip a column."""
    cells = found["cells"]
    rtts, lines = sorted({cell["rtt_ms"] for cell in cells}), []
    lines.append(f"{found['arm']} against {found['against']}, {found['team']} on {found['network']}, {found['n_questions']} questions: times as quick")
    for rate in sorted({cell["mbps"] for cell in cells}):
        lines.append(f"\n{rate:g} Mbit/s" + " " * max(14 - len(f"{rate:g} Mbit/s"), 0) + "".join(f"{rtt:>9g} ms" for rtt in rtts))
        for heat in sorted({cell["heat"] for cell in cells}):
            row = [next(c for c in cells if (c["rtt_ms"], c["mbps"], c["heat"]) == (rtt, rate, heat)) for rtt in rtts]
            kept = [cell["acceptance_rate"] for cell in row if cell["acceptance_rate"] is not None]
            lines.append(f"{100 * sum(kept) / max(len(kept), 1):5.1f} % kept  " + "".join(f"{cell['speedup']:>11.2f}x" for cell in row))
    busy = [cell["busy_ratio"] for cell in cells if cell["busy_ratio"] is not None]
    lines.append(f"\ncloud busy per token: {min(busy):.2f} to {max(busy):.2f} of streaming's; other answers: {sum(cell['different'] for cell in cells)}")
    return lines
