"""`aiflow export`: a run as a table, or as logs of inspect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from aiflow_agents.cli.options import RunFolder
from aiflow_agents.errors import UserError


def export(
    run: RunFolder,
    to: Annotated[Literal["csv", "inspect"], typer.Option(help="csv: a line for each arm, task and repeat; inspect: a log of inspect_ai for each arm.")],
    out: Annotated[
        Path | None,
        typer.Option(help="csv: a file, or - for stdout; default RUN/samples.csv. inspect: a folder, or with one arm a .json file; default RUN/inspect.",
                     show_default=False),
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; may be given several times.", show_default=False)] = None,
) -> int:
    """Write a run for other tools. `inspect view --log-dir RUN/inspect` shows what is written there; pandas and spreadsheets read the table."""
    from aiflow_agents.evals.export import as_json, log_name, to_csv, to_inspect
    from aiflow_agents.evals.run_folder import write_whole

    run = run.parent if run.name == "summary.json" else run
    arms = list(dict.fromkeys(arm or []))
    if to == "csv":
        table = to_csv(run, arms)
        if out == Path("-"):
            sys.stdout.write(table)
            return 0
        files = {out / "samples.csv" if out and out.is_dir() else out or run / "samples.csv": table}
    else:
        logs = to_inspect(run, arms)
        single = out is not None and out.suffix == ".json" and not out.is_dir()
        if single and len(logs) > 1:
            raise UserError(f"{out} is one file and this run has {len(logs)} arms; name one with --arm, or a folder with --out")
        folder = out or run / "inspect"
        names = [folder if single else folder / log_name(log, name) for name, log in logs.items()]
        if len(set(names)) < len(names):
            raise UserError("two arms would have one file; export them one by one with --arm and --out FILE.json")
        files = {name: "".join(as_json(log)) for name, log in zip(names, logs.values(), strict=True)}
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
        typer.echo(str(file))
    return 0
