"""Doing several things at once: `gather` waits for all, `quorate` for those that do not fail, `within_budget` for those that can be paid, `first`
gives them as they come.

They differ from asyncio's in what makes a topology repeatable: nothing is left running behind an error, and ties in time have an order.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any, Literal, TypeVar, overload

from ..errors import MemberFailed, OverBudget
from .clock import settle

T = TypeVar("T")


@overload
async def gather(awaitables: Iterable[Awaitable[T]]) -> list[T]: ...
@overload
async def gather(awaitables: Iterable[Awaitable[T]], *, failures: Literal[False]) -> list[T]: ...
@overload
async def gather(awaitables: Iterable[Awaitable[T]], *, failures: bool) -> list[T | Exception]: ...
async def gather(awaitables: Iterable[Awaitable[Any]], *, failures: bool = False) -> list[Any]:
    """Run all at once, wait for all, and give the results in the order of the members.

    Then the error of the first member that has one is raised; with `failures` the exception stands in its member's place instead.
    Cancelling this cancels them all and waits until they have ended.
    """
    members = _members(awaitables)
    if len(members) == 1:  # needs no task
        try:
            return [await members[0]]
        except Exception as error:
            if failures:
                return [error]
            raise
    results = await asyncio.gather(*members, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not (failures and isinstance(result, Exception)):
            raise result
    return results


async def quorate(awaitables: Iterable[Awaitable[T]], quorum: int | None) -> list[T]:
    """As `gather`, without the members that have failed, as long as `quorum` are left. Else, and without a quorum, raises MemberFailed."""
    return await gather(awaitables) if quorum is None else _left(await gather(awaitables, failures=True), (MemberFailed,), quorum)


async def within_budget(awaitables: Iterable[Awaitable[T]], quorum: int | None = None) -> list[T]:
    """As `quorate`, without those for which the task's budget was not enough, too. Raises OverBudget where it was enough for none."""
    results = await gather(awaitables, failures=True)
    return _left(results, (OverBudget,) if quorum is None else (OverBudget, MemberFailed), quorum or 0)


def _left(results: list[T | Exception], absent: tuple[type[Exception], ...], quorum: int) -> list[T]:
    """What there is without those who are absent; so many may not be there that fewer than the quorum are, or none."""
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, absent):
            raise result
    there = [result for result in results if not isinstance(result, Exception)]
    errors = [result for result in results if isinstance(result, Exception)]
    failed = [error for error in errors if isinstance(error, MemberFailed)]
    if failed and len(there) < quorum:
        raise failed[0]
    if errors and not there:
        raise errors[0]
    return there


async def first(awaitables: Iterable[Awaitable[T]], *, failures: bool = False) -> AsyncIterator[T]:
    """Run all at once and give the results as they come, in the order of (time, member): `async for draft in first(...)`.

    Leaving the loop early cancels the rest. A member that fails raises when its turn comes; with `failures` its exception is given instead.
    """
    tasks = [asyncio.ensure_future(member) for member in _members(awaitables)]
    try:
        waiting = dict.fromkeys(tasks)  # in the order of the members
        while waiting:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if len(waiting) > 1:
                await settle()  # who else arrives at this instant?
            for task in [task for task in waiting if task.done()]:
                del waiting[task]
                error = None if task.cancelled() else task.exception()
                yield error if failures and isinstance(error, Exception) else task.result()  # type: ignore[misc]
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(_look_at)


def _look_at(task: asyncio.Future[Any]) -> None:
    """Nobody waits for this one any more, so that its error is not "never retrieved"."""
    if not task.cancelled():
        task.exception()


def _members(awaitables: Iterable[Awaitable[T]]) -> list[Awaitable[T]]:
    """The awaitables of a generator; if it raises half-way, those it gave are closed."""
    members: list[Awaitable[T]] = []
    try:
        for awaitable in awaitables:
            members.append(awaitable)
    except BaseException:
        for member in members:
            if inspect.iscoroutine(member):
                member.close()
        raise
    return members
