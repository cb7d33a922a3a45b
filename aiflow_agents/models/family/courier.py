"""What leaves a host and what arrives at one: hidden states between the engine's tensors and the coded frames of `wire`.

    Start --pack--> hidden frame [+ frame of keys and values] --unpack--> Start

A codec is named as in `wire.codecs` (`float16`, `bfloat16`), or it is one that was fitted for this family and lies in `codecs/NAME.safetensors` of
its folder.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.models.family.resume import Start
from aiflow_agents.models.family.session import LowerCache
from aiflow_agents.models.protocol import Parcel, Top, Want
from aiflow_agents.wire.calibration import Shipped, load
from aiflow_agents.wire.codecs import Codec, codec
from aiflow_agents.wire.frame import FrameError
from aiflow_agents.wire.payload import Hidden, KVCache, Logits

_LENGTH = struct.Struct("<I")
LOWER = "lower"  # the fitted codec of keys and values, where that of the hidden states has nothing for them


class Courier:
    """The codecs of one model folder, loaded when first used."""

    def __init__(self, folder: Path, fitted: Sequence[Shipped] = ()):
        self.folder, self.fitted = folder, [one.name for one in fitted]
        self._codecs: dict[str, Codec] = {}

    def codec(self, name: str) -> Codec:
        """Raises `UnknownName` for a codec that needs fitting and does not ship with this family, fitted on these very weights."""
        if name not in self._codecs:
            try:
                self._codecs[name] = load(self.folder / "codecs" / f"{name}.safetensors") if name in self.fitted else codec(name)
            except UserError:
                raise UnknownName(f"codec of model '{self.folder.name}'", name, [*self.fitted, "float16", "bfloat16", "float32"]) from None
        return self._codecs[name]

    def pack(self, start: Start, want: Want) -> bytes:
        """The bytes that travel: one frame, or with a lower cache the length of the first (4 bytes) and two."""
        tokens = None if start.token_ids is None else torch.tensor(start.token_ids).numpy()
        states = placebo(start.hidden.float(), want.placebo) if want.placebo else start.hidden.float()
        hidden = self.codec(want.codec).encode(Hidden(start.layer, states.numpy(), tokens, start.first))
        if start.lower is None:
            return hidden
        both = [one[:, 0].float() for one in start.lower]
        keys, values = (placebo(one, want.placebo).numpy() if want.placebo else one.numpy() for one in both)
        return _LENGTH.pack(len(hidden)) + hidden + self._lower(want).encode(KVCache(0, keys, values))

    def joined(self, parcels: Mapping[str, bytes], parcel: Parcel) -> Start:
        """What a parcel says together with those before it: the states of all positions so far. Raises `FrameError`, as `unpack` does."""
        one, *others = (self.unpack(parcels[part.digest], part) for part in parcel.chain)
        for other in others:
            if other.first > len(one.hidden) or other.layer != one.layer:
                raise FrameError("hidden states are missing between those that came and those that came before")
            one = replace(other, hidden=torch.cat((one.hidden[: other.first], other.hidden)), first=0)
        return one

    def unpack(self, coded: bytes, parcel: Parcel) -> Start:
        """What a parcel's bytes say. Raises `FrameError` for damaged ones, and for another payload than the parcel tells of."""
        want, cut = parcel.want, 0
        if want.lower and want.layer:
            if len(coded) < _LENGTH.size:
                raise FrameError("the frame ends too early")
            cut = _LENGTH.size + _LENGTH.unpack_from(coded)[0]
        hidden = self.codec(want.codec).decode(coded[_LENGTH.size : cut] if cut else coded)
        positions = parcel.prompt + max(len(parcel.draft) - 1, 0)
        first = hidden.first if isinstance(hidden, Hidden) else 0  # of a picture, where its camera looks
        if want.since is not None:  # a part of a sequence; of its last token there are states if nothing was said behind it
            first = parcel.prompt + want.since if want.since >= 0 else 0
            positions = parcel.prompt + len(parcel.draft) - first
            positions -= isinstance(hidden, Hidden) and len(hidden.states) == positions - 1
        if not isinstance(hidden, Hidden) or (hidden.layer, hidden.first, len(hidden.states)) != (want.layer, first, positions):
            raise FrameError("these hidden states are not those of their message")
        lower = self._lower(want).decode(coded[cut:]) if cut else None
        if lower is not None and (not isinstance(lower, KVCache) or lower.stop != want.layer or lower.keys.shape[1] != len(hidden.states)):
            raise FrameError("these keys and values are not those of their message")
        return Start(
            layer=hidden.layer,
            hidden=torch.from_numpy(hidden.states),
            prompt=parcel.prompt,
            draft=parcel.draft,
            token_ids=None if hidden.token_ids is None else tuple(hidden.token_ids.tolist()),
            lower=None if lower is None else LowerCache(*(torch.from_numpy(one)[:, None] for one in (lower.keys, lower.values))),
            first=hidden.first,
        )

    def next_tokens(self, logprobs: Tensor, top: Top) -> bytes:
        """The frame of the k likeliest next tokens, from the log-probabilities of all, [vocab]. Raises `UnknownName` for a placebo that is none.

        As a placebo all tokens are alike (`uniform`), or the log-probabilities belong to tokens drawn at random, seeded by them (`noise`).
        """
        logits = Logits.top(logprobs.numpy()[None], top.k)
        if top.placebo == "uniform":
            logits = Logits.top(np.full((1, logits.vocab), -math.log(logits.vocab), np.float32), top.k)
        elif top.placebo == "noise":
            drawn = np.random.default_rng(int(logits.digest[:16], 16)).permutation(logits.vocab)[None, : logits.values.shape[1]]
            logits = Logits(logits.values, drawn, logits.vocab)
        elif top.placebo:
            raise UnknownName("placebo", top.placebo, ("uniform", "noise"))
        return self.codec(top.codec).encode(logits)

    def told(self, odds: tuple[Tensor, Tensor], vocab: int) -> bytes:
        """The frame of what tokens were drawn from: log-probabilities of 16 bits, and the tokens that have them, both [tokens, k]."""
        from aiflow_agents.wire.odds import encode

        return encode(Logits(odds[0].numpy(), odds[1].numpy(), vocab))

    def odds(self, coded: bytes, tokens: int, vocab: int) -> Logits:
        """What such a frame says. Raises `FrameError` for one that does not tell of so many tokens, or of another vocabulary."""
        from aiflow_agents.wire.odds import decode

        found = decode(coded)
        if len(found.values) != tokens or found.vocab != vocab:
            raise FrameError(f"odds of {len(found.values)} tokens out of {found.vocab}, where {tokens} out of {vocab} were drawn")
        return found

    def _lower(self, want: Want) -> Codec:
        """Of keys and values: the codec of the hidden states, the family's own for them, or float16."""
        for one in (self.codec(want.codec), *([self.codec(LOWER)] if LOWER in self.fitted else [])):
            if {"*", f"key.{want.layer - 1}"} & set(one.codings):
                return one
        return self.codec("float16")


def placebo(states: Tensor, kind: str) -> Tensor:
    """What carries nothing and looks like these states, [..., width]: `zeros`, or `noise` with the norm of each. Seeded by the states.

    A channel that helps as much with one of these as with the real thing does not help. Raises `UnknownName`.
    """
    if kind == "zeros":
        return torch.zeros_like(states)
    if kind == "noise":
        seed = int(states.double().abs().sum().item() * 1e6) % 2**31
        noise = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed))
        return noise * (states.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
    raise UnknownName("placebo", kind, ("zeros", "noise"))
