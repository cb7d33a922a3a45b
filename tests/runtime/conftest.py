"""What tests of the real clock need."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiflow_agents.runtime.live import Live


def live(team: Any, hosts: Any, work: Callable[[Live], Awaitable[Any]], **options: Any) -> Any:
    """The result of `await work(now)`, where `now` answers with this team under the real clock."""

    async def main() -> Any:
        async with Live(team, hosts, **options) as now:
            return await asyncio.wait_for(work(now), 60)

    return asyncio.run(main())
