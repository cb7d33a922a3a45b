"""The endpoint on a port: in this process, or in a replica of Ray Serve."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.evals.start import too_late
from aiflow_agents.serve.app import app_of
from aiflow_agents.serve.door import DRAIN_S, Door, DoorThread
from aiflow_agents.serve.settings import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve_ray(settings: Settings, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve as a deployment of Ray Serve, whose replica opens hosts in the same Ray. `ready(port)` when it answers.

    The replica listens itself, on the cluster's head: through Ray Serve's proxy a request takes 10 ms of CPU more. Ray Serve starts it, looks after
    it, and starts another one where it dies. A Ray that was running before goes on; so does its Ray Serve, without this deployment.

    Raises UserError for a port that is taken.
    """
    if not settings.ray_address:
        _is_free(host, port)
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
            if late := too_late(error):
                raise late from error
            raise
    ended = threading.Event()

    def heed() -> None:
        """Ray has set handlers of its own when it started, which end the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())

    heed()  # who stops it while it still starts, stops it when it has
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
        deployment = serve.deployment(
            name="endpoint",
            num_replicas=1,
            graceful_shutdown_timeout_s=DRAIN_S + 10,
            health_check_period_s=3,
            ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
        )
        serve.run(deployment(_Replica).bind(settings.located(), host, port), name="aiflow", route_prefix=None)
        heed()
        ready(port)
        ended.wait()
    finally:
        serve.delete("aiflow")  # waits for what is under way
        if started:
            serve.shutdown()
            ray.shutdown()


class _Replica:
    """What Ray Serve starts, asks for its health, and destroys in the end."""

    def __init__(self, settings: Settings, host: str, port: int):
        self.door = DoorThread(app_of(settings), host, port)

    def check_health(self) -> None:
        self.door.check()

    def __del__(self) -> None:
        if hasattr(self, "door"):
            self.door.close()


def _is_free(host: str, port: int) -> None:
    """Raises UserError for an address at which nobody can listen."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        why = str(error.strerror or error).partition(" (")[0]
        raise UserError(f"cannot listen at {host}:{port}: {why}; take another one with --port") from None


def serve_inline(app: Any, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then let what is under way come to its end. `ready(port)` when it listens; port 0 is any that is free."""

    def opened(door: Door) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own, which end the process at once
            signal.signal(number, door.server.handle_exit)
        ready(door.port)

    previous = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn drains, and then raises the signal again for whoever handled it before
    try:
        Door(app, host, port).run(opened)
    finally:
        signal.signal(signal.SIGTERM, previous)
