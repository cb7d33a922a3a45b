"""The virtual loop: what asyncio means in it, how worlds move, how calls are handed over, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import Deadlock
from aiflow_agents.net.clock import WorldLoop, run, settle, sleep_until
from aiflow_agents.net.world import External, World, current_world

WALL_S = 5.0  # a bound on real time that only real waiting would break


def loop_of() -> WorldLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, WorldLoop)
    return loop


def echo(calls: list[External]) -> None:
    for call in calls:
        call.resolve(call.payload)


# --- asyncio in virtual seconds ---


def test_sleep_timeout_wait_and_call_later_mean_virtual_seconds():
    seen = []

    async def main():
        loop = loop_of()
        await asyncio.sleep(3600)
        seen.append(loop.time())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.sleep(1e6)
        seen.append(loop.time())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(1e6), 5)
        seen.append(loop.time())
        done, pending = await asyncio.wait([asyncio.ensure_future(asyncio.sleep(t, t)) for t in (1, 2, 30)], timeout=20)
        seen.append((loop.time(), sorted(t.result() for t in done), len(pending)))
        loop.call_later(7, lambda: seen.append(("called", loop.time())))
        loop.call_at(loop.time() - 100, lambda: seen.append(("late", loop.time())))
        async with asyncio.timeout_at(loop.time() + 8):
            await asyncio.sleep(7.5)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))
            group.create_task(asyncio.sleep(2))
        return loop.time()

    began = time.perf_counter()
    assert run(main()) == 3600 + 10 + 5 + 20 + 7.5 + 2
    assert seen == [3600, 3610, 3615, (3635, [1, 2], 1), ("late", 3635), ("called", 3642)]
    assert time.perf_counter() - began < WALL_S


def test_timers_of_one_instant_fire_in_the_order_they_were_set_and_a_cancelled_one_does_not():
    fired: list[str] = []

    async def main():
        loop = loop_of()
        second = None

        def first():
            fired.append("first")
            second.cancel()

        loop.call_at(2.0, fired.append, "later")
        loop.call_at(1.0, first)
        second = loop.call_at(1.0, fired.append, "second")
        loop.call_at(1.0, fired.append, "third")
        await sleep_until(3.0)
        return loop.time()

    assert run(main()) == 3.0
    assert fired == ["first", "third", "later"]


def test_a_cancelled_timer_does_not_move_time_and_does_not_pile_up():
    async def main():
        world = World("w")

        async def task():
            loop = loop_of()
            for _ in range(10_000):
                loop.call_later(3600, print).cancel()
            assert len(world.timers) < 200
            living = loop.call_later(10, lambda: None)
            for _ in range(200):
                loop.call_later(5, print).cancel()
            assert not living.cancelled()
            loop.call_at(1.0, print).cancel()
            await loop_of().external("stop")
            assert loop.time() == 0
            await asyncio.sleep(11)
            return loop.time()

        return await loop_of().spawn(world, task())

    assert run(main(), echo) == 11


def test_a_timer_at_infinity_never_fires_and_one_at_nan_is_refused():
    async def main():
        with pytest.raises(ValueError, match="NaN"):
            loop_of().call_at(float("nan"), print)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4):
                await asyncio.sleep(float("inf"))
        return loop_of().time()

    assert run(main()) == 4


def test_a_callback_that_raises_is_reported_and_the_others_of_its_instant_still_fire():
    reported, fired = [], []

    async def main():
        loop_of().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
        loop_of().call_later(1, lambda: 1 / 0)
        loop_of().call_later(1, fired.append, "next")
        await asyncio.sleep(2)

    run(main())
    assert [type(e) for e in reported] == [ZeroDivisionError] and fired == ["next"]


def test_run_in_executor_is_refused():
    async def main():
        with pytest.raises(RuntimeError, match="run_in_executor"):
            await asyncio.to_thread(time.sleep, 0)

    run(main())


def test_no_attribute_of_asyncio_is_overridden_but_the_named_ones():
    base = set(dir(asyncio.SelectorEventLoop))
    mine = {name for name in vars(WorldLoop) if not name.startswith("__")}
    assert mine & base == {"time", "call_at", "run_in_executor"}
    bare, ours = asyncio.SelectorEventLoop(), WorldLoop()
    added = set(vars(ours)) - set(vars(bare))
    assert added and not added & set(vars(bare))
    bare.close()
    ours.close()


# --- worlds ---


def test_every_world_has_its_own_time_which_its_tasks_share():
    async def main():
        assert current_world() is None

        async def child(name):
            await asyncio.sleep(1)
            return name, current_world().name, loop_of().time()

        async def task(world, delay):
            assert current_world() is world
            assert loop_of().time() == 0
            await asyncio.sleep(delay)
            return await asyncio.gather(child("x"), asyncio.create_task(child("y")))

        worlds = [World(f"w{i}") for i in range(5)]
        results = await asyncio.gather(*(loop_of().spawn(w, task(w, 10.0 * i), name=f"task {i}") for i, w in enumerate(worlds)))
        assert [w.now for w in worlds] == [1, 11, 21, 31, 41]
        assert loop_of().time() == 0, "the driver's own time has nothing to do with the worlds'"
        await asyncio.sleep(3)
        assert loop_of().time() == 3
        return results

    assert run(main()) == [[("x", f"w{i}", 10.0 * i + 1), ("y", f"w{i}", 10.0 * i + 1)] for i in range(5)]


def test_a_world_stands_still_until_its_calls_are_answered():
    """Hand-computed: the sleep of 1 s beside the call fires only after the answer, although it was set before."""
    log = []

    async def task():
        loop = loop_of()
        call = loop.external("question")
        nap = asyncio.ensure_future(asyncio.sleep(1, "slept"))
        nap.add_done_callback(lambda _: log.append(("nap", loop.time())))
        answer = await call
        log.append((answer, loop.time()))
        await asyncio.sleep(0.25)
        log.append(("then", loop.time()))
        await nap

    def handover(calls):
        log.append(("handover", [c.world.now for c in calls]))
        echo(calls)

    async def main():
        await loop_of().spawn(World("w"), task())

    run(main(), handover)
    assert log == [("handover", [0.0]), ("question", 0.0), ("then", 0.25), ("nap", 1.0)]


def test_worlds_stay_in_step_so_that_a_round_of_calls_is_one_batch():
    """Worlds of different speed and length: every round is still one hand-over of all that have a next call."""
    batches = []

    def handover(calls):
        batches.append(len(calls))
        echo(calls)

    async def task(i):
        for turn in range(1 + i % 4):
            for _ in range(i % 7):
                await asyncio.sleep(0.1 + i)
            assert await loop_of().external((i, turn)) == (i, turn)

    async def main():
        await asyncio.gather(*(loop_of().spawn(World(str(i)), task(i)) for i in range(1000)))

    run(main(), handover)
    assert batches == [1000, 750, 500, 250]


def test_the_idle_step_does_not_look_at_worlds_that_cannot_move():
    """1,000 worlds wait for an answer, with timers that may not fire yet, while one ticks: the list of candidates holds only that one."""

    def handover(calls):
        if any(call.payload == "ready" for call in calls):
            echo(calls)

    async def waiter():
        async with asyncio.timeout(1):
            await loop_of().external("wait")
        return loop_of().time()

    async def ticker(candidates):
        for _ in range(100):
            await asyncio.sleep(1)
            candidates.append(len(loop_of()._runnable))
        await loop_of().external("ready")

    async def main():
        candidates = []
        tasks = [loop_of().spawn(World(str(i)), waiter()) for i in range(1000)]
        *waited, _ = await asyncio.gather(*tasks, loop_of().spawn(World("ticker"), ticker(candidates)))
        return candidates, set(waited)

    candidates, waited = run(main(), handover)
    assert len(candidates) == 100 and max(candidates) <= 1
    assert waited == {0}


def test_two_tasks_can_live_in_one_world():
    async def main():
        world, log = World("w"), []

        async def task(name, delay):
            await asyncio.sleep(delay)
            log.append((name, loop_of().time()))
            if name == "a":
                await loop_of().external(name)

        await asyncio.gather(loop_of().spawn(world, task("b", 2)), loop_of().spawn(world, task("a", 1)))
        return log

    assert run(main(), echo) == [("a", 1), ("b", 2)]


# --- calls ---


def test_calls_that_are_not_answered_are_handed_over_again_with_the_new_ones():
    handed = []

    def handover(calls):
        handed.append([call.payload for call in calls])
        calls[-1].resolve("answer")

    async def task(name):
        await loop_of().external(name + "1")
        await asyncio.sleep(1)
        await loop_of().external(name + "2")
        return loop_of().time()

    async def main():
        return await asyncio.gather(*(loop_of().spawn(World(n), task(n)) for n in "ab"))

    assert run(main(), handover) == [1, 1]
    assert handed == [["a1", "b1"], ["a1", "b2"], ["a1"], ["a2"]]


def test_cancelled_calls_are_dropped_before_the_handover_and_free_their_world():
    handed = []

    def handover(calls):
        handed.append([call.payload for call in calls])
        echo(calls)

    async def task():
        loop = loop_of()
        dropped = loop.external("dropped")
        kept = asyncio.ensure_future(_ask("kept"))
        asyncio.get_running_loop().call_soon(dropped.cancel)
        with pytest.raises(asyncio.CancelledError):
            await dropped
        alone = loop.external("alone")
        alone.cancel()
        await kept
        await asyncio.sleep(1)
        return loop.time()

    async def _ask(what):
        return await loop_of().external(what)

    async def main():
        return await loop_of().spawn(World("w"), task())

    assert run(main(), handover) == 1
    assert handed == [["kept"]]


def test_an_answer_after_a_cancel_or_a_second_answer_does_nothing():
    kept: list[External] = []

    def handover(calls):
        kept.extend(calls)
        calls[0].resolve("first")
        calls[0].resolve("second")
        calls[0].fail(ValueError("third"))

    async def task():
        loop = loop_of()
        other = loop.external("slow")
        quick = loop.external("quick")
        other, quick = quick, other  # the one handed over first is answered
        assert await quick == "first"
        other.cancel()
        await asyncio.sleep(1)
        kept[1].resolve("too late")
        return other.cancelled()

    async def main():
        return await loop_of().spawn(World("w"), task())

    assert run(main(), handover)


def test_a_call_can_fail_alone():
    def handover(calls):
        for call in calls:
            call.fail(ValueError("no")) if call.payload == "bad" else call.resolve("good")

    async def task(payload):
        return await loop_of().external(payload)

    async def main():
        return await asyncio.gather(*(loop_of().spawn(World(p), task(p)) for p in ("good", "bad", "fine")), return_exceptions=True)

    good, bad, fine = run(main(), handover)
    assert (good, fine) == ("good", "good") and isinstance(bad, ValueError)


def test_the_driver_may_call_too():
    async def main():
        return await loop_of().external("x"), current_world()

    assert run(main(), echo) == ("x", None)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_the_handover_raises_gets_out_and_tasks_may_clean_up(error):
    cleaned = []

    def handover(calls):
        raise error

    async def task():
        try:
            await loop_of().external("x")
        finally:
            await asyncio.sleep(100)
            cleaned.append(loop_of().time())

    async def main():
        await asyncio.gather(*(loop_of().spawn(World(str(i)), task()) for i in range(3)))

    with pytest.raises(error):
        run(main(), handover)
    assert cleaned == [100, 100, 100]


def test_nothing_is_handed_over_while_the_loop_is_left():
    handed = []

    def handover(calls):
        handed.append(len(calls))
        raise KeyboardInterrupt

    async def task():
        try:
            await loop_of().external("x")
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await loop_of().external("again")
            handed.append("cleaned")

    async def main():
        await loop_of().spawn(World("w"), task())

    with pytest.raises(KeyboardInterrupt):
        run(main(), handover)
    assert handed == [1, "cleaned"]


def test_a_handover_that_answers_nothing_is_an_error_and_not_an_endless_loop():
    async def main():
        await loop_of().external("x")

    with pytest.raises(RuntimeError, match="answered none of 1 calls"):
        run(main(), lambda calls: None)
    with pytest.raises(RuntimeError, match="without a handover"):
        run(main())


def test_ctrl_c_while_a_task_computes_gets_out():
    async def task():
        await asyncio.sleep(1)
        signal.raise_signal(signal.SIGINT)
        for _ in range(1000):
            await asyncio.sleep(1)

    async def main():
        await loop_of().spawn(World("w"), task())

    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("error")
        run(main())


# --- the end ---


def test_a_stuck_world_gets_a_deadlock_that_names_its_task_and_place_and_the_others_go_on():
    async def inner():
        await asyncio.get_running_loop().create_future()  # nobody will ever set this

    async def stuck():
        await asyncio.sleep(2)
        await inner()

    async def fine():
        await asyncio.sleep(5)
        return await loop_of().external("ok")

    async def main():
        loop = loop_of()
        tasks = [loop.spawn(World("a"), stuck(), name="debate 17"), loop.spawn(World("b"), fine()), loop.spawn(World("c"), stuck())]
        return await asyncio.gather(*tasks, return_exceptions=True)

    a, b, c = run(main(), echo)
    assert b == "ok" and isinstance(a, Deadlock) and isinstance(c, Deadlock)
    assert "world 'a'" in str(a) and "'debate 17'" in str(a) and "test_clock.py" in str(a) and "in inner" in str(a) and "2 s" in str(a)
    assert "world 'c'" in str(c) and "debate 17" not in str(c)


def test_a_deadlocked_task_runs_its_cleanup_and_two_that_wait_for_each_other_both_get_out():
    log = []

    async def main():
        loop = loop_of()
        tasks: dict[str, asyncio.Task] = {}

        async def task(me, other):
            try:
                await asyncio.sleep(0)
                await asyncio.shield(tasks[other])
            finally:
                await asyncio.sleep(1)
                log.append((me, loop.time()))

        world = World("w")
        tasks["a"] = loop.spawn(world, task("a", "b"), name="a")
        tasks["b"] = loop.spawn(world, task("b", "a"), name="b")
        return await asyncio.gather(*tasks.values(), return_exceptions=True)

    results = run(main())
    assert [type(r) for r in results] == [Deadlock, Deadlock] and "'a'" in str(results[0]) and "'b'" in str(results[0])
    assert log == [("a", 1), ("b", 1)]


def test_a_stuck_driver_is_a_deadlock_out_of_run():
    async def main():
        await asyncio.sleep(1)
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"'main' at test_clock\.py:\d+ in main"):
        run(main())


def test_a_task_that_ignores_every_deadlock_ends_the_run():
    async def stubborn():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()

    async def main():
        await loop_of().spawn(World("w"), stubborn())

    with pytest.raises(Deadlock, match="world 'w'"):
        run(main())


def test_a_deadlock_is_not_seen_by_a_task_cancelled_for_other_reasons():
    async def main():
        task = loop_of().spawn(World("w"), asyncio.sleep(100))
        await asyncio.sleep(0)
        task.cancel()
        early = loop_of().spawn(World("never begun"), asyncio.sleep(1))
        early.cancel()
        return [type(r) for r in await asyncio.gather(task, early, return_exceptions=True)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "coroutine was never awaited"
        assert run(main()) == [asyncio.CancelledError] * 2
        gc.collect()


def test_leftovers_are_cancelled_and_the_loop_is_closed():
    log = []

    async def left():
        try:
            await asyncio.sleep(1e9)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            log.append("generator closed")

    async def main():
        loop_of().spawn(World("w"), left())
        agen = numbers()
        log.append(await anext(agen))
        await asyncio.sleep(0)
        return loop_of(), agen

    loop, _ = run(main())
    assert loop.is_closed() and log == [1, "cancelled", "generator closed"]


def test_inside_a_running_loop_the_virtual_one_gets_a_thread_of_its_own():
    async def inner():
        await asyncio.sleep(1000)
        return loop_of().time(), threading.current_thread().name, current_world()

    async def notebook():
        before = asyncio.get_running_loop().time()
        result = run(inner())
        assert asyncio.get_running_loop().time() - before < WALL_S
        return result

    assert asyncio.run(notebook()) == (1000, "virtual-clock", None)

    async def failing():
        raise ValueError("out")

    async def notebook_with_error():
        run(failing())

    with pytest.raises(ValueError, match="out"):
        asyncio.run(notebook_with_error())

    async def world_within_a_world():  # a topology that evaluates something itself
        async def task():
            await asyncio.sleep(5)
            return run(inner())[::2], loop_of().time()

        return await loop_of().spawn(World("outer"), task())

    assert run(world_within_a_world()) == ((1000, None), 5)


def test_ctrl_c_in_a_notebook_stops_the_thread():
    cleaned, sent = threading.Event(), []

    def handover(calls):
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)  # Python hands it to the main thread, as a terminal's Ctrl-C
        echo(calls)

    async def inner():
        try:
            while True:
                await loop_of().external("x")
        finally:
            cleaned.set()

    async def notebook():
        run(inner(), handover)

    loop = asyncio.new_event_loop()  # not asyncio.run, which would turn the signal into a cancel
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(notebook())
        assert cleaned.wait(WALL_S)
    finally:
        loop.close()


def test_settle_returns_when_the_instant_is_over():
    async def main():
        log = []

        async def chain():
            await asyncio.sleep(0)
            assert await loop_of().external("call") == "call"
            await sleep_until(loop_of().time())
            await sleep_until(loop_of().time())
            log.append("chain")

        async def task():
            other = asyncio.ensure_future(chain())
            later = loop_of().call_later(0.1, log.append, "later")
            await settle()
            log.append("settled")
            later.cancel()
            await other
            return log, loop_of().time()

        return await loop_of().spawn(World("w"), task())

    assert run(main(), echo) == (["chain", "settled"], 0)


# --- properties ---

steps = st.lists(
    st.one_of(
        st.tuples(st.just("sleep"), st.floats(0, 100, allow_nan=False)),
        st.tuples(st.just("call"), st.integers(0, 5)),
        st.tuples(st.just("both"), st.floats(0, 10)),
        st.tuples(st.just("timeout"), st.floats(0, 10)),
    ),
    max_size=8,
)


async def _play(script, log):
    loop = asyncio.get_running_loop()
    for kind, value in script:
        if kind == "sleep":
            await asyncio.sleep(value)
        elif kind == "call":
            log.append(await loop.external(value))
            await asyncio.sleep(value / 7)
        elif kind == "both":
            await asyncio.gather(loop.external(value), asyncio.sleep(value), asyncio.sleep(value / 3))
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(value):
                    await asyncio.sleep(5)
        log.append(loop.time())


def _timelines(scripts, handover):
    async def main():
        logs = [[] for _ in scripts]
        await asyncio.gather(*(loop_of().spawn(World(str(i)), _play(s, log)) for i, (s, log) in enumerate(zip(scripts, logs, strict=True))))
        return logs

    return run(main(), handover)


@settings(deadline=None, max_examples=60)
@given(st.lists(steps, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_worlds_do_not_disturb_each_other_and_time_never_runs_backwards(scripts, random):
    def some_at_a_time(calls):
        for call in random.sample(calls, random.randint(1, len(calls))):
            call.resolve(("answer", call.payload))

    def all_at_once(calls):
        for call in calls:
            call.resolve(("answer", call.payload))

    together = _timelines(scripts, some_at_a_time)
    assert together == [_timelines([script], all_at_once)[0] for script in scripts]
    for log in together:
        times = [entry for entry in log if isinstance(entry, float)]
        assert times == sorted(times)
