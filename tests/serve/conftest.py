"""An endpoint whose models say what a test tells them to, asked over ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from aiflow_agents.serve.app import Endpoint, make_app
from aiflow_agents.serve.served import Models

Serve = Callable[..., Any]


@pytest.fixture
def team(stage: Any) -> Any:
    return stage.team(ann="phone", bob="phone", tim="tower")


@pytest.fixture
def serve(stage: Any, team: Any) -> Serve:
    """`serve(work)`: the result of `await work(client)`; `app` is what is served then. Options are those of an `Endpoint`."""

    def run(work: Callable[[httpx.AsyncClient], Awaitable[Any]], *, models: Models | None = None, **options: Any) -> Any:
        async def main() -> Any:
            app = make_app(Endpoint(models or Models.of([team], allowed=["debate", "self-consistency"]), stage.hosts, **options))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await asyncio.wait_for(work(client), 60)

        return asyncio.run(main())

    return run


@pytest.fixture
def post(serve: Serve) -> Serve:
    """`post(path, body)`: what one request is answered; `post(path, content=...)` sends bytes as they are."""

    def one(path: str, body: Any = None, *, content: bytes | None = None, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        sent = {"json": body} if content is None else {"content": content}
        return serve(lambda client: client.post(path, headers=headers, **sent), **options)

    return one


def chat(question: str = "q", model: str = "test", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question}], **more}
