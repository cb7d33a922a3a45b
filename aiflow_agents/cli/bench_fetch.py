"""`aiflow bench fetch`: what a payload costs from host to host under Ray."""

from __future__ import annotations

from typing import Annotated

import typer

from aiflow_agents.cli.options import Display, Json
from aiflow_agents.cli.output import print_json, print_machine, print_table


def fetch(
    size: Annotated[list[int] | None, typer.Option(min=1, help="Bytes; repeatable. Default: 1 kB, 0.1, 1 and 10 MB.", show_default=False)] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fetches of each size, of which the median counts.")] = 20,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """A payload that lies with another host, fetched over Ray: milliseconds beside a bare copy of as many bytes. It never comes to the driver.

    Three raylets on this machine stand for three machines.
    """
    from aiflow_agents.bench.fetch import SIZES, bench_fetch
    from aiflow_agents.bench.machine import machine
    from aiflow_agents.cli.display import watcher

    about = machine()
    with watcher(display) as watch:
        watch.stage("host to host", 0)
        found = bench_fetch(size or SIZES, repeats=repeats)
    if json:
        print_json({"machine": about, **found})
        return 0
    keys = "call_ms", "local_ms", "fetch_ms", "copy_ms", "overhead_ms"
    rows = [[f"{row['nbytes']:,}", *(f"{row[key]:.2f}" for key in keys), "{:.2f} to {:.2f}".format(*row["spread_ms"])] for row in found["sizes"]]
    print_table([["bytes", "empty call ms", "+ own store ms", "+ other host ms", "copy ms", "overhead ms", "half of them"], *rows])
    print_machine(about)
    return 0
