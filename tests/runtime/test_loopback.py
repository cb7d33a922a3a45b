from __future__ import annotations

import asyncio

import pytest

from aiflow_agents import Team
from aiflow_agents.errors import AIFlowError
from aiflow_agents.net.network import Link, Network, Node
from aiflow_agents.runtime.live import Live
from aiflow_agents.runtime.loopback import Loopback
from aiflow_agents.runtime.run import ask
from aiflow_agents.topology.load import load_topology

NODES = {"phone": Node("phone", "device", 1e12, 1e11), "edge": Node("edge", "edge", 1e12, 1e11), "cloud": Node("cloud", "cloud", 1e12, 1e11)}


def network(**of_the_first: float) -> Network:
    first = {"up_bps": 4e5, "down_bps": 8e5, "latency_s": 0.02} | of_the_first
    return Network("three", NODES, (Link("phone", "edge", **first), Link("edge", "cloud", 1e7, 1e7, 0.01)), "phone")


def test_no_frame_is_there_before_its_link_allows_and_none_overtakes():
    """A link of 400 kbit/s sends 1,000 bytes in 20 ms, one frame after the other."""

    async def run() -> list[tuple[int, float]]:
        net = network()
        async with Loopback(net) as links:
            loop, came, (up,) = asyncio.get_running_loop(), list[tuple[int, float]](), net.route("phone", "edge")
            all_here, start = loop.create_future(), loop.time()

            def arrived(i: int) -> None:
                came.append((i, loop.time() - start))
                if i == 3:
                    all_here.set_result(None)

            for i, (nbytes, late_s) in enumerate(((1000, 0.0), (2000, 0.03), (0, 0.0), (500, 0.0))):
                links.send(up, nbytes, late_s, lambda i=i: arrived(i))
            await asyncio.wait_for(all_here, 20)
            assert links.late_s and min(links.late_s) > -0.002
            return came

    came = asyncio.run(run())
    assert [i for i, _ in came] == [0, 1, 2, 3]
    least = [0.02 + 0.02, 0.06 + 0.05, 0.06 + 0.05, 0.07 + 0.02]  # sent, and on the way; what is late holds up what comes behind it
    assert all(at > due - 0.002 for (_, at), due in zip(came, least, strict=True))


def test_a_team_answers_over_it_as_in_virtual_time(models):
    """The same text, bytes and joules; seconds are the wall clock's, and at least those of the links."""
    net = network(jitter_s=0.005)
    team = Team.of({"near": {"model": str(models[0])}, "far": {"model": str(models[1]), "tier": "cloud"}}, network=net)
    topology = load_topology("majority")
    virtual = ask(team, topology, "12+34=")

    async def run():
        async with Loopback(net) as links, Live(team, pace=links) as live:
            await live.warm()
            return await live.ask(topology, "12+34=")

    real = asyncio.run(run())
    assert real.error is None and real.answer == virtual.answer
    assert (real.usage.wire_bytes, real.usage.calls) == (virtual.usage.wire_bytes, virtual.usage.calls)
    ways = net.latency_s("phone", "cloud") + net.latency_s("cloud", "phone")
    assert real.usage.latency_s > ways


def test_relays_end_with_who_started_them():
    async def run() -> int | None:
        async with Loopback(network()) as links:
            process = links._process
            assert process is not None and process.poll() is None
        return process.poll()

    assert asyncio.run(run()) == 0


def test_relays_that_do_not_start_are_an_error(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/true")

    async def run() -> None:
        async with Loopback(network()):
            pass

    with pytest.raises(AIFlowError, match="did not start"):
        asyncio.run(run())
