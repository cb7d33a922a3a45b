"""A model behind an OpenAI-compatible endpoint. Requests go out together, so many at a time, and one that fails fails alone.

    429, 5xx, a time-out, a broken connection  --back off, try again, until the deadline-->  CallError "failed"
    any other 4xx                              ------------------------------------------->  CallError "refused"

What such an endpoint answers is recorded, and not reproducible. Its key comes from the environment alone and is in no message, log or file.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import CallError, ModelInfo, Reply, Request, Shape, beyond_text
from aiflow_agents.models.turns import lines, spoken

if TYPE_CHECKING:
    import httpx

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FINISH = {"stop": "stop", "length": "length"}


def _plain(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http(s)://HOST/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("a key does not belong into the address: put it into an environment variable and name that in `key`")
    return url.rstrip("/")


class Endpoint(BaseModel):
    """Where a model is asked, and how patiently.

    `key` names the environment variable that holds the API key. `timeout_s` is for one try, `deadline_s` for all of them together. `logprobs`:
    whether the endpoint gives the probabilities of what it says; without them a member has no confidence.
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

    def __init__(self, info: ModelInfo, endpoint: Endpoint, *, pause: Any = time.sleep):
        import httpx

        self.info, self.endpoint, self._pause = info, endpoint, pause
        limits = httpx.Limits(max_connections=endpoint.at_once, max_keepalive_connections=endpoint.at_once)
        self._client = httpx.Client(headers=endpoint.headers(), timeout=endpoint.timeout_s, limits=limits, follow_redirects=False)
        self._path = f"{endpoint.url}/{'chat/completions' if endpoint.api == 'chat' else 'completions'}"

    def generate(self, requests: Sequence[Request]) -> list[Reply | CallError]:
        """Answer each request, at most `at_once` at a time; one that cannot be answered gives a `CallError` in its place."""
        with ThreadPoolExecutor(self.endpoint.at_once) as pool:
            return list(pool.map(self._answer, requests))

    def _answer(self, request: Request) -> Reply | CallError:
        import httpx

        if lacking := beyond_text(request):
            return CallError("refused", f"{self.info.name} is behind an HTTP endpoint, which cannot {lacking}")
        body, ends, why, tries = self._body(request), time.monotonic() + self.endpoint.deadline_s, "", 0
        for attempt in range(self.endpoint.retries + 1):
            tries, pause = attempt + 1, random.uniform(0.5, 1.0) * min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
            try:
                left = max(0.001, min(self.endpoint.timeout_s, ends - time.monotonic()))
                response = self._client.post(self._path, json=body, timeout=left)
            except httpx.TimeoutException:
                why = "it did not answer in time"
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return self._reply(response)
                why = self._hidden(f"{response.status_code} {_said(response)}")
                if response.status_code not in AGAIN:
                    return CallError("refused", f"{self.info.name} at {self.endpoint.url}: {why}")
                pause = max(pause, _asked_to_wait(response))
            if attempt == self.endpoint.retries or time.monotonic() + pause >= ends:
                break
            self._pause(pause)
        return CallError("failed", f"{self.info.name} at {self.endpoint.url}: no answer after {tries} {'try' if tries == 1 else 'tries'}: {why}")

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

    def _reply(self, response: httpx.Response) -> Reply | CallError:
        try:
            said = response.json()
            choice, used = said["choices"][0], said["usage"]
            text = choice["message"].get("content") if self.endpoint.api == "chat" else choice["text"]
            tokens_in, tokens_out = int(used["prompt_tokens"]), int(used["completion_tokens"])
            logprobs = self._logprobs(choice) if self.endpoint.logprobs else None
            return Reply(str(text or ""), (), logprobs, tokens_in, tokens_out, FINISH.get(str(choice.get("finish_reason")), "stop"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            return CallError("failed", f"{self.info.name} at {self.endpoint.url}: not an answer in OpenAI's format ({what})")

    def _logprobs(self, choice: Mapping[str, Any]) -> tuple[float, ...] | None:
        given = choice.get("logprobs")
        if not given:
            return None
        if self.endpoint.api == "chat":
            return tuple(float(token["logprob"]) for token in given["content"] or ())
        return tuple(float(value) for value in given["token_logprobs"] if value is not None)


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
