"""Refusals: every error that a client sees has OpenAI's form, whoever found it.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from aiflow_agents.errors import AIFlowError, MemberFailed, OverBudget, UserError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """What a client is told. `retry_s`: when it may try again."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_s: float | None = None):
        self.status, self.message, self.code, self.param, self.retry_s = status, message, code, param, retry_s
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_s is None else {"retry-after": str(max(1, round(self.retry_s)))}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (408, 413):  # the rest of the body is not read
            headers["connection"] = "close"
        return headers

    def response(self) -> Answer:
        return Answer(self.body, self.status, self.headers)


class Answer(JSONResponse):
    """JSON in ASCII: half a surrogate pair in somebody's text is no reason to fail."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def of_error(error: BaseException) -> Refusal:
    """What a client is told of what a question has failed with. Never more than one line, and of our own bugs only their kind."""
    if isinstance(error, MemberFailed) and error.kind == "too-long":
        return Refusal(400, str(error), code="context_length_exceeded")
    if isinstance(error, MemberFailed) and error.kind == "refused":
        return Refusal(400, str(error), code="refused")
    if isinstance(error, MemberFailed):
        return Refusal(502, str(error), code="member_failed")
    if isinstance(error, UserError | OverBudget):
        return Refusal(400, str(error), code="over_budget" if isinstance(error, OverBudget) else None)
    said = f": {error}" if isinstance(error, AIFlowError) else ""
    return Refusal(500, f"the question failed with {type(error).__name__}{said}", code="failed")


def of_validation(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """What is wrong with a body: the first mistake, named by its place."""
    if not errors:
        return Refusal(400, "the request is not valid")
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json")
    if first["type"] == "missing" and not place:
        return Refusal(400, "the body is empty; expected a JSON object")
    param = ".".join(place)
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"unrecognized request argument: {param}", code="unknown_parameter", param=param)
    said = str(first["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    return Refusal(400, f"{param or 'the body'}: {said}", param=param or None)
