"""What one agent says to another: a message has a place.

Its text can be read only where it is. Topology code runs at `team.home`; to read a message there, move it: `await message.to(node)`. Handing it to
an agent moves it to that agent's node. Either way the move is priced, once per destination. `id`, `author`, `node` and `size` are free to read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, Protocol

from aiflow_agents.errors import NotHere, PrivacyError, UserError
from aiflow_agents.wire.frame import encode_text, encode_tokens, encode_words

if TYPE_CHECKING:
    from aiflow_agents.wire.payload import Logits
    from aiflow_agents.wire.picture import Picture, Private

Form = Literal["text", "answer", "hidden", "tokens", "words", "logits", "states", "picture"]
RELEASED_AS = {"text": "answer", "words": "answer", "hidden": "features"}  # what a form lets out of what stays at a node; others by their own name
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


class Cargo(Protocol):
    """What may travel with a message's text: a coded payload that the hosts hold."""

    @property
    def digest(self) -> str: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer that may not be finished: its tokens so far, and the frame of what may come next (empty where nothing may, or nobody asked).

    `logprob` is the log-probability of the tokens so far, None for those who were only told them. `codec` is that of the frame. `ended`: nothing can
    follow. A receiver who has the first `since` tokens gets the others; with what these were drawn from, and with the hidden `states` of them.
    `odds` is the frame of that (`wire.odds`), for as many of the last tokens as were drafted one after the other.

    `tokenizer` is the hash of that whose tokens these are. Who has another one gets `words`: of `text`, what no later token can change (`sure`
    characters), from character `since` on. `made`: how many tokens its author has made of it. `full`: it has ended only as no more fits.
    """

    token_ids: tuple[int, ...] = ()
    logprob: float | None = None
    coded: bytes = b""
    codec: str = "float16"
    ended: bool = False
    since: int = 0
    odds: bytes = b""
    states: Cargo | None = None
    text: str = ""  # what the tokens spell, for those who can read them
    tokenizer: str = ""
    words: bool = False
    sure: int = 0
    made: int = 0
    full: bool = False
    told: bool = False  # it began with another one's words, which its tokens need not spell

    @property
    def said(self) -> str:
        """What no later token can change of the text."""
        return self.text if self.ended else self.text[: self.sure]

    @property
    def digest(self) -> str:
        if self.words:
            return blake2b(encode_words(self.text, self.since, self.ended), digest_size=16).hexdigest()
        states = "" if self.states is None else self.states.digest
        return blake2b(encode_tokens(self.token_ids) + self.coded + self.odds + f"{self.since}{states}".encode(), digest_size=16).hexdigest()

    @property
    def nbytes(self) -> int:
        if self.words:
            more = self.text[self.since :]
            return len(encode_words(more, self.since, self.ended)) if more or self.ended else 0
        new = self.token_ids[self.since :]
        told = b""
        if self.odds:
            from aiflow_agents.wire.odds import last

            told = last(self.odds, len(new))
        return len(encode_tokens(new, self.since) if new else b"") + len(self.coded) + len(told) + (self.states.nbytes if self.states else 0)


@dataclass(frozen=True, slots=True)
class Message:
    """A frozen utterance: who said what, where, having heard which others.

    `confidence` is the probability its author gives to being right: the product of the answer's token probabilities, calibrated where the team
    is; None without log-probabilities. `form` says what of it travels: the whole text, the extracted answer alone, the text with the hidden states
    from which a member of the same family goes on (`Agent.ask(..., want=...)` keeps them), or of a draft (`Agent.ask(..., top=...)`) its tokens
    or what may come next, without the text. `mark` says what is to be known of an answer besides: `unverified`, where who was to check it did not.
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
    _cargo: Cargo | None = field(default=None, repr=False)
    _stays: Private | None = field(default=None, repr=False)
    mark: str = ""

    @property
    def _seen(self) -> Picture | None:
        """The picture that this message is, for who computes where it lies."""
        from aiflow_agents.wire.picture import Jpeg, Picture

        if isinstance(self._cargo, Jpeg):
            return self._cargo.picture
        return self._cargo if isinstance(self._cargo, Picture) else None

    @property
    def picture(self) -> Picture | None:
        """The picture that this message is; None where it is none."""
        self._here()
        return self._seen

    def check_leaves(self) -> None:
        """Raises PrivacyError where this message tells of something that stays at its node, in a form in which that was not released."""
        kind = RELEASED_AS.get(self.form, self.form)
        if self._stays is not None and kind not in self._stays.released:
            released = " and ".join(self._stays.released) or "nothing"
            raise PrivacyError(f"message {self.id} of {self.author} stays at {self._stays.node}: released from there are {released}, not {kind}")

    @property
    def _freight(self) -> str:
        """A name for all that travels: the same for two messages of one id only if the same travels."""
        return f"{self.form} {self._text} {self._cargo.digest}" if self._loaded and self._cargo else self._said

    @property
    def _loaded(self) -> bool:
        """Whether more than text travels."""
        return self.form in ("hidden", "tokens", "words", "logits", "states", "picture")

    @property
    def _said(self) -> str:
        """What of the text travels, for those who have seen to it that it is here."""
        return self._answer if self.form == "answer" else "" if self.form in ("tokens", "words", "logits", "states") else self._text

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
    def logits(self) -> Logits | None:
        """The likeliest next tokens of a draft, as decoded; None where its author had no more to say. Raises UserError for other messages."""
        self._here()
        draft = self._draft("logits")
        if not draft.coded:
            return None
        from aiflow_agents.wire.codecs import codec

        found: Logits = codec(draft.codec).decode(draft.coded)  # type: ignore[assignment]
        return found

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of a draft so far. Raises UserError for other messages."""
        self._here()
        draft = self._draft("tokens")
        if draft.words:
            raise UserError(f"message {self.id} of {self.author} came as words: its tokens are known to its author alone")
        return draft.token_ids

    @property
    def made(self) -> int:
        """How many tokens its author has made of a draft. Raises UserError for other messages."""
        draft = self._draft("tokens")
        return draft.made if draft.words else len(draft.token_ids)

    @property
    def full(self) -> bool:
        """Whether a draft has ended only as no more fits. Raises UserError for other messages."""
        return self._draft("tokens").full

    @property
    def words(self) -> str:
        """What a draft says so far, as far as no later token can change it. Raises UserError for other messages."""
        self._here()
        return self._draft("words").said

    @property
    def ended(self) -> bool:
        """Whether nothing can follow a draft. Raises UserError for other messages."""
        self._here()
        return self._draft("tokens").ended

    def then(self, token: int, logprob: float) -> Message:
        """This draft with one token more, for its author to go on from."""
        self._here()
        draft = self._draft("tokens")
        total = None if draft.logprob is None else draft.logprob + logprob
        return replace(self, form="tokens", _cargo=Draft((*draft.token_ids, token), total))

    def _draft(self, form: Form) -> Draft:
        if not isinstance(self._cargo, Draft):
            raise UserError(f"message {self.id} of {self.author} has no {form}: ask with top=Top(k), or for a draft")
        return self._cargo

    @property
    def size(self) -> int:
        """Bytes of this message on a wire, in its present form."""
        return len(self.encode()) + (self._cargo.nbytes if self._loaded and self._cargo else 0)

    def encode(self) -> bytes:
        """The frame that travels, up to that of the hidden states, tokens, logits or picture which it may bring: that comes behind it."""
        loaded = self._loaded and self._cargo is not None and self._cargo.nbytes > 0
        return encode_text(self.id, self.author, self._said, self._confidence, loaded=loaded)

    def as_(self, form: Form, *, since: int = 0, odds: bool = True) -> Message:
        """The same message, of which only this form travels from here on. Free: nothing moves.

        Of a draft as `tokens`, or as `states` with the hidden states of these, only what comes behind the first `since` tokens travels; without
        `odds` not what they were drawn from, for one who does not check them. As `words`, for one with another tokenizer, what it says behind the
        first `since` characters.
        Raises UserError for `hidden`, `tokens`, `states` or `logits` where its author was not asked to keep any.
        """
        if form == "hidden" and (self._cargo is None or isinstance(self._cargo, Draft) or self.form == "picture"):
            raise UserError(f"message {self.id} of {self.author} has no hidden states: ask with want=Want(layer)")
        if (form == "picture") != (self.form == "picture"):
            raise UserError(f"message {self.id} of {self.author} is a {self.form}, and stays one")
        if form in ("tokens", "states"):
            draft = self._draft(form)
            if draft.words:
                raise UserError(f"message {self.id} of {self.author} came as words, and stays so")
            if form == "states" and draft.states is None:
                raise UserError(f"message {self.id} of {self.author} has no states: ask for a draft with want=Want(layer)")
            states = draft.states if form == "states" else None
            kept = replace(draft, logprob=None, coded=b"", codec="float16", since=since, states=states, odds=draft.odds if odds else b"")
            return replace(self, form=form, _cargo=kept)
        if form == "words":
            draft = self._draft(form)
            said, since = draft.said, min(since, len(draft.said))
            kept = Draft(ended=draft.ended, since=since, text=said, words=True, sure=len(said), made=self.made, full=draft.full)
            return replace(self, form=form, _cargo=kept)
        if form == "logits":
            return replace(self, form=form, _cargo=replace(self._draft(form), token_ids=(), logprob=None))
        return replace(self, form=form)

    def jpeg(self, budget: int) -> Message:
        """The same picture, of which a JPEG of at most `budget` bytes travels (see `wire.picture`). Free: nothing moves, and it may go no further.

        Raises UserError where this message is no picture.
        """
        if self.form != "picture" or self._seen is None:
            raise UserError(f"message {self.id} of {self.author} is a {self.form}, and no picture")
        return replace(self, _cargo=self._seen.jpeg(budget))

    def part(self, text: str) -> Message:
        """The same message, of which only this part of its text travels from here on. Free. Raises UserError for what it does not say."""
        self._here()
        if text not in self._said:
            raise UserError(f"message {self.id} of {self.author} does not say {text!r}")
        return replace(self, form="text", _text=text, _answer=text.strip(), _cargo=None)

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
    return [m if m.node == node else replace(m, node=node, _text=m._said, _cargo=m._cargo if m._loaded else None, _stays=None) for m in messages]
