"""`aiflow bench report`: does the page of a large run open at once?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from aiflow_agents.cli.options import Display, Json
from aiflow_agents.cli.output import print_json


def report(
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of the made-up run.")] = 10_000,
    arms: Annotated[int, typer.Option(min=8, help="Its arms.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="How often the page is opened, each time in a new browser; the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws the answers.")] = 0,
    keep: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Make the run here, and keep it.", show_default=False)] = None,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """A made-up run of many tasks, its report drawn and opened in a real Chromium: seconds until it can be read, and the size of the file."""
    from aiflow_agents.bench.machine import machine
    from aiflow_agents.bench.report import bench_report
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.errors import UserError

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UserError(f"{keep} is not empty: name a new folder")
    about = machine()
    with watcher(display) as watch, tempfile.TemporaryDirectory(prefix="aiflow-report-") as scratch:
        found = bench_report(
            keep or Path(scratch) / "run", n_tasks=tasks, n_arms=arms, repeats=repeats, seed=seed, note=lambda line: watch.stage(line, 0)
        )
    if json:
        print_json({"machine": about, **found})
        return 0
    typer.echo(f"{tasks:,} tasks and {arms} arms: {found['bytes'] / 1e6:.1f} MB, drawn from the run's folder in {found['write_s']:.1f} s")
    typer.echo(f"opens in {found['drawn_s']:.2f} s, of which it computes {found['cpu_s']:.2f} s (an empty page: {found['blank_s']:.2f} s); a search takes "
               f"{found['search_s'] * 1000:.0f} ms")
    typer.echo(f"median of {repeats} visits, {found['browser']}")
    return 0
