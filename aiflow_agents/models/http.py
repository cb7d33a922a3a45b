"""A model behind an OpenAI-compatible endpoint. Requests go out together, so many at a time, and one that fails fails alone.

    429, 5xx, a time-out, a broken connection  --back off, try again, until the deadline-->  CallError "failed"
    any other 4xx                              ------------------------------------------->  CallError "refused"

Where somebody listens, answers are asked for in pieces, which are told as they come. One that breaks off is asked for again: it has to begin with
what was told, as that cannot be taken back, and goes on from there. An endpoint that knows no pieces answers at once.

What such an endpoint answers is recorded, and not reproducible. Its key comes from the environment alone and is in no message, log or file.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from aiflow_agents.errors import UserError
from aiflow_agents.models.events import AGAIN, EndpointError, Pieced, Saying, TakenBack, Tell, events
from aiflow_agents.models.protocol import CallError, ModelInfo, Reply, Request, Shape, Told, beyond_text
from aiflow_agents.models.turns import lines, spoken

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FINISH = {"stop": "stop", "length": "length"}
# how an answer is asked for where somebody listens, the next way where an endpoint refuses one; the last is how it is asked for otherwise
WAYS: tuple[dict[str, Any], ...] = ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}, {})
TOKEN_BYTES = 4  # of a prompt that nobody has counted


def _plain(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http(s)://HOST/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("a key does not belong into the address: put it into an environment variable and name that in `key`")
    return url.rstrip("/")


class Endpoint(BaseModel):
    """Where a model is asked, and how patiently.

    `key` names the environment variable that holds the API key. `timeout_s` is for one try, or for one piece of an answer that comes in pieces,
    `deadline_s` for all of them together. `logprobs`: whether the endpoint gives the probabilities of what it says; without them a member has no
    confidence. What an endpoint does not say that a streamed answer took, counts a token for each piece, and for every four bytes of the prompt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: Annotated[str, AfterValidator(_plain)]
    api: Literal["chat", "completions"] = "chat"
    key: str | None = None
    at_once: Annotated[int, Field(gt=0)] = 16
    retries: Annotated[int, Field(ge=0)] = 5
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    logprobs: bool = False
    max_context: Annotated[int, Field(ge=0)] = 0

    def headers(self) -> dict[str, str]:
        """Raises `UserError` where the variable is not set."""
        if self.key is None:
            return {}
        if not os.environ.get(self.key):
            raise UserError(f"the environment variable {self.key}, which holds the key for {self.url}, is not set")
        return {"Authorization": f"Bearer {os.environ[self.key]}"}


def http_info(model: str, endpoint: Endpoint, shape: Shape) -> ModelInfo:
    """What is known of a model behind an endpoint: nothing of its weights, so `shape` (`costs_as` in a team file) says what it costs."""
    where = hashlib.sha256(f"{endpoint.url} {endpoint.api} {model}".encode()).hexdigest()
    capabilities = frozenset({"logprobs"} if endpoint.logprobs else ())
    return ModelInfo(model, where, where, "http", "recorded", shape, capabilities, endpoint.max_context)


class HttpModel:
    """Answers requests through an endpoint. Raises `UserError` where its key is not set."""

    streams = True

    def __init__(self, info: ModelInfo, endpoint: Endpoint, *, pause: Any = time.sleep):
        import httpx

        self.info, self.endpoint, self._pause = info, endpoint, pause
        limits = httpx.Limits(max_connections=endpoint.at_once, max_keepalive_connections=endpoint.at_once)
        self._client = httpx.Client(headers=endpoint.headers(), timeout=endpoint.timeout_s, limits=limits, follow_redirects=False)
        self._path = f"{endpoint.url}/{'chat/completions' if endpoint.api == 'chat' else 'completions'}"
        self._way = 0  # the first of WAYS that this endpoint has not refused

    def generate(self, requests: Sequence[Request], told: Told | None = None) -> list[Reply | CallError]:
        """Answer each request, at most `at_once` at a time; one that cannot be answered gives a `CallError` in its place.

        `told` hears the text of answers, as it comes, where the endpoint gives it in pieces.
        """
        tell = [told and partial(told, i) for i in range(len(requests))]
        with ThreadPoolExecutor(self.endpoint.at_once) as pool:
            return list(pool.map(self._answer, requests, tell))

    def _answer(self, request: Request, tell: Tell | None) -> Reply | CallError:
        import httpx

        if lacking := beyond_text(request):
            return CallError("refused", f"{self.info.name} is behind an HTTP endpoint, which cannot {lacking}")
        body, ends, why, tries = self._body(request), time.monotonic() + self.endpoint.deadline_s, "", 0
        saying = None if tell is None else Saying(tell)
        for attempt in range(self.endpoint.retries + 1):
            tries, pause = attempt + 1, random.uniform(0.5, 1.0) * min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            try:
                return self._ask(body, ends, saying)
            except httpx.TimeoutException:
                why = "it did not answer in time"
            except httpx.RequestError as error:
                why = f"{type(error).__name__}: {error}"
            except EndpointError as error:
                why, pause = self._hidden(str(error)), max(pause, error.wait_s)
                if error.kind:
                    return self._error(error.kind, why)
            except TakenBack:
                return self._error("failed", f"its answer broke off ({why}), and was another one when it was asked for again")
            if attempt == self.endpoint.retries or time.monotonic() + pause >= ends:
                break
            self._pause(pause)
        return self._error("failed", f"no answer after {tries} {'try' if tries == 1 else 'tries'}: {why}")

    def _error(self, kind: str, why: str) -> CallError:
        return CallError(kind, f"{self.info.name} at {self.endpoint.url}: {why}")

    def _ask(self, body: dict[str, Any], ends: float, saying: Saying | None) -> Reply:
        """One try, in the first way that the endpoint does not refuse. Raises EndpointError, TakenBack and httpx.RequestError."""
        for way in range(len(WAYS) - 1 if saying is None else self._way, len(WAYS)):
            left = max(0.001, min(self.endpoint.timeout_s, ends - time.monotonic()))
            with self._client.stream("POST", self._path, json=body | WAYS[way], timeout=left) as response:
                if response.status_code == 200:
                    reply = self._received(response, body, ends, saying)
                    if saying is not None:
                        saying.end(reply.text)
                        self._way = way
                    return reply
                response.read()
                if response.status_code in AGAIN:
                    raise EndpointError(f"{response.status_code} {_said(response)}", wait_s=_asked_to_wait(response))
                if response.status_code not in (400, 422) or way == len(WAYS) - 1:  # else it may be the way that it refuses
                    break
        raise EndpointError(f"{response.status_code} {_said(response)}", "refused")

    def _received(self, response: httpx.Response, body: Mapping[str, Any], ends: float, saying: Saying | None) -> Reply:
        """What the endpoint says, at once or in pieces, the latter told as they come."""
        try:
            if saying is None or "text/event-stream" not in response.headers.get("content-type", ""):
                response.read()
                return self._reply(response.json())
            pieced = Pieced(self.endpoint.api == "chat")
            for data in events(_until(response, ends, pieced)):
                pieced.add(data)
                saying.add(pieced.text)
            if not pieced.whole:
                raise EndpointError("the stream ended too soon")
            prompt = body["prompt"] if "prompt" in body else "".join(turn["content"] for turn in body["messages"])
            return self._reply(pieced.body(-(-len(prompt.encode()) // TOKEN_BYTES)))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(f"not an answer in OpenAI's format ({type(error).__name__}: {error})", "failed") from error

    def _hidden(self, said: str) -> str:
        """Endpoints repeat a wrong key in their answer; nobody else shall."""
        key = os.environ.get(self.endpoint.key or "")
        return said.replace(key, "***") if key else said

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.info.name, "max_tokens": request.max_tokens, "temperature": request.sampling.temperature}
        if self.endpoint.api == "chat":
            body["messages"] = [{"role": turn.role, "content": spoken(turn)} for turn in request.messages]
        else:
            body["prompt"] = lines(request.messages)
        if request.sampling.temperature > 0:
            body |= {"top_p": request.sampling.top_p, "seed": request.seed & 0x7FFFFFFF}
        if request.stop:
            body["stop"] = list(request.stop)
        if self.endpoint.logprobs:
            body["logprobs"] = True if self.endpoint.api == "chat" else 1
        return body

    def _reply(self, said: Mapping[str, Any]) -> Reply:
        """Raises what reading raises where this is none."""
        choice, used = said["choices"][0], said["usage"]
        text = choice["message"].get("content") if self.endpoint.api == "chat" else choice["text"]
        tokens_in, tokens_out = int(used["prompt_tokens"]), int(used["completion_tokens"])
        logprobs = self._logprobs(choice) if self.endpoint.logprobs else None
        return Reply(str(text or ""), (), logprobs, tokens_in, tokens_out, FINISH.get(str(choice.get("finish_reason")), "stop"))

    def _logprobs(self, choice: Mapping[str, Any]) -> tuple[float, ...] | None:
        given = choice.get("logprobs")
        if not given:
            return None
        if self.endpoint.api == "chat":
            return tuple(float(token["logprob"]) for token in given["content"] or ())
        return tuple(float(value) for value in given["token_logprobs"] if value is not None)


def _until(response: httpx.Response, ends: float, pieced: Pieced) -> Iterator[bytes]:
    """What comes of an answer before the deadline. Behind its end it is read only so that the connection can be used again."""
    import httpx

    try:
        for chunk in response.iter_bytes():
            yield chunk
            if time.monotonic() >= ends:
                if pieced.whole:
                    return
                raise EndpointError("it did not end in time")
    except httpx.RequestError:
        if not pieced.whole:
            raise


def _said(response: httpx.Response) -> str:
    """The endpoint's own words, one line of them."""
    try:
        error = response.json().get("error")
        text = str(error.get("message") if isinstance(error, dict) else error or response.reason_phrase)
    except (ValueError, AttributeError):
        text = response.text or response.reason_phrase
    return " ".join(text.split())[:200]


def _asked_to_wait(response: httpx.Response) -> float:
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), LONGEST_PAUSE_S)
    except ValueError:
        return 0.0  # a date: our own pause will do
