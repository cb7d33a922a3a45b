"""Messages on their way, and who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiflow_agents.errors import Unreachable


class Move:
    """One message on its way to one node, and who waits for it there."""

    __slots__ = ("arrived", "lost", "then", "waiters")

    def __init__(self, arrived: bool = False):
        self.arrived = arrived
        self.lost: Unreachable | None = None  # why it never will
        self.then: Callable[[], None] | None = None
        self.waiters: list[_Waiter] = []

    def arrive(self) -> None:
        self.arrived = True
        if self.then is not None:
            self.then()
        for waiter in self.waiters:
            waiter.one_less()

    def lose(self, gone: Unreachable) -> None:
        self.lost = gone
        for waiter in self.waiters:
            waiter.no_more()


HERE_ALL_THE_WHILE = Move(arrived=True)


async def arrival(moves: Sequence[Move]) -> None:
    """Wait for all of these, or until one of them is lost."""
    coming = [move for move in moves if not move.arrived]
    if coming and not any(move.lost for move in coming):
        waiter = _Waiter(len(coming))
        for move in coming:
            move.waiters.append(waiter)
        await waiter.future


class _Waiter:
    """Waits for so many arrivals with one future."""

    __slots__ = ("missing", "future")

    def __init__(self, missing: int):
        self.missing = missing
        self.future = asyncio.get_running_loop().create_future()

    def one_less(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.no_more()

    def no_more(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
