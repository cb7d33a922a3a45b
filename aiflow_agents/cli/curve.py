"""`aiflow curve`: how good is each arm of a run when a question may cost no more than so much?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aiflow_agents.cli.options import Display, RunFolder, run_folder
from aiflow_agents.cli.output import print_json, print_lines
from aiflow_agents.errors import UserError

if TYPE_CHECKING:
    from aiflow_agents.evals.curve import Curve


def curve(
    run: RunFolder,
    over: Annotated[Literal["tokens", "flops", "bytes", "seconds"], typer.Option(help="What is limited, for each question.")] = "bytes",
    at: Annotated[str | None, typer.Option(metavar="N,N,...", help="The limits; 100,200,400, or 2e7,4e7.", show_default=False)] = None,
    points: Annotated[int, typer.Option(min=1, help="How many limits, where --at names none: evenly by ratio, over what the run's arms spend.")] = 6,
    runtime: Annotated[Literal["ray", "inline"], typer.Option(help="Where the rival's new samples are drawn; all else is remembered.")] = "inline",
    display: Display = "rich",
    json: Annotated[bool, typer.Option("--json", help="Print the curve as JSON, and nothing else on stdout.")] = False,
) -> None:
    """Accuracy against budget, for every member and topology of a run, and for self-consistency of the member that is best under each limit.

    Arms stay as the run has fitted them. What they have said is remembered, so no model is asked again; the rival, chosen on dev at each limit, may
    draw samples that are new. The curve is kept in curves.json in the run's folder and drawn in its report.
    """
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.curve import curve as draw

    folder = run_folder(run)
    with watcher(display) as watch:
        found = draw(folder, over, None if at is None else _limits(at), points=points, runtime=runtime, watch=watch)
    if json:
        print_json(found | {"folder": str(folder)})
    else:
        print_lines(_table(found), folder)


def _limits(given: str) -> list[float]:
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise UserError(f"--at {given}: expected numbers with commas between, such as 100,200,400") from None


def _table(found: Curve) -> list[str]:
    """Percent right, an arm a line and a limit a column; then the best topology against the rival."""
    from aiflow_agents.evals.verdict import p_text, points, quantity

    unit = {"bytes": "B", "seconds": "s"}.get(found["over"], "")
    width = max(map(len, found["arms"]))
    lines = [f"right, % of {found['n_tasks']:,} questions, at most so many {found['over']} each (95 %)"]
    lines.append(f"{'':{width}}" + "".join(f"  {quantity(limit, unit):>16}" for limit in found["limits"]))
    for name, arm in found["arms"].items():
        cells = [f"{100 * p['accuracy']:.1f} ({100 * p['ci95'][0]:.1f}-{100 * p['ci95'][1]:.1f})" for p in arm["points"]]
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>16}" for cell in cells))
    rival = next((name for name, arm in found["arms"].items() if arm["kind"] == "rival"), None)
    if rival:
        lines.append(f"{'  that is':{width}}" + "".join(f"  {'{member} x {samples}'.format(**point):>16}" for point in found["arms"][rival]["points"]))
    if found["gains"]:
        lines.append(f"\n{found['best_topology']} minus {rival}, points (95 %; p after Holm over the limits)")
        for limit, gain in zip(found["limits"], found["gains"], strict=True):
            interval = f"{points(gain['ci95'][0])} to {points(gain['ci95'][1])}"
            lines.append(f"{quantity(limit, unit):>{width}}  {'+' if gain['delta'] > 0 else ''}{points(gain['delta'])} ({interval}; {p_text(gain['p_holm'])})")
    return lines
