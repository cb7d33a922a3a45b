"""What drafted tokens were drawn from, as a frame: for each token the k likeliest ones at its place, with 16 bits of their log-probabilities.

The drafter draws from just that, so both ends know the distribution exactly, and no more than k tokens a place travel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiflow_agents.wire.payload import Logits

CODEC = "float16"


def encode(odds: Logits) -> bytes:
    """The frame; log-probabilities are those of float16 already."""
    from aiflow_agents.wire.codecs import codec

    return codec(CODEC).encode(odds)


def decode(frame: bytes) -> Logits:
    """One row a token. Raises FrameError for anything else."""
    from aiflow_agents.wire.codecs import codec
    from aiflow_agents.wire.frame import FrameError
    from aiflow_agents.wire.payload import Logits

    found = codec(CODEC).decode(frame)
    if not isinstance(found, Logits):
        raise FrameError("these are no odds")
    return found


def count(frame: bytes) -> int:
    """Of how many tokens it tells; an empty one of none."""
    return len(decode(frame).values) if frame else 0


def last(frame: bytes, tokens: int) -> bytes:
    """The same of the last so many tokens alone: the receiver has what was told of those before them, or has settled them."""
    if not frame or tokens <= 0:
        return b""
    odds = decode(frame)
    if len(odds.values) <= tokens:
        return frame
    return encode(replace(odds, values=odds.values[-tokens:], indices=None if odds.indices is None else odds.indices[-tokens:]))


def joined(before: bytes, new: bytes) -> bytes:
    """Of the tokens of both, one after the other. Where they tell of so many tokens a place and of so many, only the new ones."""
    if not before or not new:
        return new
    import numpy as np

    one, other = decode(before), decode(new)
    if one.values.shape[1] != other.values.shape[1] or one.indices is None or other.indices is None:
        return new
    return encode(replace(one, values=np.concatenate((one.values, other.values)), indices=np.concatenate((one.indices, other.indices))))
