"""A network whose links are real: every message crosses TCP sockets of this machine, throttled as the network file says (`net.relay`).

    node --frame--> relay process --at the link's rate and latency--> node, which hears of it when its last byte has come

Bytes, joules and luck are those of the simulated network, hop by hop; seconds are the wall clock's. As many bytes are sent as the frames have.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from aiflow_agents.errors import AIFlowError
from aiflow_agents.net.fabric import Clock, Fabric, Onward
from aiflow_agents.net.network import Hop, Network
from aiflow_agents.net.relay import HEADER, LOOPBACK

PATIENCE_S = 20.0  # until the relays must stand


class Loopback:
    """The links of a network, both ways, for all that runs on one event loop.

    async with Loopback(network) as links:
        async with Live(team, pace=links) as live: ...
    """

    def __init__(self, network: Network):
        self.network = network
        self.late_s: list[float] = []  # by how much each frame came later than its link says, in the order of arrival
        self._ways: dict[tuple[str, str], _Way] = {}
        self._process: subprocess.Popen[str] | None = None

    async def __aenter__(self) -> Self:
        hops = [hop for link in self.network.links for src, dst in ((link.a, link.b), (link.b, link.a)) for hop in self.network.route(src, dst)[:1]]
        for hop in hops:
            self._ways[hop.src, hop.dst] = way = _Way(hop, self.late_s)
            await way.listen()
        asked = [(hop.rate_bps, hop.latency_s, self._ways[hop.src, hop.dst].port) for hop in hops]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aiflow_agents.net.relay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        ports = await asyncio.wait_for(asyncio.to_thread(self._ports, asked), PATIENCE_S)
        for hop, port in zip(hops, ports, strict=True):
            await self._ways[hop.src, hop.dst].connect(port)
        return self

    async def __aexit__(self, *_: object) -> None:
        for way in self._ways.values():
            way.close()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await asyncio.to_thread(self._process.wait)

    def send(self, hop: Hop, nbytes: int, late_s: float, arrived: Callable[[], None]) -> None:
        """Let so many bytes cross a link, and call `arrived` when the last is there."""
        self._ways[hop.src, hop.dst].send(nbytes, late_s, arrived)

    def _ports(self, asked: Sequence[tuple[float, float, int]]) -> list[int]:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise AIFlowError("the relays of the loopback network did not start")
        return list(json.loads(line))


class _Way:
    """One direction of a link: where frames set out, and where they come. They come in the order in which they set out."""

    def __init__(self, hop: Hop, late_s: list[float]) -> None:
        self.hop, self.late_s, self.port, self.free_at = hop, late_s, 0, 0.0
        self._server: asyncio.Server | None = None
        self._out: asyncio.StreamWriter | None = None
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()  # when it should come, and who is told

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._receive, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def connect(self, port: int) -> None:
        self._out = (await asyncio.open_connection(LOOPBACK, port))[1]

    def send(self, nbytes: int, late_s: float, arrived: Callable[[], None]) -> None:
        assert self._out is not None
        self.free_at = max(asyncio.get_running_loop().time(), self.free_at) + nbytes * 8 / self.hop.rate_bps
        self._waiting.append((self.free_at + self.hop.latency_s + late_s, arrived))
        self._out.write(HEADER.pack(nbytes, round(late_s * 1e6)) + bytes(nbytes))

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                length, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                await reader.readexactly(length)
                due, arrived = self._waiting.popleft()
                self.late_s.append(asyncio.get_running_loop().time() - due)
                arrived()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
        if self._server is not None:
            self._server.close()


class LoopbackFabric(Fabric):
    """A fabric whose messages take as long as they take."""

    __slots__ = ("links",)

    def __init__(self, links: Loopback, network: Network, *, seed: int, clock: Clock):
        super().__init__(network, seed=seed, clock=clock)
        self.links = links

    def _cross(self, hop: Hop, arrival: float, sent_bytes: int, onward: Onward) -> None:
        clock, _, position, nbytes, number, *_ = onward
        late_s = self._luck(hop, nbytes, number, position - 1)[1]
        if len(hop.open) > 1:  # a link that goes away and comes back: the relay knows nothing of that
            late_s = max(late_s, arrival - clock.time() - sent_bytes * 8 / hop.rate_bps - hop.latency_s)
        self.links.send(hop, sent_bytes, late_s, lambda: self._forward(*onward))
