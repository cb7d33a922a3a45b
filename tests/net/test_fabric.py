"""Links and nodes in use: timelines computed by hand, simpy as the oracle of queues, properties."""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import replace
from typing import NamedTuple

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import NoRoute, UnknownName
from aiflow_agents.net.clock import run, sleep_until
from aiflow_agents.net.fabric import Fabric
from aiflow_agents.net.network import Link, Network, Node, Radio
from aiflow_agents.net.together import gather
from aiflow_agents.net.world import World
from tests.net.conftest import in_world, now


def network(*links: Link, slots: int = 1, cancels: bool = True, **more) -> Network:
    names = dict.fromkeys(["a", *(end for link in links for end in (link.a, link.b))])
    return Network("test", {n: Node(n, "edge", 1, 1, slots=slots, cancels=cancels) for n in names}, links, "a", **more)


AB = Link("a", "b", up_bps=8000, down_bps=16000, latency_s=0.1)  # up 1,000 bytes a second, down 2,000
BC = Link("b", "c", up_bps=4000, down_bps=4000, latency_s=0.2)


async def at(when, coro):
    await sleep_until(when)
    return await coro


class Moved(NamedTuple):
    seconds: float
    energy_j: float
    hops: int
    sent_bytes: int


async def transfer(fabric, src, dst, nbytes):
    """Send a message and wait for it: what it took."""
    begun, booked, there = now(), [], asyncio.get_running_loop().create_future()
    fabric.send(src, dst, nbytes, lambda: there.set_result(now()), book=lambda *hop: booked.append(hop))
    arrived = await there
    return Moved(arrived - begun, sum(joules for _, joules, _ in booked), len(booked), sum(sent for *_, sent in booked))


# --- messages by hand ---


def test_a_transfer_is_rate_and_latency_each_way_apart():
    async def task():
        fabric = Fabric(network(AB))
        up = await transfer(fabric, "a", "b", 500)
        down = await transfer(fabric, "b", "a", 500)
        return up, down, now()

    up, down, end = in_world(task())
    assert up == (pytest.approx(0.5 + 0.1), 0, 1, 500) and down == (pytest.approx(0.25 + 0.1), 0, 1, 500)
    assert end == pytest.approx(0.95)


def test_messages_wait_for_each_other_on_one_direction_and_not_on_the_other():
    """a->b: sent 0-1, 1-3, 3-3.5; each arrives 0.1 later. b->a at the same time is free. A late one finds the line empty."""

    async def task():
        fabric = Fabric(network(AB))

        async def send(when, src, dst, nbytes):
            return await at(when, transfer(fabric, src, dst, nbytes)), now()

        moved = await gather(
            [send(0, "a", "b", 1000), send(0, "a", "b", 2000), send(0.5, "a", "b", 500), send(0, "b", "a", 1000), send(9, "a", "b", 0)]
        )
        return [(round(m.seconds, 9), round(end, 9)) for m, end in moved]

    assert in_world(task()) == [(1.1, 1.1), (3.1, 3.1), (3.1, 3.6), (0.6, 0.6), (0.1, 9.1)]


def test_a_message_is_stored_and_forwarded():
    """a->b 1 s + 0.1, b->c 2 s + 0.2. The second follows: a->b ready at 2.1, b->c busy until 3.1, then 2 s + 0.2."""

    async def task():
        fabric = Fabric(network(AB, BC))
        first, second = await gather([transfer(fabric, "a", "c", 1000), transfer(fabric, "a", "c", 1000)])
        return first, second

    first, second = in_world(task())
    assert first == (pytest.approx(3.3), 0, 2, 2000)
    assert second.seconds == pytest.approx(5.3)


def test_sending_to_where_it_is_costs_nothing_and_lets_nobody_run():
    async def task():
        fabric, happened = Fabric(network(AB)), []
        asyncio.get_running_loop().call_soon(happened.append, "others ran")
        fabric.send("a", "a", 10**9, lambda: happened.append("arrived"), book=lambda *hop: happened.append(hop))
        return list(happened), await transfer(fabric, "a", "a", 10**9)

    assert in_world(task()) == (["arrived"], (0, 0, 0, 0))


def test_unknown_nodes_missing_routes_and_nonsense_are_refused():
    async def task():
        fabric = Fabric(Network("t", {"a": Node("a", "edge", 1, 1), "z": Node("z", "edge", 1, 1)}, (), "a"))
        with pytest.raises(NoRoute):
            fabric.send("a", "z", 1, never)
        with pytest.raises(UnknownName):
            fabric.send("a", "y", 1, never)
        with pytest.raises(UnknownName):
            await fabric.occupy("y", 1)
        with pytest.raises(ValueError, match="-1 bytes"):
            fabric.send("a", "a", -1, never)
        for seconds in (-1, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="seconds"):
                await fabric.occupy("a", seconds)

    def never():
        raise AssertionError("nothing was sent")

    in_world(task())


def test_a_message_takes_no_task_no_future_and_one_timer_a_hop():
    async def task():
        loop, timers = asyncio.get_running_loop(), []
        call_at, create_future = loop.call_at, loop.create_future
        loop.call_at = lambda *args, **kwargs: timers.append(args[0]) or call_at(*args, **kwargs)
        loop.create_future = lambda: made.append("a future") or create_future()
        Fabric(network(AB, BC)).send("a", "c", 1000, lambda: arrived.append(now()))
        made.extend(asyncio.all_tasks() - {asyncio.current_task()} - outside)
        await sleep_until(10)
        return timers

    async def main():
        outside.update(asyncio.all_tasks())
        return await asyncio.get_running_loop().spawn(World("w"), task())

    arrived, made, outside = [], [], set()
    timers = run(main())
    assert timers == [pytest.approx(1.1), 10, pytest.approx(3.3)], "10 is the test's own"
    assert made == ["a future"], "so is this one"
    assert arrived == timers[2:]


def test_whoever_stops_waiting_a_message_goes_all_the_way_and_is_billed_on_each_link():
    """Left alone at 0.25, in the middle of a->b, which is busy until 1; b->c is taken at 1.1 and busy until 3.1."""

    async def task():
        link = replace(AB, send=Radio(base_w=2, j_per_byte=0.01))
        fabric, booked, arrived = Fabric(network(link, BC)), [], []

        async def send_and_wait():
            fabric.send("a", "c", 1000, lambda: arrived.append(now()), book=lambda hop, joules, sent: booked.append((now(), hop.dst, joules, sent)))
            await sleep_until(9)

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.25):
                await send_and_wait()
        behind = await transfer(fabric, "a", "c", 1000)
        return booked, arrived, behind.seconds

    booked, arrived, behind = in_world(task())
    assert booked == [(0, "b", pytest.approx(2 * 1 + 10), 1000), (pytest.approx(1.1), "c", 0, 1000)]
    assert arrived == pytest.approx([3.3]) and behind == pytest.approx(5.1 + 0.2 - 0.25)


# --- energy by hand ---


def test_energy_is_base_bytes_and_one_tail_however_often_it_is_prolonged():
    """Up 1 s: 2 W * 1 s + 0.001 * 1000 + tail 0.5 W * 10 s = 8 J. The answer, 1 s at 0.2 W, begins at 1.1 in that tail, ends at 2.1 and
    prolongs it from 11 to 12.1 s. A message at 100 s finds the radio asleep."""

    async def task():
        link = replace(AB, send=Radio(2, 0.001, 0.5, 10), receive=Radio(0.2, 0.0001, 0.5, 10))
        fabric = Fabric(network(link, BC))
        joules = [(await transfer(fabric, "a", "b", 1000)).energy_j, (await transfer(fabric, "b", "a", 2000)).energy_j]
        await sleep_until(100)
        joules.append((await transfer(fabric, "a", "c", 1000)).energy_j)
        return joules

    assert in_world(task()) == pytest.approx([2 + 1 + 5, 0.2 + 0.2 + 0.5 * 1.1, 8])


def test_two_worlds_have_two_radios():
    link = replace(AB, send=Radio(tail_w=1, tail_s=1))
    net = network(link)

    async def task():
        return (await transfer(Fabric(net), "a", "b", 1000)).energy_j

    async def main():
        return await gather(asyncio.get_running_loop().spawn(World(str(i)), task()) for i in range(3))

    assert run(main()) == [1, 1, 1]


# --- jitter and loss ---


def many(link, seed, n=2000, nbytes=1000, gap=1000.0):
    async def task():
        fabric, out = Fabric(network(link), seed=seed), []
        for i in range(n):
            await sleep_until(i * gap)
            out.append(await transfer(fabric, "a", "b", nbytes))
        return out

    return in_world(task())


def test_jitter_is_exponential_around_its_mean_and_follows_the_seed():
    link = replace(AB, jitter_s=0.05)
    extra = [m.seconds - 1.1 for m in many(link, seed=1)]
    assert min(extra) > -1e-6  # times near 2e6 s carry rounding
    assert statistics.mean(extra) == pytest.approx(0.05, rel=0.1) and statistics.stdev(extra) == pytest.approx(0.05, rel=0.15)
    assert many(link, seed=1, n=50) == many(link, seed=1, n=50) != many(link, seed=2, n=50)


def test_loss_sends_frames_again_and_waits_for_the_request():
    """Each of 20 frames is sent until it is through: on average 20 / (1 - p) times."""
    link = replace(AB, up_bps=8e6, loss=0.2)
    moved = many(link, seed=3, nbytes=30_000)
    assert statistics.mean(m.sent_bytes for m in moved) == pytest.approx(30_000 / 0.8, rel=0.02)
    for m in moved:
        rounds = (m.seconds - m.sent_bytes / 1e6 - 0.1) / 0.2
        assert rounds == pytest.approx(round(rounds), abs=1e-3) and (round(rounds) > 0) == (m.sent_bytes > 30_000)
    clean = sum(m.sent_bytes == 30_000 for m in moved) / len(moved)
    assert clean == pytest.approx(0.8**20, abs=0.01)


def test_what_one_message_draws_does_not_depend_on_how_much_another_drew():
    link = replace(AB, loss=0.3, jitter_s=0.1)
    small, large = many(link, 5, n=30, nbytes=100), many(link, 5, n=30, nbytes=100_000)
    assert [round(m.seconds, 3) for m in small] != [round(m.seconds, 3) for m in large]

    async def mixed():
        fabric = Fabric(network(link), seed=5)
        await transfer(fabric, "a", "b", 100_000)
        await sleep_until(1000.0)
        return await transfer(fabric, "a", "b", 100)

    assert in_world(mixed()) == small[1]


# --- nodes by hand ---


def test_a_node_with_two_slots():
    """Jobs of 3, 1, 2 and 1 s at time 0, one of 1 s at 2.5. Slots: [0-3, then 3-4], [0-1, 1-3, 3-4]: the fourth and the late one begin at 3."""

    async def task():
        fabric = Fabric(network(slots=2))

        async def job(when, seconds):
            waited = await at(when, fabric.occupy("a", seconds))
            return waited, now()

        return await gather([job(0, 3), job(0, 1), job(0, 2), job(0, 1), job(2.5, 1)])

    assert in_world(task()) == [(0, 3), (0, 1), (1, 3), (3, 4), (0.5, 4)]


async def _cancelled_at(when, fabric, seconds, bill, **options):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout_at(when):
            await fabric.occupy("b", seconds, book=bill.append, **options)
    return now()


def test_a_running_job_is_billed_until_the_cancel_reaches_the_node():
    """Home is a, b is 0.1 s away: cancelled at 2, stopped at 2.1, and the next one begins then. The one who cancelled goes on at 2."""

    async def task():
        fabric, bill = Fabric(network(AB)), []
        gone, waited = await gather([_cancelled_at(2, fabric, 10, bill), fabric.occupy("b", 1, book=bill.append)])
        return gone, waited, bill, now()

    gone, waited, bill, end = in_world(task())
    assert gone == 2 and waited == pytest.approx(2.1) and bill == pytest.approx([2.1, 1]) and end == pytest.approx(3.1)


@pytest.mark.parametrize(("delay", "used"), [(0, 2), (0.5, 2.5), (30, 3)])
def test_the_delay_of_a_cancel_can_be_given_and_a_job_never_runs_longer_than_it_is(delay, used):
    async def task():
        fabric, bill = Fabric(network(AB)), []
        _, waited = await gather([_cancelled_at(2, fabric, 3, bill, cancel_delay_s=delay), fabric.occupy("b", 0)])
        return waited, bill

    assert in_world(task()) == (used, [used])


def test_a_waiting_job_that_is_cancelled_leaves_the_line_and_used_nothing():
    async def task():
        fabric, bill = Fabric(network(AB)), []
        first, gone, waited = await gather([fabric.occupy("b", 5), _cancelled_at(1, fabric, 100, bill), fabric.occupy("b", 1)])
        return first, gone, waited, bill, now()

    assert in_world(task()) == (0, 1, 5, [0.0], 6)


def test_a_job_cancelled_at_the_very_instant_it_gets_the_slot_passes_it_on():
    async def task():
        fabric, bill, second = Fabric(network(AB)), [], None

        async def first():
            await fabric.occupy("b", 5)
            second.cancel()  # its turn has come in this very step

        leader = asyncio.ensure_future(first())
        await asyncio.sleep(0)
        second = asyncio.ensure_future(fabric.occupy("b", 100, book=bill.append))
        third = asyncio.ensure_future(fabric.occupy("b", 1))
        await gather([leader, third])
        with pytest.raises(asyncio.CancelledError):
            await second
        return bill, third.result(), now()

    assert in_world(task()) == ([0.0], 5, 6)


# --- simpy as the oracle ---


def jobs_of(seed, n, rate, service):
    rng, t, jobs = random.Random(seed), 0.0, []
    for _ in range(n):
        t += rng.expovariate(rate)
        jobs.append((t, service(rng)))
    return jobs


def simpy_ends(jobs, stages):
    """When each job leaves the last of `stages`: (servers, seconds per unit, delay after it)."""
    env, ends = simpy.Environment(), [0.0] * len(jobs)
    resources = [simpy.Resource(env, capacity=servers) for servers, _, _ in stages]

    def process(i, start, size):
        yield env.timeout(start)
        for resource, (_, per_unit, delay) in zip(resources, stages, strict=True):
            with resource.request() as turn:
                yield turn
                yield env.timeout(size * per_unit)
            if delay:
                yield env.timeout(delay)
        ends[i] = env.now

    for i, (start, size) in enumerate(jobs):
        env.process(process(i, start, size))
    env.run()
    return ends


def ends_of(jobs, use):
    async def task():
        async def one(start, size):
            await at(start, use(size))
            return now()

        return await gather(one(*job) for job in jobs)

    return in_world(task())


def test_a_link_is_an_m_d_1_queue():
    jobs = jobs_of(1, 3000, rate=0.8, service=lambda rng: 1000)
    fabric = Fabric(network(AB))
    ends = ends_of(jobs, lambda size: transfer(fabric, "a", "b", size))
    assert ends == pytest.approx(simpy_ends(jobs, [(1, 1 / 1000, 0.1)]))
    waited = statistics.mean(end - start for end, (start, _) in zip(ends, jobs, strict=True)) - 1.1
    assert waited == pytest.approx(0.8 / (2 * (1 - 0.8)), rel=0.25), "Pollaczek-Khinchine: rho / (2 (1 - rho))"


@pytest.mark.parametrize("slots", [1, 3])
def test_a_node_is_an_m_m_c_queue(slots):
    jobs = jobs_of(2, 3000, rate=0.8 * slots, service=lambda rng: rng.expovariate(1))
    fabric = Fabric(network(slots=slots))
    ends = ends_of(jobs, lambda size: fabric.occupy("a", size))
    assert ends == pytest.approx(simpy_ends(jobs, [(slots, 1, 0)]))


def test_links_in_a_row_are_a_tandem_queue():
    jobs = jobs_of(3, 2000, rate=0.4, service=lambda rng: rng.randint(1, 2000))
    fabric = Fabric(network(AB, BC))
    ends = ends_of(jobs, lambda size: transfer(fabric, "a", "c", size))
    assert ends == pytest.approx(simpy_ends(jobs, [(1, 1 / 1000, 0.1), (1, 1 / 500, 0.2)]))


@pytest.mark.parametrize("cancels", [True, False])
def test_jobs_that_lose_patience_leave_the_queue_as_in_simpy(cancels):
    """Each job gives up after its patience; if it was running, its slot is held until the cancel has reached the node, or to the end if it cannot cancel."""
    rng = random.Random(4)
    jobs = [(start, size, rng.expovariate(0.4)) for start, size in jobs_of(4, 2000, rate=2.0, service=lambda rng: rng.expovariate(1))]
    delay, used = 0.1, [-1.0] * len(jobs)
    env = simpy.Environment()
    node = simpy.Resource(env, capacity=2)

    def process(i, start, size, patience):
        yield env.timeout(start)
        with node.request() as turn:
            yield turn | env.timeout(patience)
            used[i] = 0.0
            if turn.triggered:
                left = start + patience - env.now
                used[i] = size if size < left or not cancels else min(size, left + delay)
                yield env.timeout(used[i])

    for i, job in enumerate(jobs):
        env.process(process(i, *job))
    env.run()

    fabric = Fabric(network(AB, slots=2, cancels=cancels))
    bill: dict[int, float] = {}

    async def task():
        async def one(i, start, size, patience):
            await sleep_until(start)
            try:
                async with asyncio.timeout(patience):
                    await fabric.occupy("b", size, book=lambda seconds: bill.__setitem__(i, seconds))
            except TimeoutError:
                pass

        await gather(one(i, *job) for i, job in enumerate(jobs))

    in_world(task())
    assert 0.1 < sum(u == 0 for u in used) / len(used) < 0.9, "the case is worth testing"
    assert [bill[i] for i in range(len(jobs))] == pytest.approx(used)


# --- properties ---

messages = st.lists(st.tuples(st.floats(0, 20), st.sampled_from(["up", "down"]), st.integers(0, 20_000)), min_size=1, max_size=12)


async def _send_all(fabric, plan):
    arrived = []

    async def one(i, start, way, nbytes):
        await sleep_until(start)
        moved = await transfer(fabric, *(("a", "b") if way == "up" else ("b", "a")), nbytes)
        arrived.append((i, now(), moved))

    await gather(one(i, *message) for i, message in enumerate(plan))
    return arrived


@settings(deadline=None, max_examples=60)
@given(messages, st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 2**64))
def test_a_link_keeps_the_order_of_sending_whatever_jitter_and_loss(plan, jitter_s, loss, seed):
    link = replace(AB, jitter_s=jitter_s, loss=loss)
    arrived = in_world(_send_all(Fabric(network(link), seed=seed), plan))
    for way in ("up", "down"):
        order = [i for i, _, _ in arrived if plan[i][1] == way]
        assert order == sorted(order, key=lambda i: (plan[i][0], i))
    for i, end, moved in arrived:
        start, direction, nbytes = plan[i]
        rate = 1000 if direction == "up" else 2000
        assert moved.sent_bytes >= nbytes and end - start >= nbytes / rate + 0.1 - 1e-9


@settings(deadline=None, max_examples=25)
@given(st.lists(messages, min_size=2, max_size=4))
def test_a_world_gives_the_same_timeline_alone_and_among_others(plans):
    link = replace(AB, jitter_s=0.3, loss=0.1, send=Radio(1, 1e-3, 1, 5))
    net = network(link)

    async def main(chosen):
        loop = asyncio.get_running_loop()
        return await gather(loop.spawn(World(str(i)), _send_all(Fabric(net, seed=i), plans[i])) for i in chosen)

    together = run(main(range(len(plans))))
    assert together == [run(main([i]))[0] for i in range(len(plans))]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5)), min_size=1, max_size=12), st.integers(1, 3))
def test_a_node_serves_in_order_and_never_idles_while_someone_waits(jobs, slots):
    begun = []

    async def task():
        fabric = Fabric(network(slots=slots))

        async def one(i, start, seconds):
            await sleep_until(start)
            waited = await fabric.occupy("a", seconds)
            begun.append((start + waited, i))

        await gather(one(i, *job) for i, job in enumerate(jobs))

    in_world(task())
    free, expected = [0.0] * slots, {}
    for i in sorted(range(len(jobs)), key=lambda i: (jobs[i][0], i)):
        begin = max(jobs[i][0], min(free))
        free[free.index(min(free))] = begin + jobs[i][1]
        expected[i] = begin
    assert {i: begin for begin, i in begun} == pytest.approx(expected)


def test_nodes_on_one_machine_share_its_slots():
    """Two nodes, one slot between them: the second job begins when the first is done, wherever it is asked for."""

    async def main() -> list[float]:
        nodes = {name: Node(name, "edge", 1, 1, machine="here") for name in "ab"} | {"c": Node("c", "edge", 1, 1)}
        fabric = Fabric(Network("shared", nodes, (), "a"))
        return await asyncio.gather(fabric.occupy("a", 2.0), fabric.occupy("b", 1.0), fabric.occupy("c", 1.0))

    assert run(main(), lambda calls: None) == [0.0, 2.0, 0.0]
