"""What the endpoint says of itself at /openapi.json: what comes back, and with which status. What may be asked is `serve.schema`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

STATUSES = {
    400: "The request is not valid, or asks for what is not served: `param` says where.",
    401: "An API key is needed, or this one is not known.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too many requests a second.",
    500: "Something is wrong here.",
    502: "A member could not answer.",
    503: "There is no room for one more, or the answer took too long.",
}


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Refused(BaseModel):
    """Every error, in OpenAI's form."""

    error: Error


class Extra(BaseModel):
    """`over_budget`: what was spent before all was said."""

    confidence: float | None
    over_budget: str | None


class ChoiceBody(BaseModel):
    index: int
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None
    aiflow: Extra


class ChatWords(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ChoiceBody):
    message: ChatWords


class TextChoice(ChoiceBody):
    text: str


class Bill(BaseModel):
    """FLOPs, bytes on links, joules and seconds; who spent them, by member, by node and by link."""

    model_config = ConfigDict(extra="allow")
    calls: int
    flops: float
    wire_bytes: int
    energy_j: float
    seconds: float
    members: dict[str, dict[str, Any]]
    nodes: dict[str, dict[str, Any]]
    links: dict[str, int]


class UsageBody(BaseModel):
    """Of all members together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    aiflow: Bill


class AnswerBody(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: UsageBody


class ChatAnswer(AnswerBody):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionsAnswer(AnswerBody):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelBody(BaseModel):
    """A team under a topology, or a member."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aiflow: dict[str, Any]


class ModelsBody(BaseModel):
    object: Literal["list"]
    data: list[ModelBody]


class HealthBody(BaseModel):
    status: Literal["ok"]


def responses(body: type[BaseModel] | None, *refused: int, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """What a route answers with: `body` (None: plain text), or server-sent events where it `streams` and they are asked for, or a refusal."""
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    well: dict[str, Any] = {"description": "The answer."}
    well |= {"content": {"text/plain": {"schema": {"type": "string"}}}} if body is None else {"model": body}
    if streams:
        well["content"] = {"text/event-stream": {"schema": event}}
    told: dict[int | str, dict[str, Any]] = {200: well}
    return told | {status: {"description": STATUSES[status], "model": Refused} for status in refused}


def describe(app: FastAPI, models: Iterable[str], keys: bool) -> None:
    """Let /openapi.json say what is true: mistakes are 400 and not FastAPI's 422, which models there are, and whether keys are asked for."""
    served = sorted(models)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            told = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path, methods in told["paths"].items():
                for said in methods.values():
                    said["responses"].pop("422", None)
                    for parameter in said.get("parameters", ()):
                        parameter["schema"]["enum"] = served
                    if path == "/metrics":
                        said["responses"]["200"]["content"].pop("application/json", None)
                    if keys and path != "/health":
                        said["security"] = [{"key": []}]
            for unused in ("HTTPValidationError", "ValidationError"):
                told["components"]["schemas"].pop(unused, None)
            for asked in ("ChatAsked", "CompletionsAsked"):
                told["components"]["schemas"][asked]["properties"]["model"]["enum"] = served
            if keys:
                told["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = told
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
