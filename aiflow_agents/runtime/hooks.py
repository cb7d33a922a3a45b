"""Hooks: who wants to know what happens in a run. They watch, and cannot change it.

Each hook is told in a thread of its own, in the order of events. So whatever it does, raises or waits for, the run goes on as without it: its first
error is told once, by name; one that does not keep up misses events, which is told too.

    evaluate(..., hooks=[Mine()])    team.run(..., hooks=[Mine()])    an entry point `aiflow_agents.hooks` of an installed package: all runs
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.runtime.trace import Span

if TYPE_CHECKING:
    from aiflow_agents.models.protocol import CallError, Reply, Request
    from aiflow_agents.runtime.agent import Agent
    from aiflow_agents.runtime.run import Job, Result
    from aiflow_agents.runtime.team import Team
    from aiflow_agents.wire.message import Usage

GROUP = "aiflow_agents.hooks"  # entry points: a hook, or what makes one
PATIENCE_S = 5.0  # how long the end of a run waits for hooks that are behind
MOST = 100_000  # events that may wait for one hook


@dataclass(frozen=True, eq=False)
class Run:
    """A run that is watched: a whole evaluation, or one question (`name` is then empty, and there is no folder)."""

    team: Team
    name: str = ""
    seed: int = 0
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Asked:
    """One task that is answered one way: `job` has arm, topology, task, team and repeat. It is the same object in all that is told of it.

    `stage`: "dev" or "test" of an evaluation, or "question". `began_ns`: the real time, since 1970; simulated times count from 0 at this moment.
    """

    run: Run
    job: Job
    stage: str
    began_ns: int


@dataclass(frozen=True, eq=False)
class Called:
    """One call of one member: what it was asked and what it answered, in simulated seconds. `usage` is None where it could not answer."""

    agent: Agent
    request: Request
    reply: Reply | CallError
    usage: Usage | None
    start_s: float
    end_s: float


class Hook:
    """Base of hooks, which may have any of these methods. Arms are run side by side: which one a task belongs to, `task.job.arm` says.

    A hook is told of what really runs: arms that do the same are run once, and what a resumed run has already is not run again.
    """

    def on_run_start(self, run: Run) -> None: ...

    def on_run_end(self, run: Run, outcome: Any) -> None:
        """`outcome`: the Report of an evaluation, the Result of a question, or None where it was stopped."""

    def on_task_start(self, task: Asked) -> None: ...

    def on_task_end(self, task: Asked, result: Result) -> None: ...

    def on_call(self, task: Asked, call: Called) -> None:
        """Told when the call has ended."""

    def on_move(self, task: Asked, move: Span) -> None:
        """A message has arrived on another node."""


EVENTS = tuple(name for name in vars(Hook) if name.startswith("on_"))


class Hooks:
    """The hooks of a run, those given and those installed. Raises UserError for a given one that has no method of a hook, or an unknown one."""

    def __init__(self, hooks: Iterable[object] = (), *, tell: Callable[[str], None] | None = None):
        self._tell = tell or log_warning
        self._said: list[str] = []  # what installed hooks did wrong when they were loaded
        self._listeners = [_Listener(hook, type(hook).__name__) for hook in hooks] + [_Listener(*found) for found in self._installed()]

    def __bool__(self) -> bool:
        return bool(self._listeners or self._said)

    def wants(self, event: str) -> bool:
        return any(event in listener.events for listener in self._listeners)

    def tell(self, event: str, *about: Any) -> None:
        """Returns at once."""
        for listener in self._listeners:
            if event in listener.events:
                listener.put(event, about)

    @contextmanager
    def watching(self, run: Run) -> Iterator[Teller | None]:
        """Tell of a run from its start to its end; `teller.outcome` is what came of it. None where nobody wants to know."""
        if not self:
            yield None
            return
        teller = Teller(self, run)
        self.tell("on_run_start", run)
        try:
            yield teller
        finally:
            self.tell("on_run_end", run, teller.outcome)

    def close(self) -> None:
        """Wait for those that are behind, not for long, and tell what went wrong, each hook once."""
        end_s = time.monotonic() + PATIENCE_S
        for listener in self._listeners:
            listener.last()
        for line in [*self._said, *(said for listener in self._listeners for said in listener.close(end_s))]:
            self._tell(line)

    def _installed(self) -> Iterator[tuple[object, str]]:
        for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
            try:
                hook = point.load()
                hook = hook() if callable(hook) else hook
                _Listener(hook, point.name)
            except Exception as error:  # whatever a foreign package does when it is imported
                self._said.append(f"the hook '{point.name}' ({point.value}) is left out: {type(error).__name__}: {error}")
            else:
                yield hook, point.name


def log_warning(line: str) -> None:
    """Where nobody else listens: Python prints it on stderr, or does what the program has set up."""
    logging.getLogger("aiflow_agents.hooks").warning(line)


class Teller:
    """Tells the hooks of one run what happens in it."""

    def __init__(self, hooks: Hooks, run: Run, stage: str = "question"):
        self.hooks, self.run, self.stage = hooks, run, stage
        self.outcome: Any = None
        self._asked: dict[int, Asked] = {}

    def at(self, stage: str) -> Teller:
        """The same, for another stage of the run."""
        return Teller(self.hooks, self.run, stage)

    def begin(self, job: Job) -> Asked:
        asked = self._asked[id(job)] = Asked(self.run, job, self.stage, time.time_ns())
        self.hooks.tell("on_task_start", asked)
        return asked

    def ending(self, done: Callable[[Result], None]) -> Callable[[Result], None]:
        """`done`, and then the hooks are told."""

        def both(result: Result) -> None:
            done(result)
            self.hooks.tell("on_task_end", self._asked.pop(id(result.job)), result)

        return both

    def forget(self, job: Job) -> None:
        """A job that was cancelled has no end to tell of."""
        self._asked.pop(id(job), None)

    def calls(self, asked: Asked) -> Callable[[Called], None] | None:
        """Whom a member's calls are told; None where nobody wants to know."""
        return (lambda called: self.hooks.tell("on_call", asked, called)) if self.hooks.wants("on_call") else None

    def moves(self, asked: Asked) -> Callable[[Span], None] | None:
        def moved(span: Span) -> None:
            if span.kind == "move":
                self.hooks.tell("on_move", asked, span)

        return moved if self.hooks.wants("on_move") else None


class _Listener:
    """One hook, and the thread in which it is told, in the context of whoever began the run: a hook finds what is current there."""

    def __init__(self, hook: object, name: str):
        self.hook, self.name = hook, name
        if isinstance(hook, type):
            raise UserError(f"the hook {hook.__name__} is a class: give an object, {hook.__name__}()")
        own = [name for name in dir(type(hook)) if name.startswith("on_") and getattr(type(hook), name) is not getattr(Hook, name, None)]
        self.events = frozenset(own)
        if unknown := sorted(self.events - set(EVENTS)):
            raise UserError(str(UnknownName(f"method of hook {self.name}", unknown[0], EVENTS)))
        if not own:
            raise UserError(f"the hook {self.name} has none of the methods of a hook: {', '.join(EVENTS)}")
        self._waiting: SimpleQueue[tuple[str, tuple[Any, ...]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._context = contextvars.copy_context()
        self._error, self._errors, self._missed, self._closed = "", 0, 0, False

    def put(self, event: str, about: tuple[Any, ...]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._context.run, args=(self._listen,), name=f"hook {self.name}", daemon=True)
            self._thread.start()
        if self._waiting.qsize() >= MOST:
            self._missed += 1
        else:
            self._waiting.put((event, about))

    def _listen(self) -> None:
        while (told := self._waiting.get()) is not None and not self._closed:
            event, about = told
            try:
                getattr(self.hook, event)(*about)
            except BaseException as error:  # SystemExit, too, is the hook's own affair
                self._error = self._error or f"{event} raised {type(error).__name__}: {error}"
                self._errors += 1

    def last(self) -> None:
        """Nothing comes any more."""
        if self._thread is not None:
            self._waiting.put(None)

    def close(self, end_s: float) -> Iterator[str]:
        """What there is to tell of it. It hears no more after this."""
        if self._thread is not None:
            self._thread.join(max(0.0, end_s - time.monotonic()))
            self._closed = True
            if self._thread.is_alive():
                self._missed += self._waiting.qsize() - 1
                yield f"the hook {self.name} does not keep up with the run, which does not wait for it: it has missed {self._missed:,} events"
            elif self._missed:
                yield f"the hook {self.name} did not keep up with the run, which does not wait for it: it has missed {self._missed:,} events"
        if self._error:
            more = f", the first of {self._errors:,} errors" if self._errors > 1 else ""
            yield f"the hook {self.name} failed, and the run went on without it: {self._error}{more}"
