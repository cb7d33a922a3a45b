"""The endpoint as an ASGI app, the same under uvicorn and under Ray Serve.

    Gate (keys, limits) -> route -> served model -> Live -> answer, whole or in pieces
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, StreamingResponse

from aiflow_agents import __version__
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.hosts import LiveHosts, open_hosts
from aiflow_agents.runtime.live import Live
from aiflow_agents.serve.answers import Pieces, Whole, answer
from aiflow_agents.serve.gate import Gate, Keys, Limits
from aiflow_agents.serve.metrics import Metrics
from aiflow_agents.serve.openapi import ChatAnswer, CompletionsAnswer, HealthBody, ModelBody, ModelsBody, describe, responses
from aiflow_agents.serve.refusal import Answer, Refusal, of_validation
from aiflow_agents.serve.schema import ChatAsked, CompletionsAsked
from aiflow_agents.serve.served import Models, Served
from aiflow_agents.serve.settings import Settings
from aiflow_agents.serve.spelling import Spelling

Deltas = asyncio.Queue[tuple[int, str] | None]  # of choices; None when the answer is known, or it is known that there will be none


class Endpoint:
    """What answers: models, hosts, and what is counted. `open_hosts` is called when the app starts, where it runs."""

    def __init__(
        self, models: Models, open_hosts: Callable[[], LiveHosts], *, keys: Keys | None = None, limits: Limits | None = None, seed: int = 0,
        budget: Budget | None = None, pace: bool = False,
    ):  # fmt: skip
        self.models, self.keys, self.limits = models, keys or Keys(), limits or Limits()
        self.metrics, self.spelling = Metrics(), Spelling()
        self.open_hosts, self.seed, self.budget, self.pace = open_hosts, seed, budget, pace
        self._live: Live | None = None

    @property
    def live(self) -> Live:
        assert self._live is not None, "the app has not started"
        return self._live

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """From the hosts' first breath, with all models loaded, to their last."""
        teams = list({id(served.team): served.team for served in self.models if served.member is None}.values())
        hosts = self.open_hosts()  # in this thread: Ray sets signal handlers in a main one
        self._live = Live(teams[0], hosts, seed=self.seed, budget=self.budget, pace=self.pace, note=self.metrics.batch)
        try:
            await self._live.warm(*teams)
            yield
        finally:
            await self._live.close()
            await asyncio.to_thread(hosts.close)

    async def respond(self, request: Request, asked: ChatAsked | CompletionsAsked) -> Response:
        """The answer; or none any more, where the client has gone: then it is not worked out either. In pieces it begins with the first one."""
        served = self.models.find(asked.model, asked.topology)
        request.state.model = served.name
        said: Deltas = asyncio.Queue()
        hear = (lambda i, text: said.put_nowait((i, text))) if asked.stream else None
        work = asyncio.ensure_future(answer(self.live, served, asked, self.spelling, self.metrics, self.limits.answer_s, hear))
        work.add_done_callback(lambda _: said.put_nowait(None))
        first: asyncio.Future[Any] = asyncio.ensure_future(said.get()) if asked.stream else work
        gone = asyncio.ensure_future(_gone(request))
        begun = False
        try:
            await asyncio.wait((first, gone), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                return Refusal(499, "the client has gone").response()
            if first is work:
                return Answer(work.result().body())
            begun = first.result() is not None
            pieces = Pieces(served, asked)
            events = _streamed(pieces, first.result(), said, work) if begun else _each(pieces.rest(work.result()))
        finally:
            if not begun:
                work.cancel()
            first.cancel()
            gone.cancel()
        return StreamingResponse(events, media_type="text/event-stream")


def app_of(settings: Settings, models: Models | None = None) -> FastAPI:
    """The endpoint that these settings describe. Raises UserError."""
    hosts = partial(open_hosts, settings.runtime, address=settings.ray_address, host_gpus=settings.host_gpus)
    keys = Keys(digests=settings.keys)
    return make_app(Endpoint(models or settings.models(), hosts, keys=keys, limits=settings.limits, seed=settings.seed, pace=settings.pace))


def make_app(endpoint: Endpoint) -> FastAPI:
    """The routes of an endpoint."""
    app = FastAPI(title="AIFlow Agents", version=__version__, lifespan=endpoint.running, docs_url=None, redoc_url=None, redirect_slashes=False)

    refused = (400, 401, 404, 408, 413, 429, 500, 502, 503)

    @app.post("/v1/chat/completions", summary="The last message is the question.", responses=responses(ChatAnswer, *refused, streams=True))
    async def chat(asked: ChatAsked, request: Request) -> Response:
        return await endpoint.respond(request, asked)

    @app.post("/v1/completions", summary="Each prompt is a question.", responses=responses(CompletionsAnswer, *refused, streams=True))
    async def completions(asked: CompletionsAsked, request: Request) -> Response:
        return await endpoint.respond(request, asked)

    @app.get("/v1/models", summary="Teams, each under the topologies that fit it, and their members.", responses=responses(ModelsBody, 401, 500))
    async def models() -> Response:
        return Answer({"object": "list", "data": [_described(served) for served in endpoint.models]})

    @app.get("/v1/models/{name:path}", summary="One of them.", responses=responses(ModelBody, 401, 404, 500))
    async def model(name: str) -> Response:
        return Answer(_described(endpoint.models.find(name)))

    @app.get("/health", summary="Whether it answers.", responses=responses(HealthBody, 500))
    async def health() -> Response:
        return Answer({"status": "ok"})

    @app.get("/metrics", summary="For Prometheus.", responses=responses(None, 401, 500))
    async def metrics() -> Response:
        gauges = {"aiflow_requests_inside": gate.inside, "aiflow_calls_waiting": endpoint.live.dispatcher.waiting}
        return PlainTextResponse(endpoint.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    _speak(app)
    describe(app, (served.name for served in endpoint.models), bool(endpoint.keys))
    gate = Gate(None, endpoint.keys, endpoint.limits, endpoint.metrics.answered)
    app.add_middleware(_Through, gate=gate)
    return app


class _Through:
    """Puts a gate that was made before into the app's stack."""

    def __init__(self, app: Any, gate: Gate):
        gate.app = app
        self.gate = gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gate(scope, receive, send)


def _speak(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return refusal.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return of_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        said = {404: f"there is nothing at {request.url.path[:200]}", 405: f"{request.method} is not for {request.url.path[:200]}"}
        refusal = Refusal(error.status_code, said.get(error.status_code, str(error.detail)))
        return Answer(refusal.body, error.status_code, {**refusal.headers, **(error.headers or {})})

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return Refusal(500, "something is wrong here; the operator's log says what").response()


def _described(served: Served) -> dict[str, Any]:
    agents = {agent.name: {"model": agent.info.name, "node": agent.node, "tier": served.team.network.node(agent.node).tier} for agent in served.team}
    about = {"team": served.team.name, "member": served.member, "topology": None if served.member else served.topology.name(), "members": agents}
    return {"id": served.name, "object": "model", "created": 0, "owned_by": "aiflow", "aiflow": about}


async def _streamed(pieces: Pieces, said: tuple[int, str] | None, more: Deltas, work: asyncio.Future[Whole]) -> AsyncIterator[str]:
    """The events of an answer that has begun. What goes wrong now is one of them."""
    try:
        while said is not None:
            for event in pieces.delta(*said):
                yield event
            said = await more.get()
        try:
            last = pieces.rest(work.result())
        except Refusal as refusal:
            last = pieces.failed(refusal)
        for event in last:
            yield event
    finally:
        work.cancel()  # where the client has gone


async def _each(events: Any) -> AsyncIterator[str]:
    for event in events:
        yield event
        await asyncio.sleep(0)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
