"""A world: one task's time, its timers, and its calls to the outside. `clock.WorldLoop` moves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from heapq import heapify
from typing import Any

WORLD: ContextVar[World | None] = ContextVar("aiflow_world", default=None)
_PURGE_FROM = 64  # a heap with more cancelled timers than this, and than living ones, is rebuilt


def current_world() -> World | None:
    """The world this code runs in; None outside of any (the driver)."""
    return WORLD.get()


class World:
    """One task's world: its own time in seconds, starting at 0, and its own timers."""

    __slots__ = ("name", "now", "unanswered", "timers", "cancelled", "settling", "listed")

    def __init__(self, name: str):
        self.name = name
        self.now = 0.0
        self.unanswered = 0  # calls handed out and not yet answered; while there are any, `now` stands still
        self.timers: list[Entry] = []  # heap
        self.cancelled = 0  # cancelled timers still in the heap
        self.settling: list[asyncio.Future[None]] = []  # woken when nothing is left to do at this instant
        self.listed = False  # stands in its loop's list of worlds that may be able to move

    def __repr__(self) -> str:
        return f"<World {self.name} t={self.now:g}s timers={len(self.timers) - self.cancelled} unanswered={self.unanswered}>"


class External:
    """A call to something outside of simulated time, waiting for its answer."""

    __slots__ = ("world", "payload", "future", "_answered")

    def __init__(self, world: World, payload: Any, future: asyncio.Future[Any], answered: Callable[[External], None]):
        self.world, self.payload, self.future, self._answered = world, payload, future, answered

    def resolve(self, value: Any) -> None:
        """Answer. Does nothing when the caller has cancelled, or has its answer already."""
        if not self.future.done():
            self._answered(self)
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Answer with an error, which the caller sees raised."""
        if not self.future.done():
            self._answered(self)
            self.future.set_exception(error)


class Timer(asyncio.TimerHandle):
    """A timer that tells its world when it is cancelled, so that dead ones do not pile up."""

    __slots__ = ("world",)
    world: World | None  # None once it has fired

    def cancel(self) -> None:
        if not self.cancelled():
            super().cancel()
            if self.world is not None:
                _one_more_dead(self.world)


class Alarm:
    """The timer of `sleep_until`: a third of the price of asyncio's, and half of all timers are such."""

    __slots__ = ("world", "off")

    def __init__(self, world: World):
        self.world: World | None = world
        self.off = False

    def cancelled(self) -> bool:
        return self.off

    def cancel(self) -> None:
        if not self.off:
            self.off = True
            if self.world is not None:
                _one_more_dead(self.world)


def _one_more_dead(world: World) -> None:
    world.cancelled += 1
    if world.cancelled > _PURGE_FROM and world.cancelled * 2 > len(world.timers):
        world.timers[:] = [entry for entry in world.timers if not entry[2].cancelled()]
        heapify(world.timers)
        world.cancelled = 0


Entry = tuple[float, int, Timer | Alarm, Callable[..., Any], tuple[Any, ...]]  # ordered by (when, sequence); how to fire it
