"""`gather` and `first`: order, errors, cancellation, ties."""

from __future__ import annotations

import asyncio
import contextlib
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.net.clock import run, sleep_until
from aiflow_agents.net.together import first, gather
from aiflow_agents.net.world import World, current_world
from tests.net.conftest import now


def in_world(coro, handover=None):
    """Run a coroutine alone in a world; warnings (a coroutine never awaited, a task never looked at) are errors."""

    async def main():
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        result = await asyncio.get_running_loop().spawn(World("w"), coro)
        await asyncio.sleep(0)
        assert complaints == []
        return result

    def echo(calls):
        for call in calls:
            call.resolve(call.payload)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return run(main(), handover or echo)


async def after(delay, value=None, log=None):
    try:
        await asyncio.sleep(delay)
        if isinstance(value, Exception):
            raise value
        return value
    except asyncio.CancelledError:
        if log is not None:
            log.append((value, now()))
        raise


# --- gather ---


def test_gather_takes_a_generator_runs_all_at_once_and_keeps_the_members_order():
    async def task():
        return await gather(after(d, d) for d in (3, 1, 2)), now()

    assert in_world(task()) == ([3, 1, 2], 3)


def test_gather_waits_for_all_before_it_raises_the_first_members_error():
    log = []

    async def task():
        with pytest.raises(ValueError, match="of the first"):
            await gather([after(5, log), after(2, ValueError("of the first")), after(1, KeyError("sooner, but later in line"))])
        return now()

    assert in_world(task()) == 5


def test_gather_gives_failures_in_their_places():
    error = ValueError("x")

    async def task():
        return [await gather((after(d, v) for d, v in [(1, "a"), (2, error)]), failures=True), await gather([after(1, error)], failures=True), now()]

    assert in_world(task()) == [["a", error], [error], 3]


def test_gather_of_one_makes_no_task_and_of_none_is_empty():
    async def task():
        before = asyncio.current_task()

        async def member():
            await asyncio.sleep(1)
            return asyncio.current_task() is before

        with pytest.raises(ValueError, match="alone"):
            await gather([after(1, ValueError("alone"))])
        return await gather([member()]), await gather([])

    assert in_world(task()) == ([True], [])


@pytest.mark.parametrize("members", [1, 3])
def test_cancelling_gather_cancels_all_and_waits_for_them(members):
    log = []

    async def slow_to_leave(i):
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(i)
            log.append((i, now()))

    async def task():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await gather(slow_to_leave(i) for i in range(members))
        return now()

    assert in_world(task()) == 10 + members - 1
    assert log == [(i, 10 + i) for i in range(members)]


def test_a_generator_that_raises_half_way_leaves_nothing_behind():
    def members():
        yield after(1)
        yield after(2)
        raise LookupError("in the generator")

    async def task():
        with pytest.raises(LookupError):
            await gather(members())
        with pytest.raises(LookupError):
            async for _ in first(members()):
                pass
        return now()

    assert in_world(task()) == 0


def test_members_live_in_the_callers_world():
    async def member():
        await asyncio.sleep(0)
        return current_world().name

    async def task():
        return await gather(member() for _ in range(3))

    assert in_world(task()) == ["w"] * 3


# --- first ---


async def collect(members, **options):
    return [(result, now()) async for result in first(members, **options)]


def test_first_gives_results_as_they_come():
    assert in_world(collect(after(d, d) for d in (3, 1, 2))) == [(1, 1), (2, 2), (3, 3)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=7))
def test_first_orders_ties_by_member_however_many_turns_of_the_loop_each_takes(plan):
    """Members that arrive at one instant, after different numbers of turns, calls and empty sleeps, come in the members' order."""

    async def member(i, delay, turns, calls):
        await asyncio.sleep(delay)
        for _ in range(turns):
            await asyncio.sleep(0)
            if calls:
                await asyncio.get_running_loop().external(i)
                await sleep_until(now())  # a timer at this very instant
        return i

    expected = sorted(((delay, i) for i, (delay, _, _) in enumerate(plan)))
    got = in_world(collect(member(i, *p) for i, p in enumerate(plan)))
    assert [i for i, _ in got] == [i for _, i in expected]
    assert [t for _, t in got] == [t for t, _ in expected]


def test_leaving_first_early_cancels_the_rest_at_once():
    log = []

    async def task():
        async for result in first(after(d, d, log) for d in (3, 1, 2)):
            assert result == 1
            break
        await asyncio.sleep(0.5)
        return now()

    assert in_world(task()) == 1.5
    assert sorted(log) == [(2, 1), (3, 1)]


def test_an_error_in_first_is_raised_in_its_turn_and_cancels_the_rest():
    log, seen = [], []

    async def task():
        with pytest.raises(ValueError, match="second"):
            async for result in first([after(5, "never", log), after(1, "one"), after(2, ValueError("second")), after(2, KeyError("unseen"))]):
                seen.append(result)
        await asyncio.sleep(0)
        return now()

    assert in_world(task()) == 2
    assert seen == ["one"] and log == [("never", 2)]


def test_first_gives_failures_in_their_turn_when_asked():
    error = ValueError()
    assert in_world(collect([after(2, "b"), after(1, error)], failures=True)) == [(error, 1), ("b", 2)]


def test_cancelling_the_caller_of_first_cancels_its_members():
    log = []

    async def task():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(4):
                await collect(after(d, d, log) for d in (3, 10, 20))
        await asyncio.sleep(0)

    in_world(task())
    assert sorted(log) == [(10, 4), (20, 4)]


def test_both_work_on_an_ordinary_loop():
    async def task():
        return await gather(after(0.001 * d, d) for d in (2, 1)), [r async for r in first(after(0.02 * d, d) for d in (3, 1))]

    assert asyncio.run(task()) == ([2, 1], [1, 3])
