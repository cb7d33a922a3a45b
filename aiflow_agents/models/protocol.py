"""The one protocol every thinking thing speaks: requests in, replies out, in batches.

A bad request fails alone: `generate` gives a `CallError` in its place and answers all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from aiflow_agents.wire.calibration import Shipped
    from aiflow_agents.wire.picture import Picture


HALF = "\ufffd"  # what a tokenizer shows of a character of which some bytes are missing


class Turn(NamedTuple):
    """One turn of a conversation. A heard message is a user turn with the speaker's `name`."""

    role: str  # "system" | "user" | "assistant"
    content: str
    name: str | None = None


class Sampling(NamedTuple):
    """How tokens are drawn. Temperature 0 is greedy, and then `seed` in a request is ignored."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class Want(NamedTuple):
    """What a call shall give back besides its text: the input of layer `layer` at every position of prompt and answer, coded by `codec`.

    `lower` adds the keys and values of the layers below, from which another node makes further tokens; without them it reads the tokens again.
    `placebo` (zeros, noise) sends as many bytes that say nothing: a control. `steps` latent steps follow the prompt, where nothing is said
    (max_tokens 0): each is a position whose input is what the exit put out at the one before. They have no tokens, so `lower` must be there.
    `since`: states alone, without token ids, of the positions from that token of the answer on (-1: from the beginning of the prompt), for one who
    has those before it.
    """

    layer: int
    codec: str = "float16"
    lower: bool = False
    placebo: str = ""
    steps: int = 0
    since: int | None = None


class Top(NamedTuple):
    """Speak on only where sure: stop before the first token that is not likelier than `gate`, and give the `k` likeliest next tokens at that place.

    They come as a frame of log-probabilities, coded by `codec`. Gate 1 stops at once. As a `placebo` (uniform, noise) they say nothing.
    """

    k: int
    gate: float = 1.0
    codec: str = "float16"
    placebo: str = ""


class Parcel(NamedTuple):
    """A coded payload as those know it who do not hold it: which one it is, what it weighs, and what it goes on from. The bytes stay with the hosts.

    `digest` is that of the coded bytes, `prompt` counts the positions before the answer (latent ones too), `draft` are the answer's tokens with the
    one that ended it. `before` is what came earlier of the same sequence, where this one begins later (`Want.since`): where both tell of a
    position, this one is right.
    """

    digest: str
    nbytes: int
    weights_hash: str
    want: Want
    prompt: int
    draft: tuple[int, ...]
    before: Parcel | None = None

    @property
    def chain(self) -> tuple[Parcel, ...]:
        """All payloads of the sequence, the earliest first."""
        found, one = [self], self.before
        while one is not None:
            found.append(one)
            one = one.before
        return tuple(reversed(found))


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `seed` fixes the draw of a sampled reply whatever else is in the batch.

    `exit` chooses a family's branch (None: the whole model), `keep` the share of a decomposed model's parameters (None: as it was loaded). With
    `parcel` the model goes on from another one's hidden state, greedily: it checks the draft that came with it in one pass, keeps what it would have
    said too, and speaks on from there; `messages` are then not read. `begin` are tokens of the answer that are there already: the model reads them
    behind the prompt and goes on; `max_tokens` counts them too. A model that sees answers from a `picture`, which lies where it computes, and from
    the `features` of pictures that lie elsewhere. With `score` nothing is generated: the reply is that text, with the log-probability of each of its
    tokens behind the prompt; with `ended` as the whole of an answer, so that of the token which ends it comes last.

    `check` are tokens that another one has drafted behind `begin`. They are read in one pass, together with what has not been read before them; the
    reply has those that this model would have said too, and the token that it says where they end. Drawn at a temperature, so is the draft, and
    `odds_told` is the frame of the distributions that its tokens were drawn from: what is kept has exactly this model's distribution. `odds`: draw
    each token from so many likeliest ones, as 16 bits leave their log-probabilities, and give these distributions with the reply; so does who checks,
    and what is said then has exactly these.

    Between tokenizers text goes: `begin_text` is what the answer begins with, where `begin` is empty, and then `max_tokens` counts what follows it;
    else it is what `begin` stands for, where that does not spell it. `check_text`, in place of `check`, is the whole answer so far as another one
    has drafted it, with `ended` all of it: what it says behind `begin` is cut into this model's own tokens, which are checked.
    """

    messages: tuple[Turn, ...]
    max_tokens: int = 32
    sampling: Sampling = GREEDY
    seed: int = 0
    stop: tuple[str, ...] = ()
    exit: int | None = None
    keep: float | None = None
    want: Want | None = None
    parcel: Parcel | None = None
    begin: tuple[int, ...] = ()
    top: Top | None = None
    picture: Picture | None = None
    features: tuple[Parcel, ...] = ()
    score: str = ""
    ended: bool = False
    check: tuple[int, ...] | None = None
    odds: int = 0
    odds_told: bytes = b""
    begin_text: str = ""
    check_text: str | None = None

    @property
    def checks(self) -> bool:
        """Whether a draft is checked."""
        return self.check is not None or self.check_text is not None

    @property
    def parcels(self) -> tuple[Parcel, ...]:
        """The payloads that this call needs."""
        return self.features if self.parcel is None else (*self.parcel.chain, *self.features)


def beyond_text(request: Request, *, exit: int | None = None, hidden: bool = False) -> str:
    """What a request asks for that a backend which only reads and writes text cannot do, in words; empty where it asks for nothing else.

    `exit`: the only one that it has; `hidden`: it can give hidden states, but no keys and values.
    """
    want = request.want
    asked = {
        "choose an exit": request.exit is not None and request.exit != exit,
        "run at a smaller rank": request.keep is not None,
        "give hidden states": want is not None and not hidden,
        "give keys and values": want is not None and want.lower,
        "take latent steps": want is not None and want.steps > 0,
        "go on from hidden states": bool(request.parcels),
        "go on from tokens": bool(request.begin),
        "stop where it is not sure": request.top is not None,
        "see": request.picture is not None,
        "say how likely a given text is": bool(request.score),
        "go on from text": bool(request.begin_text),
        "check a draft": request.checks,
        "give the odds of its tokens": request.odds > 0,
    }
    return next((what for what, wanted in asked.items() if wanted), "")


class Pass(NamedTuple):
    """One run of `share` of an exit's blocks over `positions`, the first of which follows `context` others; at `heads` of them the head ran too.

    `read`: at how many of them what the last of these blocks puts out is used (None: at all). The others need only its keys and values.
    """

    share: float
    positions: int
    context: int
    heads: int
    read: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    `logprobs[i]` is the natural log-probability of `token_ids[i]` under the model at temperature 1, the end-of-sequence
    token included when the model ended by itself. `tokens_in` counts the prompt, `tokens_out` what was generated.
    `work` is what was run where that is not the prompt once and then a token at a time; `parcel` is what `Request.want` asked for.
    `next` is the frame that `Request.top` asked for, None where the answer ended before, or that of `Request.odds`. It comes along and does not stay
    with the host: who asked reads it, and a parcel would be as long. `text` has the tokens of `Request.begin` in it, which `token_ids`, `logprobs`
    and both counts leave out. Of a draft that was checked the first `kept` tokens stay. `begun` and `checked` are the tokens into which
    `Request.begin_text` and what is new of `Request.check_text` were cut.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    tokens_in: int
    tokens_out: int
    finish: str = "stop"  # "stop" | "length" | "unsure" | "checked"
    work: tuple[Pass, ...] | None = None
    parcel: Parcel | None = None
    next: bytes | None = None
    kept: int = 0
    begun: tuple[int, ...] = ()
    checked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CallError:
    """Why one request could not be answered. A value, not an exception: the batch around it goes on."""

    kind: str  # "too-long" | "refused" | "failed" | "died": its node did
    message: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cost model needs to know of a decoder.

    Parameters are counted without the input embedding (a look-up costs no FLOPs); `head_params` is the output projection, which runs once per
    generated token and not for the rest of a prompt.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    block_params: int  # all layers together, norms included
    head_params: int
    vocab: int
    dtype_bytes: float = 4

    @property
    def weight_bytes(self) -> float:
        """Bytes read to make one token: every block and the head once."""
        return (self.block_params + self.head_params) * self.dtype_bytes

    @property
    def tail_params(self) -> float:
        """Of one block, what follows its attention. Where layers were cut to smaller ranks, the attention's own count as whole."""
        return max(self.block_params / self.layers - self.width * self.head_dim * (self.heads + 2 * self.kv_heads), 0.0)

    def flops(self, tokens_in: int, tokens_out: int) -> tuple[float, float]:
        """(prefill, decode) FLOPs of one call: 2 per parameter and token, plus attention 4 * layers * heads * head_dim * context.

        The prompt makes the first generated token, so decoding runs `tokens_out - 1` further positions. Of the last block, only what follows
        attention at the prompt's end is needed, and only that is run and counted.
        """
        prefill = self.pass_flops(Pass(1.0, tokens_in, 0, 1, 1))
        pairs = 4.0 * self.layers * self.heads * self.head_dim
        steps = max(tokens_out - 1, 0)
        context = steps * tokens_in + steps * (steps + 1) / 2
        return prefill, steps * 2.0 * (self.block_params + self.head_params) + pairs * context

    def pass_flops(self, run: Pass) -> float:
        """FLOPs of one pass, counted as in `flops`."""
        pairs = 4.0 * self.layers * self.heads * self.head_dim
        context = run.positions * run.context + run.positions * (run.positions + 1) / 2
        unread = 0 if run.read is None else run.positions - run.read
        through = run.share * (2.0 * self.block_params * run.positions + pairs * context)
        return through - 2.0 * self.tail_params * unread + 2.0 * self.head_params * run.heads

    def pass_bytes(self, run: Pass) -> float:
        """Bytes of weights that one pass reads."""
        return (run.share * self.block_params + (self.head_params if run.heads else 0)) * self.dtype_bytes


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model is, without loading it: enough to place it, price it and check a topology's needs.

    `space` is where its hidden states mean something, if that is not its engine alone: one decoder's are the same under another engine.
    """

    name: str
    weights_hash: str
    tokenizer_hash: str
    engine: str
    dtype: str
    shape: Shape
    capabilities: frozenset[str] = field(default_factory=frozenset)
    max_context: int = 0
    codecs: tuple[Shipped, ...] = ()
    space: str = ""

    @classmethod
    def of(
        cls, name: str, *, costs_as: str, version: str = "1", engine: str = "own", capabilities: Iterable[str] = (), max_context: int = 0
    ) -> ModelInfo:
        """What a model of one's own says of itself. `costs_as` names the shape that it is priced as, such as qwen3-0.6b.

        `version` stands for all that decides its answers: give it another one when they change, or answers that are remembered count as its own.
        Raises UnknownName for a shape that nobody knows.
        """
        from aiflow_agents.net.cost import named_shape

        digest = hashlib.sha256(f"{engine} {name} {version}".encode()).hexdigest()
        return cls(name, digest, digest, engine, "own", Shape(**asdict(named_shape(costs_as))), frozenset(capabilities), max_context)


Told = Callable[[int, int, tuple[int, ...], str], None]  # of which request, behind how many tokens of its answer, which ones, or else their text


def telling(told: Told, places: Sequence[int]) -> Told:
    """Tells of a part of the requests, by their places among all."""
    return lambda i, *what: told(places[i], *what)


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many tokens, or characters, both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@runtime_checkable
class Model(Protocol):
    """Anything that answers batches of requests.

    One with `streams = True` takes `told`, a `Told`, in `generate` (and in `exchange`, if it has that), and calls it with the tokens of answers while
    it makes them; the one that ends an answer is not told.
    """

    info: ModelInfo

    def generate(self, requests: Sequence[Request]) -> list[Reply | CallError]: ...
