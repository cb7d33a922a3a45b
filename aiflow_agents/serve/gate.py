"""The gate: keys and limits, held before anything is read of what a client wants.

    key? --401   its rate? --429   room for one more? --503   all of the body, in time and not too large? --408, 413   --> the app
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from aiflow_agents.serve.refusal import Refusal

OPEN = ("/health",)  # needs no key
MOST_CLIENTS = 10_000  # whose rate is remembered
WAIT_S = 1.0  # after which a client may come again when there is no room


class Limits(BaseModel):
    """What a client may take. `rate` are requests a second, of one key or, where there are no keys, one address; 0 is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    body_bytes: Annotated[int, Field(gt=0)] = 1_000_000
    body_s: Annotated[float, Field(gt=0)] = 10.0
    answer_s: Annotated[float, Field(gt=0)] = 120.0
    rate: Annotated[float, Field(ge=0)] = 0.0
    burst: Annotated[int, Field(gt=0)] = 20
    at_once: Annotated[int, Field(gt=0)] = 256


class Keys:
    """The keys that are let in. Kept as digests; compared in a time that says nothing."""

    def __init__(self, keys: Sequence[str] = (), *, digests: Sequence[bytes] = ()):
        self.digests = [*digests, *(hashlib.sha256(key.encode()).digest() for key in keys)]

    def __bool__(self) -> bool:
        return bool(self.digests)

    def who(self, authorization: bytes) -> str | None:
        """A name for whoever brings this header, which is not its key; None where that is no key of ours."""
        scheme, _, key = authorization.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        found = [hmac.compare_digest(digest, known) for known in self.digests]  # all of them, always
        return f"key {found.index(True)}" if any(found) and scheme.lower() == b"bearer" else None


class Rates:
    """Buckets of tokens, one a client: `rate` come in a second, `burst` find room."""

    def __init__(self, rate: float, burst: int, now: Callable[[], float] = time.monotonic):
        self.rate, self.burst, self._now = rate, burst, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens, and when

    def wait_s(self, client: str) -> float:
        """Take a token. 0, or for how many seconds there is none."""
        if not self.rate:
            return 0.0
        now = self._now()
        tokens, then = self._buckets.pop(client, (float(self.burst), now))
        tokens = min(self.burst, tokens + (now - then) * self.rate)
        self._buckets[client] = tokens - (tokens >= 1), now
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if tokens >= 1 else (1 - tokens) / self.rate


class Gate:
    """ASGI middleware. Who asks under `/v1` with POST is counted, against a rate and against the room that there is."""

    def __init__(self, app: Any, keys: Keys, limits: Limits, told: Callable[[str, int, float], None]):
        self.app, self.keys, self.limits, self.told = app, keys, limits, told
        self.rates = Rates(limits.rate, limits.burst)
        self.inside = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500
        counted = scope["method"] == "POST"
        self.inside += counted

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope.setdefault("state", {})["model"] = ""
        try:
            receive = await self._enter(scope, receive) if counted else await self._look(scope, receive)
            await self.app(scope, receive, noting)
        except Refusal as refusal:
            await refusal.response()(scope, receive, noting)
        finally:
            self.inside -= counted
            self.told(scope["state"]["model"], status, time.monotonic() - began)

    async def _look(self, scope: dict[str, Any], receive: Any) -> Any:
        self._client(scope)
        return receive

    async def _enter(self, scope: dict[str, Any], receive: Any) -> Any:
        client = self._client(scope)
        if wait_s := self.rates.wait_s(client):
            raise Refusal(429, f"more than {self.limits.rate:g} requests a second", code="rate_limit_exceeded", retry_s=wait_s)
        if self.inside > self.limits.at_once:
            raise Refusal(503, f"{self.limits.at_once} requests are being answered; try again", code="overloaded", retry_s=WAIT_S)
        return await self._read(scope, receive)

    def _client(self, scope: dict[str, Any]) -> str:
        if not self.keys:
            return (scope.get("client") or ("unknown", 0))[0]
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        who = self.keys.who(headers[0]) if headers else None
        if who is None:
            said = "the API key is not one of this endpoint's" if headers else "an API key is needed: Authorization: Bearer KEY"
            raise Refusal(401, said, code="invalid_api_key")
        return who

    async def _read(self, scope: dict[str, Any], receive: Any) -> Any:
        """All of the body at once; whoever reads it afterwards hears of nothing else but that the client has gone."""
        most, parts, size = self.limits.body_bytes, [], 0
        too_large = Refusal(413, f"the body has more than {most:,} bytes", code="request_too_large")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length[:20]) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the request was not finished")
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > most:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {self.limits.body_s:g} seconds") from None
        whole: list[Any] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def replay() -> Any:
            return whole.pop() if whole else await receive()

        return replay
