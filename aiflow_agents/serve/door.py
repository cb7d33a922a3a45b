"""The door: the app on a port, in the event loop of whoever serves it.

uvicorn, with a parser and an event loop in C where `httptools` and `uvloop` are installed: `pip install 'aiflow-agents[serve]'` brings them.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from aiflow_agents.errors import AIFlowError

DRAIN_S = 30  # for which a question that is under way may go on after the door has closed
HEAD_S = 30  # that a request may take until its head is whole
MOST_HEAD = 65536  # bytes of a request before its body


class Door:
    """Listens at `host`:`port` (0: any that is free) until `close`, and then lets what is under way come to its end."""

    def __init__(self, app: Any, host: str, port: int):
        import uvicorn

        config = uvicorn.Config(
            app, host=host, port=port, http=_protocol(), ws="none", lifespan="on", access_log=False, log_level="warning", server_header=False,
            timeout_keep_alive=30, timeout_graceful_shutdown=DRAIN_S, h11_max_incomplete_event_size=MOST_HEAD,
        )  # fmt: skip
        self.server = uvicorn.Server(config)

    @property
    def port(self) -> int:
        return self.server.servers[0].sockets[0].getsockname()[1]  # type: ignore[no-any-return]

    def run(self, ready: Callable[[Door], None]) -> None:
        """Until it is closed, in this thread. `ready(self)` when it listens. Raises SystemExit where it cannot, when uvicorn has said why."""
        with asyncio.Runner(loop_factory=self.server.config.get_loop_factory()) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: Callable[[Door], None]) -> None:
        serving = asyncio.ensure_future(self.server.serve())
        while not self.server.started and not serving.done():
            await asyncio.sleep(0.02)
        if self.server.started:
            gc.collect()
            gc.freeze()  # models and modules stay: to look through them for garbage again and again is a quarter of the work
            ready(self)
        try:
            await serving
        finally:
            gc.unfreeze()

    def close(self) -> None:
        self.server.should_exit = True


class DoorThread:
    """A door with a thread and an event loop of its own, open when this is made. Raises AIFlowError where it cannot be opened."""

    def __init__(self, app: Any, host: str, port: int):
        self.door, opened = Door(app, host, port), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="door", daemon=True)
        self._thread.start()
        opened.wait()
        self.check()

    def _run(self, opened: threading.Event) -> None:
        try:
            with suppress(SystemExit):  # uvicorn has said why
                self.door.run(lambda _: opened.set())
        finally:
            opened.set()

    def check(self) -> None:
        """Raises AIFlowError where it does not stand open any more, or never did."""
        if not self.door.server.started or not self._thread.is_alive():
            raise AIFlowError(f"nothing listens at {self.door.server.config.host}:{self.door.server.config.port}; the log says why")

    def close(self) -> None:
        """Returns when all that was under way has been answered, or had its time."""
        self.door.close()
        self._thread.join(DRAIN_S + 5)


def _protocol() -> Any:
    """HTTP/1.1 as uvicorn reads it, from clients who are not trusted: a connection whose request does not come is closed; a head has an end."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    base: Any = H11Protocol
    if find_spec("httptools"):
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        base = HttpToolsProtocol

    class Protocol(base):  # type: ignore[misc]
        late: asyncio.TimerHandle | None = None  # from when it is waited for

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.late is not None:
                self.late.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            """For a request to be whole; not while one is answered, nor, as uvicorn does that, from one to the next."""
            if self.cycle is not None and not self.cycle.response_complete:
                if self.late is not None:
                    self.late.cancel()
                    self.late = None
            elif self.late is None:
                self.late = self.loop.call_later(HEAD_S, self.transport.close)

    class Limited(Protocol):
        """h11 counts by itself what `httptools` does not."""

        head, reading = 0, True  # bytes of a request's head that have come, and whether more of it are to come

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.head, self.reading = 0, True

        def on_headers_complete(self) -> None:
            self.reading = False
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.head += len(data)
            if self.reading and self.head > MOST_HEAD and not self.transport.is_closing():
                self.send_400_response("The head of this request is too long.")

    return Protocol if base is H11Protocol else Limited
