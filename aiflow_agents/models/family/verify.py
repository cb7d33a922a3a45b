r"""Verifying what another one has drafted: one pass over all of its tokens, of which the first wrong one and what follows it are dropped.

    prompt, begin | d1  d2  d3  d4         drafted
                  | ok  ok  no             d3 is not what this exit says behind d2:
                  | d1  d2  own            two are kept, and its own token comes third. Where all are kept, a fifth is its own

The tokens come alone, or with the hidden states of a shallower exit of the same family: then only the layers above are run, and the last token, which
its drafter has never fed, is checked but nothing is said behind it.

Greedy, a token is kept if it is this exit's own likeliest, so the text is the one that this exit writes alone. At a temperature, a token x that
was drawn with probability q(x) is kept with probability min(1, p(x) / q(x)), and where it is not, another one is drawn from max(0, p - q): what is
said has exactly the distribution p (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318). That holds for any q that is known, so also
for what a few bits on a wire leave of a distribution, where the drafter has drawn from just that. Who checks for another one, who checks again, says
so much of p itself as a wire can tell (`Claim.tell`), and tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aiflow_agents.models.family.decoder import Cache, Decoder
from aiflow_agents.models.family.engine import STEP, Stop, likeliest, uniforms
from aiflow_agents.models.protocol import common
from aiflow_agents.wire.payload import Logits

ROWS = 64  # sequences that are read at once
Probabilities = NDArray[np.float64]
Rule = Callable[[float, float, float], bool]  # (uniform, p, q) -> whether a token stays


@dataclass(frozen=True)
class Claim:
    """`tokens` that are claimed to be what comes behind `known` [positions before them], and at most `room` more tokens of the answer.

    `hidden` [positions, width]: the input of `layer` at every known position and at those of the claimed tokens that were fed; None: read the tokens.
    At a `temperature` above 0, `odds` are the log-probabilities from which each token was drawn, one row a token, and with `tell` what is said is
    drawn from so many likeliest tokens. `stop(tokens so far)` says whether these end the answer.
    """

    known: tuple[int, ...]
    tokens: tuple[int, ...]
    room: int
    layer: int = 0
    hidden: Tensor | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    odds: Logits | None = None
    tell: int = 0
    stop: Stop | None = None

    @property
    def fed(self) -> int:
        """How many positions are read: without hidden states all of them."""
        return len(self.known) + len(self.tokens) if self.hidden is None else len(self.hidden)


@dataclass(frozen=True)
class Verdict:
    """Of the claimed tokens the first `kept` stay. `token_ids` are these, and one of this exit's own where it says one.

    `odds`, where they are to be told, are what each of them was drawn from: log-probabilities and the tokens that have them, both [tokens, k].
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    kept: int
    finish: str  # "stop" | "length" | "checked"
    odds: tuple[Tensor, Tensor] | None = None


def stands(uniform: float, p: float, q: float) -> bool:
    """Whether a token stays that was drawn with probability q, where it has p: with probability min(1, p / q)."""
    return uniform * q < p


@torch.inference_mode()
def verify(decoder: Decoder, claims: Sequence[Claim], ends: frozenset[int], exit: int | None = None, rule: Rule = stands) -> list[Verdict]:
    """Check every claim at one exit (None: the last). `ends` are the tokens that end an answer. No claim may begin with nothing known.

    Equal sequences are read once. By `rule` it is decided whether a drawn token stays; another one than `stands` is for tests that must then fail.
    """
    path, found = decoder.config.path(exit), dict[int, Verdict]()
    alike: dict[object, list[int]] = {}  # a sequence -> the claims that are it
    for i, claim in enumerate(claims):
        alike.setdefault((claim.known, claim.tokens) if claim.hidden is None else i, []).append(i)
    equal = {places[0]: places for places in alike.values()}
    order = sorted(equal, key=lambda i: (claims[i].layer, claims[i].hidden is None, claims[i].fed))
    while order:
        first = claims[order[0]]
        same = [i for i in order[:ROWS] if (claims[i].layer, claims[i].hidden is None) == (first.layer, first.hidden is None)]
        order = order[len(same) :]
        some = [claims[i] for i in same]
        columns = -(-max(claim.fed for claim in some) // STEP) * STEP  # so that a row does not feel its company, as in `engine`
        if first.hidden is None:
            ids = [[*claim.known, *claim.tokens] for claim in some]
            states = decoder.embed(torch.tensor([row + [0] * (columns - len(row)) for row in ids]))  # padding on the right is never read
        else:
            states = torch.zeros(len(some), columns, decoder.config.width, dtype=decoder.dtype)
            for row, claim in enumerate(some):
                assert claim.hidden is not None
                states[row, : claim.fed] = claim.hidden.to(decoder.dtype)
        cache = Cache.new(decoder.config, len(some), columns, decoder.dtype, path)
        out = decoder.run(states, cache, decoder.prompt_span(0, columns), path[first.layer :])  # [rows, columns, width]
        for row, (first_of, claim) in enumerate(zip(same, some, strict=True)):
            logits = decoder.head(out[row, len(claim.known) - 1 : claim.fed], exit)  # what is said behind what is known, and behind each fed token
            for i in equal[first_of]:
                found[i] = judged(claims[i], logits, ends, rule)
    return [found[i] for i in range(len(claims))]


def judged(claim: Claim, logits: Tensor, ends: frozenset[int], rule: Rule = stands) -> Verdict:
    """logits [fed tokens + 1, vocab]."""
    logprobs, tokens, told = torch.log_softmax(logits, -1), claim.tokens[: claim.room], None
    if claim.temperature > 0:
        kept, own, told = _drawn(claim, logits, tokens, rule)
    else:
        mine = logits.argmax(-1).tolist()
        kept = common(mine, tokens)
        own = mine[kept] if kept < len(mine) else None
    said = [*tokens[:kept], *([own] if own is not None and kept < claim.room else [])]
    over = next((i for i, token in enumerate(said) if token in ends or (claim.stop is not None and claim.stop(said[: i + 1]))), None)
    if over is not None:
        said, kept = said[: over + 1], min(kept, over + 1)
    finish = "stop" if over is not None else "length" if len(said) >= claim.room else "checked"
    chosen = logprobs[torch.arange(len(said)), torch.tensor(said, dtype=torch.long)].tolist()
    return Verdict(tuple(said), tuple(chosen), kept, finish, None if told is None else (told[0][: len(said)], told[1][: len(said)]))


def _drawn(claim: Claim, logits: Tensor, tokens: Sequence[int], rule: Rule) -> tuple[int, int | None, tuple[Tensor, Tensor] | None]:
    """(how many drawn tokens are kept, the token that is drawn where they end, what can be told of p): rejection sampling."""
    told = likeliest(logits / claim.temperature, claim.tell) if claim.tell else None
    if told is None:
        p = target(logits, claim.temperature, claim.top_p)  # [fed tokens + 1, vocab]
    else:
        p = spread(Logits(told[0].numpy(), told[1].numpy(), logits.shape[1]), logits.shape[1])
    chance = uniforms([claim.seed], 2 * len(tokens) + 2)[0].tolist()
    q = spread(claim.odds, p.shape[1]) if claim.odds is not None else np.zeros((0, p.shape[1]))
    for i, token in enumerate(tokens):
        if not rule(chance[2 * i], p[i, token], q[i, token]):
            return i, invert(np.maximum(p[i] - q[i], 0.0), chance[2 * i + 1]), told
    return len(tokens), invert(p[len(tokens)], chance[-1]) if len(tokens) < len(p) else None, told


def target(logits: Tensor, temperature: float, top_p: float = 1.0) -> Probabilities:
    """The distributions that the engine draws from at this temperature: logits [positions, vocab] -> probabilities of the same shape."""
    p = torch.softmax(logits / temperature, -1, dtype=torch.float64)
    if top_p < 1:
        ranked, order = p.sort(dim=-1, descending=True, stable=True)
        kept = torch.where(ranked.cumsum(-1) - ranked < max(top_p, 1e-9), ranked, 0.0)
        p = torch.zeros_like(p).scatter(-1, order, kept)
    return (p / p.sum(-1, keepdim=True)).numpy()


def spread(odds: Logits, vocab: int) -> Probabilities:
    """What a drafter drew from, as both sides compute it from the frame: [tokens, vocab], nothing outside of the tokens that were told."""
    p = np.exp(odds.values.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    if odds.indices is None:
        return p
    found = np.zeros((len(p), vocab))
    np.put_along_axis(found, odds.indices, p, -1)
    return found


def invert(mass: Probabilities, uniform: float) -> int:
    """The token at which the sum of these masses [vocab], which need not add up to 1, passes `uniform` of it."""
    total = mass.cumsum()
    return int(min((total <= uniform * total[-1]).sum(), len(mass) - 1))
