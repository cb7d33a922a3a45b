"""How a long run shows that it is alive: a bar where there is a terminal, lines where there is none, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from aiflow_agents.errors import UnknownName

if TYPE_CHECKING:
    from aiflow_agents.training.loop import Progress as Trained
    from aiflow_agents.training.nested import Progress as Tuned

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


@contextmanager
def watcher(display: str) -> Iterator[Quiet]:
    """`rich`, `plain` or `none`. Without a terminal rich becomes plain.

    What anybody else prints meanwhile, as Ray does when a host dies, goes to stderr too: stdout is the result alone.
    """
    if display not in ("rich", "plain", "none"):
        raise UnknownName("display", display, ("rich", "plain", "none"))
    shown = Quiet() if display == "none" else Bar() if display == "rich" and sys.stderr.isatty() else Plain()
    with shown as watch, redirect_stdout(sys.stderr):
        yield watch


# --- training ---


@contextmanager
def training(phases: Mapping[str, Sequence[str]]) -> Iterator[tuple[Callable[[str], None], Callable[[str, Trained], None]]]:
    """Two functions, for a line of text and for the state of a training by its name; `phases` names those of each training.

    They write to stderr, so that stdout is the result alone.
    """
    if not sys.stderr.isatty():
        yield _line, _lines(phases)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TextColumn("loss {task.fields[loss]:.3f}"), TextColumn("{task.fields[rate]:,.0f} tok/s"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        tasks: dict[tuple[str, int], Any] = {}

        def show(name: str, at: Trained) -> None:
            key = (name, at.phase)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{name} {phases[name][at.phase]}", total=at.goal, loss=at.loss, rate=at.rate)
            bars.update(tasks[key], completed=min(at.tokens, at.goal), loss=at.loss, rate=at.rate)

        yield lambda text: bars.console.print(text, highlight=False, markup=False, soft_wrap=True), show


def _line(text: str) -> None:
    typer.echo(text, err=True)


def _lines(phases: Mapping[str, Sequence[str]]) -> Callable[[str, Trained], None]:
    due = _every()

    def show(name: str, at: Trained) -> None:
        if due(at.tokens >= at.goal):
            left = max(at.goal - at.tokens, 0) / max(at.rate, 1e-9)
            tokens = f"{at.tokens:,}/{at.goal:,} tokens"
            _line(f"{name} {phases[name][at.phase]}: {tokens}, loss {at.loss:.3f}, {at.rate:,.0f} tok/s, {int(left // 60)}:{int(left % 60):02} left")

    return show


def _every() -> Callable[[bool], bool]:
    """Whether it is time for another line: at the end, and EVERY_S after the last one."""
    last = float("-inf")

    def due(over: bool) -> bool:
        nonlocal last
        if not over and time.monotonic() - last < EVERY_S:
            return False
        last = time.monotonic()
        return True

    return due


# --- tuning ---


@contextmanager
def tuning() -> Iterator[tuple[Callable[[str], None], Callable[[str, Tuned], None]]]:
    """The same for a tuning of all sizes of a model, by name."""
    if not sys.stderr.isatty():
        yield _line, _tuning_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("tuning {task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TextColumn("{task.fields[rate]:,.0f} tok/s"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, at: Tuned) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=at.goal, rate=at.rate)
            bars.update(tasks[name], completed=min(at.tokens, at.goal), rate=at.rate)

        yield lambda text: bars.console.print(text, highlight=False, markup=False, soft_wrap=True), show


def _tuning_lines() -> Callable[[str, Tuned], None]:
    due = _every()

    def show(name: str, at: Tuned) -> None:
        if due(at.tokens >= at.goal):
            away = ", ".join(f"{keep:g} {kl:.3f}" for keep, kl in sorted(at.kl.items(), reverse=True))
            _line(f"tuning {name}: {at.tokens:,}/{at.goal:,} tokens, {at.rate:,.0f} tok/s; KL to the original by size: {away}")

    return show
