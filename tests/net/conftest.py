"""What tests of virtual time need."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiflow_agents.net.clock import run
from aiflow_agents.net.world import World


def in_world(coro: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that lives alone in a world."""

    async def main() -> Any:
        return await asyncio.get_running_loop().spawn(World("w"), coro)  # type: ignore[attr-defined]

    return run(main())


def now() -> float:
    """Seconds of the world that this is asked in."""
    return asyncio.get_running_loop().time()
