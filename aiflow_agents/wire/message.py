"""What one agent says to another: a message has a place.

Its text can be read only where it is. Topology code runs at `team.home`; to read a message there, move it: `await message.to(node)`. Handing it to
an agent moves it to that agent's node. Either way the move is priced, once per destination. `id`, `author`, `node` and `size` are free to read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from aiflow_agents.errors import NotHere
from aiflow_agents.wire.frame import encode_text

Form = Literal["text", "answer"]
HERE: ContextVar[str | None] = ContextVar("aiflow_here", default=None)  # the node on which this code runs; None outside of any run
Mover = Callable[[Iterable["Message"], str], Awaitable[None]]
MOVER: ContextVar[Mover | None] = ContextVar("aiflow_mover", default=None)  # how messages travel in the current world


@contextmanager
def standing_at(node: str) -> Iterator[None]:
    """Code inside runs on `node`: a decision that is taken there. Must not wait inside; what it reads has to be there already."""
    token = HERE.set(node)
    try:
        yield
    finally:
        HERE.reset(token)


@dataclass(frozen=True, slots=True)
class Usage:
    """What something cost. `latency_s` is from home to home for a task, and from call to answer for one call. Adding adds all but nothing else."""

    flops: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    calls: int = 0
    wire_bytes: int = 0
    latency_s: float = 0.0
    energy_j: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.flops + other.flops,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.calls + other.calls,
            self.wire_bytes + other.wire_bytes,
            self.latency_s + other.latency_s,
            self.energy_j + other.energy_j,
        )


@dataclass(frozen=True, slots=True)
class Message:
    """A frozen utterance: who said what, where, having heard which others.

    `confidence` is the probability its author gives to being right: the product of the answer's token probabilities, calibrated where the team
    is; None without log-probabilities. `form` says what of it travels: the whole text, or the extracted answer alone.
    """

    id: str
    author: str
    node: str
    heard: tuple[str, ...] = ()
    usage: Usage = Usage()
    form: Form = "text"
    _text: str = field(default="", repr=False)
    _answer: str = field(default="", repr=False)
    _confidence: float | None = field(default=None, repr=False)

    @property
    def _said(self) -> str:
        """What of the text travels, for those who have seen to it that it is here."""
        return self._answer if self.form == "answer" else self._text

    def _here(self) -> None:
        here = HERE.get()
        if here is not None and here != self.node:
            raise NotHere(f"message {self.id} of {self.author} is at {self.node}, not at {here}; `await message.to({here!r})` moves it")

    @property
    def text(self) -> str:
        self._here()
        return self._said

    @property
    def answer(self) -> str:
        self._here()
        return self._answer

    @property
    def confidence(self) -> float | None:
        self._here()
        return self._confidence

    @property
    def size(self) -> int:
        """Bytes of this message on a wire, in its present form."""
        return len(self.encode())

    def encode(self) -> bytes:
        """The frame that travels."""
        return encode_text(self.id, self.author, self._said, self._confidence)

    def as_(self, form: Form) -> Message:
        """The same message, of which only this form travels from here on. Free: nothing moves."""
        return Message(self.id, self.author, self.node, self.heard, self.usage, form, self._text, self._answer, self._confidence)

    async def to(self, node: str) -> Message:
        """This message at `node`. Moving is priced by the current world; a message that is already there stays what it is."""
        return self if node == self.node else (await bring((self,), node))[0]

    def __str__(self) -> str:
        return self.text


async def bring(messages: Sequence[Message], node: str) -> list[Message]:
    """All of these at `node`: they set out at once, and this returns when the last has arrived."""
    if any(message.node != node for message in messages):
        mover = MOVER.get()
        if mover is None:
            raise NotHere(f"message {messages[0].id} cannot travel to {node}: no network outside of a run")
        await mover(messages, node)
    # what stayed behind cannot be read there, in no form
    return [m if m.node == node else Message(m.id, m.author, node, m.heard, m.usage, m.form, m._said, m._answer, m._confidence) for m in messages]
