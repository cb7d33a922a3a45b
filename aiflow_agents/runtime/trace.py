"""The spans of one task: who did what, where, from when to when. The conversation and the timeline are drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple


class Span(NamedTuple):
    """`kind` is "call" (`who` thought at `node`) or "move" (a message of `who` went from `node` to `to`). Times are simulated seconds."""

    kind: Literal["call", "move"]
    who: str
    node: str
    start_s: float
    end_s: float
    message: str  # id of the message that was made or moved
    text: str = ""
    to: str = ""
    heard: tuple[str, ...] = ()
    nbytes: int = 0
    confidence: float | None = None


Listener = Callable[[Span], None]
