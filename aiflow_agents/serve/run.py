"""The endpoint on a port: under uvicorn alone, or as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.serve.app import app_of
from aiflow_agents.serve.settings import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")
DRAIN_S = 30  # for which a question that is under way may go on after SIGTERM


def serve_ray(settings: Settings, host: str, port: int, ready: Callable[[int], None]) -> None:
    """The same as a deployment of Ray Serve, whose replica opens hosts in the same Ray. `ready(port)` when it answers.

    A Ray that was running before goes on; so does its Ray Serve, without this deployment.
    """
    import ray
    from ray import serve

    for name in ("ray._private.authentication", "ray.serve"):  # they would announce every default and every step
        logging.getLogger(name).setLevel(logging.WARNING)
    started = not ray.is_initialized()
    if started:
        here: dict[str, Any] = {} if settings.ray_address else {"include_dashboard": False}
        try:
            ray.init(address=settings.ray_address or "local", log_to_driver=False, configure_logging=False, **here)
        except Exception as error:
            if "timed out" in str(error):  # in words alone does Ray tell this from other failures
                raise UserError("Ray did not start in time; this machine may be too busy: try again, or use --runtime inline") from error
            raise
    located, ended = settings.located(), threading.Event()

    def build() -> Any:
        return app_of(located)

    def heed() -> None:
        """Ray has set handlers of its own when it started, which end the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())

    heed()  # who stops it while it still starts, stops it when it has
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "WARNING", "enable_access_log": False})
        deployment = serve.deployment(
            name="endpoint",
            num_replicas=1,
            max_ongoing_requests=settings.limits.at_once + 16,  # the gate refuses more, and says so
            graceful_shutdown_timeout_s=DRAIN_S,
            ray_actor_options={"num_cpus": 0},
        )
        serve.run(deployment(serve.ingress(build)(_Replica)).bind(), name="aiflow", route_prefix="/")
        heed()
        ready(port)
        ended.wait()
    finally:
        serve.delete("aiflow")  # waits for what is under way, while the proxy stands
        if started:
            serve.shutdown()
            ray.shutdown()


class _Replica:
    """What Ray Serve wraps the app into."""


def serve_inline(app: Any, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then let what is under way come to its end. `ready(port)` when it listens; port 0 is any that is free."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """A connection whose first request does not come is closed."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(DRAIN_S, self._late, transport)

        def _late(self, transport: Any) -> None:
            if getattr(self, "cycle", None) is None:
                transport.close()

    config = uvicorn.Config(
        app, host=host, port=port, http=Protocol, ws="none", lifespan="on", access_log=False, log_level="warning", server_header=False,
        timeout_keep_alive=30, timeout_graceful_shutdown=DRAIN_S, h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    server = uvicorn.Server(config)

    async def main() -> None:
        serving = asyncio.ensure_future(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own, which end the process at once
                signal.signal(number, server.handle_exit)
            ready(server.servers[0].sockets[0].getsockname()[1])
        await serving

    previous = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn drains, and then raises the signal again for whoever handled it before
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, previous)
