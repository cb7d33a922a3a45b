"""`aiflow view`: the report of a run, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aiflow_agents.errors import UserError


def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `aiflow eval` leaves it.", show_default=False)],
    remake: Annotated[bool, typer.Option("--remake", help="Draw the report anew, also where it is up to date.")] = False,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser, or only print its path.")] = True,
) -> int:
    """Open the report of a run. It is drawn anew from the run's folder where it is missing, or older than what it is drawn from."""
    from aiflow_agents.evals.report import is_current, write_report

    _check(run)
    page = run / "report.html" if not remake and is_current(run) else write_report(run)
    if open_:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            typer.echo("aiflow: there is no browser to open it in", err=True)
    typer.echo(str(page))
    return 0


def _check(run: Path) -> None:
    """Raise UserError, with what to do, for anything but a finished run."""
    import json
    import shlex

    if not run.is_dir():
        raise UserError(f"{run} is no folder: give the folder of a run, such as logs/specialists-20260102-030405")
    if not (run / "config.json").is_file() and not (run / "summary.json").is_file():
        raise UserError(f"{run} is no run: it has neither config.json nor summary.json")
    if not (run / "summary.json").is_file():
        raise UserError(f"{run} is not finished, so it has no summary.json: go on with `aiflow eval --resume {shlex.quote(str(run))}`")
    for name in ("summary.json", "config.json"):
        try:
            held = json.loads((run / name).read_bytes()) if (run / name).is_file() else {}
        except ValueError:
            held = None
        if not isinstance(held, dict):
            raise UserError(f"{run / name} is damaged: it is no JSON object")
        if name == "summary.json" and (lacking := [key for key in ("suite", "n_tasks", "arms", "verdicts") if key not in held]):
            raise UserError(f"{run / name} is damaged: it has no {lacking[0]}")
