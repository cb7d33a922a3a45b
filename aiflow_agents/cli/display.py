"""How a long run shows that it is alive: a bar where there is a terminal, lines where there is none, or nothing."""

from __future__ import annotations

import sys
import time
from typing import Any

import typer

from aiflow_agents.errors import UnknownName

EVERY_S = 10.0  # between two plain lines


class Quiet:
    """Shows nothing. A stage of 0 is one that cannot be counted."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def note(self, line: str) -> None: ...

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None: ...


class Plain(Quiet):
    """Lines on standard error, for logs and pipes."""

    def __init__(self) -> None:
        self._name, self._total, self._done, self._said = "", 0, 0, time.monotonic()

    def stage(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        if not total:
            self.note(name)

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said > EVERY_S:
            self._said = time.monotonic()
            self.note(f"{self._name}: {self._done:,} of {self._total:,}")

    def note(self, line: str) -> None:
        typer.echo(line, err=True)


class Bar(Quiet):
    """A progress bar with the time that is left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task: Any = None

    def stage(self, name: str, total: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total or None)  # a bar that only moves, where nobody knows how long it takes

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, count)

    def note(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def watcher(display: str) -> Quiet:
    """`rich`, `plain` or `none`. Without a terminal rich becomes plain."""
    if display not in ("rich", "plain", "none"):
        raise UnknownName("display", display, ("rich", "plain", "none"))
    if display == "none":
        return Quiet()
    return Bar() if display == "rich" and sys.stderr.isatty() else Plain()
