"""Links of a network as throttled relays on this machine: `python -m aiflow_agents.net.relay`, a process of its own.

    sender --TCP--> relay --at the link's rate, its latency later--> TCP --> receiver

It reads what to do from its first line of input, [[rate in bit/s, latency in s, port of the receiver], ...], a link one way each, answers with a line
of the ports at which it listens, and ends with its input. What comes is a frame: its length, the microseconds that it is late beside (both 32 bits),
then its bytes. Its timers are off by some microseconds, those of a usual event loop by up to a millisecond, which is as much as a Wi-Fi takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import struct
import sys
from functools import partial

HEADER = struct.Struct("!II")
CHUNK = 1500  # bytes that leave together: an Ethernet frame
LOOPBACK = "127.0.0.1"


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate_bps: float, latency_s: float) -> None:
    """Pass frames on, each when its last bit would be there, in the order in which they came, until the sender closes."""
    loop, free_at, last = asyncio.get_running_loop(), 0.0, 0.0
    on_the_way: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()

    async def deliver() -> None:
        while (one := await on_the_way.get()) is not None:
            due, data = one
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            writer.write(data)
            await writer.drain()

    delivering = asyncio.ensure_future(deliver())
    try:
        while True:
            length, late_us = HEADER.unpack(await reader.readexactly(HEADER.size))
            begun, sent = loop.time(), HEADER.pack(length, late_us)
            free_at = max(begun, free_at)
            while length:
                data = await reader.readexactly(min(length, CHUNK))
                length -= len(data)
                free_at += len(data) * 8 / rate_bps
                last = max(last, free_at + latency_s + late_us * 1e-6)
                on_the_way.put_nowait((last, sent + data))
                sent = b""
            if sent:  # a frame without bytes
                on_the_way.put_nowait((max(last, free_at + latency_s + late_us * 1e-6), sent))
    except asyncio.IncompleteReadError:
        on_the_way.put_nowait(None)
        await delivering
    finally:
        delivering.cancel()
        writer.close()


async def passing(rate_bps: float, latency_s: float, to: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One sender has connected: pass on what it sends to the receiver at port `to`."""
    with contextlib.suppress(ConnectionError, asyncio.CancelledError):  # an end has gone
        await relay(reader, (await asyncio.open_connection(LOOPBACK, to))[1], rate_bps, latency_s)
    writer.close()


async def serve(ways: list[tuple[float, float, int]]) -> None:
    """Listen for each of these ways, tell the ports, and stay until the input ends."""
    servers = [await asyncio.start_server(partial(passing, *way), LOOPBACK, 0) for way in ways]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    print(json.dumps(ports), flush=True)  # noqa: T201
    await asyncio.get_running_loop().connect_read_pipe(lambda: _Ending(asyncio.current_task()), sys.stdin)
    await asyncio.Event().wait()


class _Ending(asyncio.Protocol):
    """Ends the task when the input does: whoever started this process is gone, or wants it to go."""

    def __init__(self, task: asyncio.Task[None] | None):
        self.task = task

    def eof_received(self) -> None:
        if self.task is not None:
            self.task.cancel()


def main() -> None:
    ways = json.loads(sys.stdin.readline())
    with contextlib.suppress(OSError):
        os.nice(-10)  # a link does not wait for a busy machine; where that is not allowed, it does
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        with contextlib.suppress(asyncio.CancelledError):
            runner.run(serve([(float(rate), float(latency), int(port)) for rate, latency, port in ways]))


if __name__ == "__main__":
    main()
