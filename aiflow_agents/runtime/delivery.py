r"""What reaches the user while a topology still runs: an answer's tokens, one by one or several at a time, and when they are at home.

    virtual clock   node:  |--wait for a slot--|==prompt==|=step=|=step=|
                    home:                        token 1 -^  2 -^  3 -^ and the end: one frame each, over every link of the way
    real clock      the host says each token as it has made it, and it sets out at once

`Agent.ask(..., stream=True)` streams an answer, `Team.tell(message)` lets the user have what a topology knows to be the answer's beginning. What was
told cannot be taken back: the answer has to go on from it. Any other answer comes home whole, and all of its tokens at once.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from aiflow_agents.errors import OverBudget, Unreachable, UserError
from aiflow_agents.models.protocol import Reply, Request
from aiflow_agents.runtime.trace import Span
from aiflow_agents.wire.frame import encode_text, encode_tokens
from aiflow_agents.wire.message import Draft, Message

if TYPE_CHECKING:
    from aiflow_agents.runtime.scene import Scene


class Portion(NamedTuple):
    """Tokens of the answer that were at home `at_s` seconds after the question arose. `author` said them: ids, or text where there are none."""

    at_s: float
    tokens: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    author: str = ""


@dataclass(frozen=True)
class Delivery:
    """When the answer was at home: its portions in the order of time. Tokens count as in `Usage.tokens_out`: what ends an answer is one too."""

    portions: tuple[Portion, ...]

    @property
    def tokens(self) -> int:
        return sum(portion.tokens for portion in self.portions)

    @property
    def first_token_s(self) -> float:
        """From the question to the first token at home."""
        return self.portions[0].at_s

    @property
    def ms_per_token(self) -> float | None:
        """Milliseconds for each token behind the first portion; None where that was all. 0 where a late first one held up all others (jitter)."""
        first, last = self.portions[0], self.portions[-1]
        later = self.tokens - first.tokens
        return 1000 * (last.at_s - first.at_s) / later if later else None

    def as_json(self) -> dict[str, Any]:
        times = [(portion.at_s, portion.tokens) for portion in self.portions]
        return {"first_token_s": self.first_token_s, "ms_per_token": self.ms_per_token, "tokens": self.tokens, "portions": times}


class Piece(NamedTuple):
    """Tokens as they travel together: their ids, or their text from an engine that tells no ids."""

    tokens: int
    token_ids: tuple[int, ...] = ()
    text: str = ""

    @property
    def nbytes(self) -> int:
        """Of the frame. An answer has a channel of its own, as a connection has, so no name goes along."""
        return len(encode_tokens(self.token_ids) if self.token_ids else encode_text("", "", self.text, None))


def pieces(request: Request, reply: Reply) -> list[Piece]:
    """An answer, token by token.

    The token that ends an answer is none: the message itself closes the stream and says so. Where stop strings may have ended it, every token goes.
    Text of which nobody knows the tokens is cut into as many parts, as equal as can be.
    """
    if reply.token_ids:
        ended = reply.finish == "stop" and not request.stop
        return [Piece(1, (token,)) for token in reply.token_ids[: len(reply.token_ids) - ended]]
    count = min(reply.tokens_out, len(reply.text))
    ends = [len(reply.text) * i // count for i in range(count + 1)] if count else []
    return [Piece(1, (), reply.text[start:end]) for start, end in zip(ends, ends[1:], strict=False)]


class Stream:
    """One answer on its way home while it is made. `author` makes it at `node`."""

    __slots__ = (
        "scene", "author", "node", "message",
        "_began_s", "_sent_s", "_left", "_timer", "_sent", "_nbytes", "_said", "_stopped", "_holds", "_ended",
    )  # fmt: skip

    def __init__(self, scene: Scene, author: str, node: str):
        self.scene, self.author, self.node = scene, author, node
        self.message: Message | None = None  # that the answer has become
        self._began_s = self._sent_s = 0.0  # when the node began, and when the first piece set out
        self._left: deque[tuple[float, Piece]] = deque()  # what is yet to be made, and when
        self._timer: asyncio.TimerHandle | None = None
        self._sent = self._nbytes = 0  # tokens, and bytes of their frames
        self._said = ""  # what went as text
        self._stopped = self._holds = self._ended = False

    @property
    def told(self) -> bool:
        """Whether the user has anything of it, or may still get it."""
        return self._sent > 0 or bool(self._left) or not self._stopped

    def begin(self, parts: Sequence[Piece], prefill_s: float, step_s: float, first: int) -> None:
        """The node has begun: its first pass makes the first `first` tokens, each further one takes `step_s`. Under the virtual clock."""
        if not self._stopped and parts:
            self._began_s = asyncio.get_running_loop().time()
            ready_s = self._began_s + prefill_s
            self._left.extend((ready_s + max(0, i + 1 - first) * step_s, piece) for i, piece in enumerate(parts))
            self.scene.__enter__()
            self._holds = True
            self._wait()

    def heard(self, at: int, token_ids: tuple[int, ...], text: str) -> None:
        """Under the real clock: the host has made these tokens, which follow `at` others. What is made again, as a host died, is not sent again."""
        if at == self._sent and not self._stopped and self.message is None:
            self._send(Piece(len(token_ids) or 1, token_ids, text))

    def stop(self, used_s: float = math.inf) -> None:
        """No message will come of it. What the node makes until the cancel has reached it, `used_s` seconds after it began, still travels."""
        if self._stopped or self.message is not None:
            return
        self._stopped = True
        while self._left and self._left[-1][0] > self._began_s + used_s:
            self._left.pop()
        if not self._left:
            self._end()

    def close(self, message: Message, rest: Sequence[Piece]) -> None:
        """The answer is whole, and is this message: send what is left of it (`rest`: all of its pieces), and what closes the stream."""
        self.message, self._left = message, deque()
        if self._timer is not None:
            self._timer.cancel()
        ids = tuple(token for piece in rest for token in piece.token_ids)
        later = Piece(len(rest) - self._sent, ids[self._sent :], "" if ids else message._text[len(self._said) :])
        if (later.token_ids or later.text) and not self._stopped:
            self._send(later._replace(tokens=max(later.tokens, 1)))
        ended = max(message.usage.tokens_out - self._sent, 0)
        if not self._stopped:
            self._close(message, ended)
        self._end()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_at(self._left[0][0], self._due)

    def _due(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._left and self._left[0][0] <= now:
            self._send(self._left.popleft()[1])
        if self._left:
            self._wait()
        elif self._stopped:
            self._end()

    def _send(self, piece: Piece) -> None:
        scene = self.scene
        if not self._sent:
            self._sent_s = scene.now()
        try:
            scene.carry(self.node, piece.nbytes, f"a token of {self.author}", lambda: scene.told.add(Portion(scene.now(), *piece, self.author)))
        except (OverBudget, Unreachable):  # nothing more may or can travel; the call itself goes on
            self._stopped = True
            self._left.clear()
            return
        self._sent += piece.tokens
        self._nbytes += piece.nbytes
        self._said += piece.text

    def _close(self, message: Message, ended: int) -> None:
        """Let the message follow, without its text. `ended`: whether a token came that ends the answer."""
        scene, frame = self.scene, len(encode_text(message.id, message.author, "", message._confidence))
        start_s = self._sent_s if self._sent else scene.now()
        arrive, lose = scene.expect(message)

        def arrived() -> None:
            if ended:
                scene.told.add(Portion(scene.now(), ended, (), "", self.author))
            arrive()
            self._traced(start_s, message.id, message._text, self._nbytes + frame)

        try:
            scene.carry(self.node, frame, f"the end of {message.id}", arrived, lose)
        except OverBudget:  # it has not set out: who wants it has to send it
            scene.unexpect(message)
            self._stopped = True
        except Unreachable as gone:
            lose(gone)
            self._stopped = True

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._stopped and self._sent:  # it was broken off
            self._traced(self._sent_s, self.message.id if self.message else self.scene.next_id(self.author), "", self._nbytes)
        if self._holds:
            self.scene.__exit__()

    def _traced(self, start_s: float, id: str, text: str, nbytes: int) -> None:
        """One span for all frames of an answer."""
        scene = self.scene
        if scene.listener and self.node != scene.network.home:
            scene.listener(Span("move", self.author, self.node, start_s, scene.now(), id, text, to=scene.network.home, nbytes=nbytes))


class Told:
    """What the user has of the answer so far, however it came. `reader` is told of every portion when it is at home."""

    __slots__ = ("portions", "token_ids", "text", "reader", "_stream")

    def __init__(self) -> None:
        self.portions: list[Portion] = []
        self.token_ids: tuple[int, ...] = ()
        self.text = ""
        self.reader: Callable[[Portion], None] | None = None
        self._stream: Stream | None = None  # that the user reads

    @property
    def tokens(self) -> int:
        return sum(portion.tokens for portion in self.portions)

    @property
    def delivery(self) -> Delivery | None:
        """What the user has; None where that is nothing."""
        return Delivery(tuple(self.portions)) if self.portions else None

    def stream(self, scene: Scene, author: str, node: str) -> Stream:
        """For an answer that the user reads while it is made. Raises UserError where that is another one already."""
        if self.portions or (self._stream is not None and self._stream.told):
            raise UserError(f"{author} cannot stream its answer: the user has the beginning of another one")
        self._stream = Stream(scene, author, node)
        return self._stream

    def add(self, portion: Portion) -> None:
        """The user has so much more of the answer, at home."""
        self.portions.append(portion)
        self.token_ids += portion.token_ids
        self.text += portion.text
        if self.reader is not None:
            self.reader(portion)

    def tell(self, message: Message, now: float) -> None:
        """The same for what a message at home says more. Raises UserError where it does not go on from what the user has."""
        portion = self.more(message, now)
        if portion.tokens:
            self.add(portion)

    def whole(self, message: Message, now: float) -> Delivery | None:
        """How the answer came, now that it is this message, at home; None where it has no tokens. Raises UserError where another one was told."""
        stream = self._stream if self._stream is not None and self._stream.told else None
        if stream is None:
            self.tell(message, now)
        elif stream.message is None or message.id != stream.message.id or message._said not in (stream.message._text, stream.message._answer):
            raise taken_back(message)
        return self.delivery

    def more(self, message: Message, now: float) -> Portion:
        """What this message, which is at home, says beyond what was told. Raises UserError where it does not go on from that.

        Token ids are compared with token ids, and text with text; of the other nobody at home knows.
        """
        draft = message._cargo if isinstance(message._cargo, Draft) else Draft()
        ids, text = draft.token_ids, message._said
        if (ids and ids[: len(self.token_ids)] != self.token_ids) or (not ids and not text.startswith(self.text)):
            raise taken_back(message)
        if ids:
            return Portion(now, max(len(ids) - self.tokens, 0), ids[len(self.token_ids) :], "", message.author)
        said = "" if self.token_ids else text[len(self.text) :]
        made = draft.made if draft.words else message.usage.tokens_out
        return Portion(now, max(made - self.tokens, 0), (), said, message.author)


def taken_back(message: Message) -> UserError:
    return UserError(f"message {message.id} of {message.author} does not go on from what the user was told, and that cannot be taken back")
