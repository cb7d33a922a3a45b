"""Hosts for a command: Ray started so that what goes wrong is one line, and Ctrl-C is not lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiflow_agents import telemetry_off
from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import Model
from aiflow_agents.runtime.hosts import Hosts, open_hosts


def start_hosts(runtime: str, ray_address: str | None = None, *, models: Mapping[str, Model] | None = None, **options: Any) -> Hosts:
    """`open_hosts`, with telemetry off and one line where no cluster is at that address: Ray itself looks for minutes and then ends the process."""
    telemetry_off()
    if runtime != "ray":
        return open_hosts(runtime, models=models)
    import ray

    was_there = ray.is_initialized()
    try:
        host, _, port = (ray_address or "").rpartition(":")
        if host and port.isdigit() and "://" not in host:
            import socket

            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        with _patience():
            return open_hosts(runtime, address=ray_address, models=models, **options)
    except BaseException as error:
        if not was_there:
            ray.shutdown()
        if ray_address and isinstance(error, OSError | ValueError):  # ConnectionError is an OSError
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"no Ray cluster at {ray_address}: {why}; start one with `ray start --head`, or leave --ray-address out") from error
        if isinstance(error, Exception) and (late := too_late(error)):
            raise late from error
        raise


def too_late(error: Exception) -> UserError | None:
    """What to say where Ray did not start in time: in words alone does it tell this from other failures."""
    if "timed out" not in str(error):
        return None
    return UserError("Ray did not start in time; this machine may be too busy: try again, or use --runtime inline")


@contextmanager
def _patience() -> Iterator[None]:
    """Let Ctrl-C wait until Ray has started, which forks and imports: in there it can be swallowed. A second one does not wait."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def remember(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
