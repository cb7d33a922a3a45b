"""What goes wrong: how it is said, what it strikes, and what it does to messages and jobs (simpy is the oracle, frame by frame; properties)."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import ConfigError, Unreachable, UserError
from aiflow_agents.net import faults
from aiflow_agents.net.clock import sleep_until
from aiflow_agents.net.fabric import FRAME_BYTES, Fabric
from aiflow_agents.net.faults import Fault
from aiflow_agents.net.network import Link, Network, Node, Radio
from aiflow_agents.net.together import gather
from tests.net.conftest import in_world, now

TIERS = {"a": "device", "pad": "device", "b": "edge", "c": "cloud", "c-2": "cloud"}
AB = Link("a", "b", up_bps=8000, down_bps=16000, latency_s=0.5)  # up 1,000 bytes a second, down 2,000
LINKS = AB, Link("pad", "b", 8000, 8000), Link("b", "c", 8000, 8000, 0.5), Link("c-2", "b", 8000, 8000)
NET = Network("test", {name: Node(name, tier, 1, 1) for name, tier in TIERS.items()}, LINKS, "a")


# --- what is said ---


@pytest.mark.parametrize(
    ("text", "fault", "again"),
    [
        ("a-b down 1.0 2.0", Fault("a-b", "down", 1, 2), "a-b down 1.0 2.0"),
        (" a-b   down 1 ", Fault("a-b", "down", 1), "a-b down 1.0"),
        ("cloud dies 2", Fault("cloud", "dies", 2), "cloud dies 2.0"),
        ("any loss 5e-2", Fault("any", "loss", 0.05), "any loss 0.05"),
        ("b-any jitter 0.123456789", Fault("b-any", "jitter", 0.123456789), "b-any jitter 0.123456789"),
    ],
)
def test_a_fault_is_a_short_text_and_back(text, fault, again):
    assert Fault.parse(text) == fault and str(fault) == again and Fault.parse(again) == fault


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected WHERE WHAT NUMBER"),
        ("a-b", "expected WHERE WHAT NUMBER"),
        ("a-b breaks 1", "'breaks' is none of down, dies, loss, jitter"),
        ("a-b down", "LINK down FROM [FOR], such as 'phone-edge down 1.0 2.0': seconds from 0 on"),
        ("a-b down 1 2 3", "LINK down FROM"),
        ("a-b down -1 2", "LINK down FROM"),
        ("a-b down 1 0", "and for how many of them"),
        ("a-b down soon 2", "LINK down FROM"),
        ("c dies nan", "NODE dies AT [FOR], such as 'cloud dies 2.0'"),
        ("c dies inf", "NODE dies AT"),
        ("a-b loss 1", "1 is no share of what is sent"),
        ("a-b loss 5%", "LINK loss SHARE"),
        ("a-b jitter -0.1", "LINK jitter SECONDS"),
        ("a-b jitter 0.1 3", "a number from 0 on"),
        ("a-c down 1 2", "no link 'a-c'; expected one of a-b, pad-b, b-c, c-2-b, two tiers such as edge-cloud, any"),
        ("device-cloud loss 0.1", "no link 'device-cloud'"),
        ("b down 1", "no link 'b'"),
        ("d dies 1", "no node or tier 'd'; expected one of a, pad, b, c, c-2, device, edge, cloud"),
        ("a dies 1", "'a' is the home, where the question arises"),
        ("device dies 1", "'device' includes the home, 'a'"),
        ("any dies 1 1", "'any' includes the home"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(text, says):
    with pytest.raises(UserError) as error:
        NET.with_faults(text)
    assert says in str(error.value) and "\n" not in str(error.value) and "fault '" in str(error.value)
    with pytest.raises(UserError, match="a list of texts"):
        faults.parse("a-b down 1 2")


@pytest.mark.parametrize(
    ("where", "struck"),
    [
        ("a-b", {"ab"}),
        ("b-a", {"ab"}),
        ("b-c-2", {"c2b"}),  # a name with a hyphen
        ("device-edge", {"ab", "padb"}),
        ("pad-edge", {"padb"}),
        ("cloud-any", {"bc", "c2b"}),
        ("any", {"ab", "padb", "bc", "c2b"}),
    ],
)
def test_a_link_is_named_by_nodes_by_tiers_or_by_any(where, struck):
    names = {("a", "b"): "ab", ("pad", "b"): "padb", ("b", "c"): "bc", ("c-2", "b"): "c2b"}
    assert {names[link.a, link.b] for link in Fault.parse(f"{where} down 1").links(NET.nodes, NET.links)} == struck


def test_a_node_comes_before_a_tier_of_its_name():
    other = replace(NET, nodes={**NET.nodes, "cloud": Node("cloud", "edge", 1, 1)})
    assert set(other.with_faults("cloud dies 1").dead) == {"cloud"} and set(NET.with_faults("cloud dies 1").dead) == {"c", "c-2"}


def test_loss_and_jitter_come_on_top_and_an_unstruck_link_keeps_its_last_bit():
    net = replace(NET, links=(replace(AB, loss=0.1, jitter_s=0.25), replace(LINKS[1], loss=0.01), *LINKS[2:])).with_faults("a-b loss 0.5", "any jitter 0.5")
    (up,), (down,), (pad,) = net.route("a", "b"), net.route("b", "a"), net.route("pad", "b")
    assert up.loss == down.loss == pytest.approx(1 - 0.9 * 0.5) and up.jitter_s == down.jitter_s == 0.75
    assert pad.loss == 0.01 and net.noisy and not NET.noisy and not NET.with_faults("a-b down 1").noisy
    assert NET.with_faults("a-b loss 0.1", "a-b loss 0.1") == NET.with_faults("a-b loss 0.1") != NET  # told twice is one


FILE = """\
home: a
nodes:
  a: {tier: device, flops_rate: 1, bandwidth_Bps: 1}
  b: {tier: edge, flops_rate: 1, bandwidth_Bps: 1}
links:
  - {a: a, b: b, up_bps: 8000, down_bps: 8000, latency_s: 0.5}
faults:
  - a-b down 1.0 2.0
  - edge dies 7
"""


def test_a_file_may_have_faults_and_its_mistakes_their_line(tmp_path):
    file = tmp_path / "net.yaml"
    file.write_text(FILE)
    net = Network.load(file)
    assert list(map(str, net.faults)) == ["a-b down 1.0 2.0", "edge dies 7.0"] and net.dead == {"b": ((7.0, math.inf),)}
    assert net.with_faults("a-b down 1 2") == net
    for old, new, line, says in (("edge dies", "cloud dies", 9, "no node or tier 'cloud'"), ("a-b down 1.0", "a-b down one", 8, "LINK down FROM")):
        file.write_text(FILE.replace(old, new))
        with pytest.raises(ConfigError, match=says) as error:
            Network.load(file)
        assert error.value.line == line and error.value.key == f"faults[{line - 8}]"
    file.write_text(FILE.replace("home: a", "home: x"))
    with pytest.raises(ConfigError, match="home"):
        Network.load(file)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), max_size=6))
def test_spells_are_the_same_instants_in_order_and_apart(given_):
    found = faults.merged([(a, a + b) for a, b in given_])
    there = faults.between(found)
    assert all(one[1] < other[0] for one, other in zip(found, found[1:], strict=False))
    for half in range(60):
        instant = half / 2
        away = any(a <= instant < a + b for a, b in given_)
        assert (faults.at(found, instant) is not None) == away != any(a <= instant < b for a, b in there)
        assert faults.after(found, instant) == min([a for a, _ in found if a > instant], default=math.inf)


# --- messages ---


async def sent(fabric, plan):
    """Of each (start, src, dst, bytes): (when it arrived, bytes on links, joules); for one that never will, what was said and when."""
    out = {}

    async def one(i, start, src, dst, nbytes):
        await sleep_until(start)
        booked, number = [], i
        out[number] = None, 0, 0.0
        fabric.send(
            src, dst, nbytes, lambda: out.update({number: (now(), sum(b for _, _, b in booked), sum(j for _, j, _ in booked))}),
            book=lambda *hop: booked.append(hop), lost=lambda gone: out.update({number: (now(), str(gone), gone.node, sum(b for _, _, b in booked))}),
        )  # fmt: skip

    await gather(one(i, *message) for i, message in enumerate(plan))
    await sleep_until(10_000)
    return [out[i] for i in range(len(plan))]


def timeline(net, *plan, seed=0):
    return in_world(sent(Fabric(net, seed=seed), plan))


def test_a_message_on_the_air_is_sent_again_but_for_the_frames_that_had_arrived():
    """6,000 bytes from 0 to 6 s. At 4.2 s 3,700 of them have been there for half a second: two whole frames. The other 3,000 go again from 5.2 on."""
    arrived, nbytes, _ = timeline(NET.with_faults("a-b down 4.2 1"), (0, "a", "b", 6000))[0]
    assert (arrived, nbytes) == (pytest.approx(5.2 + 3 + 0.5), 4200 + 3000)


def test_one_that_is_all_there_is_not_sent_again_and_one_that_is_not_waits_for_its_turn():
    """1,500 bytes from 0 to 1.5, there at 2.0. With the link gone from 2.0 that is in time; from 1.9 it is not, and what comes behind it waits for it."""
    plan = (0, "a", "b", 1500), (0.5, "a", "b", 1000), (1.95, "a", "b", 500), (1.95, "b", "a", 1000)
    in_time, second, third, back = timeline(NET.with_faults("a-b down 2 1"), *plan)
    assert in_time[:2] == (2.0, 1500) and second[:2] == (pytest.approx(3 + 1 + 0.5), 500 + 1000)
    assert third[:2] == (pytest.approx(3 + 1 + 0.5 + 0.5), 500) and back[:2] == (pytest.approx(3 + 0.5 + 0.5), 1000 + 100)
    late, *_ = timeline(NET.with_faults("a-b down 1.9 1"), *plan)
    assert late[:2] == (pytest.approx(2.9 + 1.5 + 0.5), 3000)


def test_what_is_asked_for_while_the_link_is_away_sets_out_when_it_is_back():
    assert timeline(NET.with_faults("any down 1 2"), (1, "a", "b", 1000), (2.5, "a", "c", 0))[0][:2] == (4.5, 1000)
    assert timeline(NET.with_faults("any down 0 2"), (0, "a", "c", 0))[0][:2] == (3.0, 0)


def test_sending_again_takes_energy_again():
    link = replace(AB, send=Radio(base_w=2, j_per_byte=0.01, tail_w=1, tail_s=10))
    (_, nbytes, joules), = timeline(replace(NET, links=(link, *LINKS[1:])).with_faults("a-b down 0.5 1"), (0, "a", "b", 1000))  # fmt: skip
    assert nbytes == 500 + 1000 and joules == pytest.approx(2 * 1.5 + 0.01 * 1500 + 10 + 2)  # the tail from 0.5 on, prolonged by what ends at 2.5


def test_messages_to_from_and_through_a_dead_node_wait_for_it():
    """Each hop takes half a second; the first message is at b by the time that c is back."""
    for text, start, src, dst, arrives in (("c dies 0 9", 0, "a", "c", 9.5), ("c dies 1 9", 1, "c", "a", 11), ("b dies 1 9", 1, "c", "a", 11)):
        assert timeline(NET.with_faults(text), (start, src, dst, 0))[0][0] == arrives


def test_a_message_that_never_can_arrive_says_so_as_soon_as_that_is_known():
    net = NET.with_faults("c dies 2", "b-c down 1 0.5")
    assert timeline(net, (0, "a", "c", 1000))[0] == (2.0, "c died after 2 s, for good", "c", 1500)  # at b at 1.5, and half of it sent on
    assert timeline(net, (0, "a", "c", 0))[0] == (1.0, 0, 0.0)
    lost = timeline(NET.with_faults("a-b down 0.5"), (0, "a", "c", 1000))[0]
    assert lost == (0.5, "the link a-b went away after 0.5 s, for good", "", 500)

    async def later():
        await sleep_until(2.0)
        fabric = Fabric(net)
        with pytest.raises(Unreachable, match="c died after 2 s"):
            fabric.send("a", "c", 10, lambda: None)
        with pytest.raises(Unreachable) as error:
            fabric.weighs("c", "a", 10)
        return pickle.loads(pickle.dumps(error.value)).node

    assert in_world(later()) == "c"


def simpy_frames(plan, outages, rate, latency):
    """Frame by frame: one sender, who takes up every frame again that was on the air when the link went away. (arrival, bytes sent) of each message."""
    env = simpy.Environment()
    queue: list[list[float]] = []  # [message, bytes] of frames, in the order of the messages
    flying: list[list[float]] = []
    left, sent_bytes, arrived = [0] * len(plan), [0.0] * len(plan), [0.0] * len(plan)
    state = {"up": True, "woken": env.event(), "frame": None}

    def wake():
        if not state["woken"].triggered:
            state["woken"].succeed()

    def fly(entry):
        yield env.timeout(latency)
        if any(entry is other for other in flying):
            flying[:] = [other for other in flying if other is not entry]
            left[entry[0]] -= 1
            if not left[entry[0]]:
                arrived[entry[0]] = env.now

    def sender():
        while True:
            while not (state["up"] and queue):
                state["woken"] = env.event()
                yield state["woken"]
            entry, began = queue.pop(0), env.now
            state["frame"] = entry
            try:
                yield env.timeout(entry[1] / rate)
                sent_bytes[entry[0]] += entry[1]
                flying.append(entry)
                env.process(fly(entry))
            except simpy.Interrupt:
                sent_bytes[entry[0]] += (env.now - began) * rate
                queue.insert(0, entry)
            state["frame"] = None

    def messages():
        for i, (start, nbytes) in sorted(enumerate(plan), key=lambda item: item[1][0]):
            yield env.timeout(start - env.now)
            sizes = [FRAME_BYTES] * (nbytes // FRAME_BYTES) + [nbytes % FRAME_BYTES] * (nbytes % FRAME_BYTES > 0)
            left[i] = len(sizes)
            queue.extend([i, size] for size in sizes)
            wake()

    def weather(process):
        for begins, ends in outages:
            yield env.timeout(begins - env.now)
            state["up"] = False
            if state["frame"] is not None:
                process.interrupt()
                yield env.timeout(0)  # the frame is back in the queue
            queue[:0] = [entry[:] for entry in flying]
            queue.sort(key=lambda entry: order[entry[0]])
            flying.clear()
            yield env.timeout(ends - env.now)
            state["up"] = True
            wake()

    order = {i: place for place, (i, _) in enumerate(sorted(enumerate(plan), key=lambda item: item[1][0]))}
    env.process(messages())
    env.process(weather(env.process(sender())))
    env.run(until=5000)
    assert not any(left)
    return list(zip(arrived, sent_bytes, strict=True))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20_000)), min_size=1, max_size=8, unique_by=lambda message: message[0]),
    st.lists(st.tuples(st.floats(0.01, 40), st.floats(0.1, 10)), min_size=1, max_size=4),
)
def test_a_link_that_goes_away_is_as_in_simpy_frame_by_frame(plan, outages):
    aside = 1 / 8191  # who comes first at one instant is another question
    net = NET.with_faults(*(Fault("a-b", "down", begins + aside, lasts) for begins, lasts in outages))
    ours = timeline(net, *((start, "a", "b", nbytes) for start, nbytes in plan))
    theirs = simpy_frames(plan, faults.spells(net.faults), 1000, 0.5)
    edges = [edge for hop in net.route("a", "b") for spell in hop.open for edge in spell]
    for (arrived, nbytes, _), (when, sent_bytes) in zip(ours, theirs, strict=True):
        assert arrived == pytest.approx(when, abs=1e-6)
        assert nbytes == pytest.approx(sent_bytes, abs=len(edges))  # part of a frame is whole bytes


plans = st.lists(st.tuples(st.floats(0, 20), st.sampled_from([("a", "b"), ("b", "a"), ("a", "c"), ("c", "pad")]), st.integers(0, 9000)), min_size=1, max_size=8)
outage = st.tuples(st.sampled_from(["a-b", "b-c", "any", "b", "c"]), st.floats(0, 25), st.floats(0.1, 6))


@settings(deadline=None, max_examples=40)
@given(plans, st.lists(outage, min_size=1, max_size=4), st.floats(0, 0.4), st.floats(0, 0.4), st.integers(0, 2**32))
def test_faults_keep_the_order_and_make_nothing_earlier_or_lighter(plan, outages, jitter_s, loss, seed):
    """Whatever chance has in store, which is the same with and without them; nor is anything heavier than `weighs` has said."""
    net = replace(NET, links=tuple(replace(link, jitter_s=jitter_s, loss=loss, send=Radio(1, 1e-3)) for link in NET.links))
    plan = sorted((start, *way, nbytes) for start, way, nbytes in plan)
    struck = net.with_faults(*(Fault(where, "dies" if len(where) == 1 else "down", begins, lasts) for where, begins, lasts in outages))

    async def weighed():
        fabric, most = Fabric(struck, seed=seed), []
        for start, src, dst, nbytes in plan:
            await sleep_until(start)
            most.append(fabric.weighs(src, dst, nbytes))
            fabric.send(src, dst, nbytes, lambda: None)
        return most

    before, after, most = timeline(net, *plan, seed=seed), timeline(struck, *plan, seed=seed), in_world(weighed())
    for calm, stormy, bound in zip(before, after, most, strict=True):
        assert stormy[0] >= calm[0] - 1e-9 and calm[1] <= stormy[1] <= bound and stormy[2] >= calm[2] - 1e-9
    for way in {message[1:3] for message in plan}:
        arrivals = [after[i][0] for i, message in enumerate(plan) if message[1:3] == way]
        assert arrivals == sorted(arrivals)
    for (arrived, *_), (_, src, dst, _) in zip(after, plan, strict=True):
        assert any(opens <= arrived <= closes for opens, closes in struck.route(src, dst)[-1].open)


# --- jobs ---


async def work(fabric, *jobs, patience=math.inf):
    """Of each (start, seconds) on node b: (how it ended, when, seconds billed)."""
    import asyncio

    out = {}

    async def one(i, start, seconds):
        await sleep_until(start)
        bill = []
        try:
            async with asyncio.timeout(None if patience == math.inf else patience):
                await fabric.occupy("b", seconds, book=bill.append)
            how = "done"
        except Unreachable as gone:
            how = str(gone)
        except TimeoutError:
            how = "given up"
        out[i] = how, now(), *bill

    await gather(one(i, *job) for i, job in enumerate(jobs))
    return [out[i] for i in range(len(jobs))]


def test_what_runs_on_a_node_that_dies_is_billed_so_far_and_its_line_dies_with_it():
    fabric = Fabric(NET.with_faults("b dies 2 3"))
    jobs = (0, 1), (0, 5), (0, 1), (2, 1), (4.9, 1), (5, 1), (5, 2)
    dead = "b died after 2 s"
    assert in_world(work(fabric, *jobs)) == [
        ("done", 1, 1), (dead, 2, 1), (dead, 2, 0), (dead, 2, 0), (dead, 4.9, 0), ("done", 6, 1), ("done", 8, 2)
    ]  # fmt: skip


def test_a_job_that_ends_as_its_node_dies_is_done_and_a_cancelled_one_is_billed_no_longer_than_it_lives():
    assert in_world(work(Fabric(NET.with_faults("b dies 2")), (0, 2), (0, 1))) == [("done", 2, 2), ("b died after 2 s", 2, 0)]
    given_up = in_world(work(Fabric(NET.with_faults("b dies 2 1")), (0, 9), patience=1.75))  # the cancel would be there at 2.25
    assert given_up == [("given up", 1.75, 2)]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 4)), min_size=1, max_size=10), st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 3)), max_size=3), st.integers(1, 3))
def test_nothing_runs_on_a_dead_node_and_all_slots_are_free_afterwards(jobs, deaths, slots):
    net = replace(NET, nodes={**NET.nodes, "b": replace(NET.nodes["b"], slots=slots)}).with_faults(*(Fault("b", "dies", *death) for death in deaths))
    dead = net.dead.get("b", ())
    ended = in_world(work(Fabric(net), *jobs, *((1000, 1) for _ in range(slots))))
    assert ended[len(jobs) :] == [("done", 1001, 1)] * slots
    for (how, when, used), (start, seconds) in zip(ended[: len(jobs)], jobs, strict=True):
        begun = when - used
        if how == "done":
            assert used == seconds and not any(begun < a < when - 1e-9 or a <= begun < b - 1e-9 for a, b in dead)  # `begun` is rounded
        else:
            assert used < seconds or seconds == used == 0
            assert faults.at(dead, when) is not None and faults.at(dead, start) in (None, faults.at(dead, when))
