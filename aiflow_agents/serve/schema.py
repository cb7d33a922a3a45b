"""What a client may ask, as OpenAI's documents have it; what is not served is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from aiflow_agents.models.protocol import Turn

MOST_CHOICES = 16  # of one prompt
MOST_ANSWERS = 128  # of one request
MOST_STEPS = 32  # no number among a topology's parameters may be larger: it may be rounds, or samples


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else [] if value is None else value


def _integer(value: Any) -> Any:
    """`1` and not `true`, `"1"` or `1.5`: clients mean what they send."""
    if isinstance(value, bool | str):
        raise ValueError("expected an integer")
    return value


def _number(value: Any) -> float:
    """What a parameter may be read as: "1e6" is a number too."""
    try:
        return float(value) if isinstance(value, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return 0.0 if isinstance(value, str) else float("inf")


INTEGER = BeforeValidator(_integer)
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Field(max_length=4)]
Prompt = Annotated[str, Field(pattern=r"\S")]
Prompts = Annotated[list[Prompt], Field(min_length=1, max_length=MOST_ANSWERS)]


def _only(*values: Any) -> Any:
    """A field of OpenAI's of which nothing but this is served. The schema says so; who asks for more is told in words."""
    return Field(default=None, json_schema_extra={"enum": [None, *values]})


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: Flag | None = None


class TopologyChoice(BaseModel):
    """How the team talks about this request: one of its topologies, with parameters."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(default=None, description="one of the team's topologies; default: the one it is served with")
    params: dict[str, Any] = {}

    @field_validator("params")
    @classmethod
    def _in_bounds(cls, params: dict[str, Any]) -> dict[str, Any]:
        for name, value in params.items():
            if name != "budget" and _number(value) > MOST_STEPS:
                raise ValueError(f"{name}={value}: at most {MOST_STEPS} in a request")
        return params


class Asked(BaseModel):
    """What chat and completions have in common. What a client may send and nothing here depends on is taken and left alone."""

    model_config = ConfigDict(extra="forbid")
    model: str
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), INTEGER] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), INTEGER] | None = None
    stop: Annotated[Stops, BeforeValidator(_listed, json_schema_input_type=Stop | Stops | None)] = []
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000), INTEGER] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Number | None = _only(0)
    frequency_penalty: Number | None = _only(0)
    logit_bias: dict[str, Number] | None = _only({})
    topology: TopologyChoice | None = Field(default=None, description="an extension: how the team talks")
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _is_served(self) -> Asked:
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise ValueError(f"{name} is not served")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def tokens(self) -> int | None:
        return self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        return False


class Part(BaseModel):
    """A part of a message's content. Only text is served."""

    model_config = ConfigDict(extra="ignore")
    type: Annotated[str, Field(json_schema_extra={"enum": ["text", "input_text"]})]
    text: Annotated[str | None, Field(json_schema_extra={"type": "string"})] = None

    @model_validator(mode="after")
    def _is_text(self) -> Part:
        if self.type not in ("text", "input_text") or self.text is None:
            raise ValueError(f"content of the type {self.type!r} is not served; expected text")
        return self


def _kind(content: Any) -> str:
    return "parts" if isinstance(content, list) else "text"


Content = Annotated[Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")], Discriminator(_kind)]


class ChatTurn(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None

    @property
    def turn(self) -> Turn:
        text = self.content if isinstance(self.content, str) else "".join(part.text or "" for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text, self.name if self.role == "user" else None)


class ChatAsked(Asked):
    """`POST /v1/chat/completions`. The last message is the question, and the user's; those before it led to it."""

    messages: Annotated[list[ChatTurn], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000), INTEGER] | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), INTEGER] | None = _only(0)
    response_format: Any = _only({"type": "text"})
    tools: Any = _only([])
    tool_choice: Any = None
    functions: Any = _only([])
    modalities: Any = None
    reasoning_effort: Any = None
    parallel_tool_calls: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _is_a_question(self) -> ChatAsked:
        if self.tools or self.functions:
            raise ValueError("tools are not served")
        if self.response_format not in (None, {"type": "text"}):
            raise ValueError("response_format is not served; expected text")
        if self.top_logprobs:
            raise ValueError("top_logprobs is not served: logprobs are those of what was said")
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last one must be the user's: it is the question")
        if not self.messages[-1].turn.content.strip():
            raise ValueError("messages: the question is empty")
        return self

    @property
    def tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)


class CompletionsAsked(Asked):
    """`POST /v1/completions`. Each prompt is a question."""

    prompt: Annotated[Prompts, BeforeValidator(_listed, json_schema_input_type=Prompt | Prompts)]
    logprobs: Annotated[int, Field(ge=0, le=5), INTEGER] | None = _only(0, 1)
    best_of: Annotated[int, INTEGER] | None = None
    echo: Flag | None = _only(False)
    suffix: str | None = _only("")

    @model_validator(mode="after")
    def _is_a_question(self) -> CompletionsAsked:
        if self.echo or self.suffix or self.best_of not in (None, self.choices):
            raise ValueError("echo, suffix and best_of are not served")
        if (self.logprobs or 0) > 1 or (self.logprobs == 1 and self.temperature):
            raise ValueError("logprobs: the likeliest other tokens are not known; expected 0, or 1 where temperature is 0")
        if len(self.prompt) * self.choices > MOST_ANSWERS:
            raise ValueError(f"{len(self.prompt)} prompts with n={self.choices}: at most {MOST_ANSWERS} answers in a request")
        return self

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None
