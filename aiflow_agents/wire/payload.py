"""What can travel besides text: hidden states, logits, keys and values. Plain numpy, so that a phone's courier needs no model library.

A payload has no size of its own. What it weighs on a wire is `len(codec.encode(payload))`, and depends on the codec.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.errors import AIFlowError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class PayloadError(AIFlowError):
    """Arrays that do not make a payload: their shapes do not fit together."""


@dataclass(frozen=True, eq=False)
class Hidden:
    """The input of layer `layer` at some positions of one sequence: what a deeper branch goes on from.

    states: [positions, width]. `first` is the place of the first of them in the sequence; 0 where all positions so far are here. `token_ids`
    [positions] lets a receiver rebuild the caches of the layers below, which it needs to make more than one further token.
    """

    layer: int
    states: Floats
    token_ids: Ints | None = None
    first: int = 0

    def __post_init__(self) -> None:
        _set(self, states=_floats(self.states, 2, "states"))
        if self.token_ids is not None:
            _set(self, token_ids=_ids(self.token_ids, "token_ids"))
            if len(self.token_ids) != len(self.states):
                raise PayloadError(f"{len(self.token_ids)} token ids for {len(self.states)} positions")
        _natural(layer=self.layer, first=self.first)

    @cached_property
    def digest(self) -> str:
        return _digest("hidden", self.layer, self.first, self.states, self.token_ids)


@dataclass(frozen=True, eq=False)
class Logits:
    """Next-token logits at some positions: all of them, values [positions, vocab], or the k largest, values and indices [positions, k]."""

    values: Floats
    indices: Ints | None = None
    vocab: int = 0  # taken from values where all are here

    def __post_init__(self) -> None:
        _set(self, values=_floats(self.values, 2, "values"))
        if self.indices is None:
            _set(self, vocab=self.vocab or self.values.shape[1])
            if self.vocab != self.values.shape[1]:
                raise PayloadError(f"{self.values.shape[1]} logits a position, the vocabulary has {self.vocab}; give indices")
            return
        _set(self, indices=_ids(self.indices, "indices", 2))
        if self.indices.shape != self.values.shape:
            raise PayloadError(f"values have shape {list(self.values.shape)}, indices {list(self.indices.shape)}")
        _natural(vocab=self.vocab)
        if self.indices.size and self.indices.max() >= self.vocab:
            raise PayloadError(f"index {self.indices.max()} in a vocabulary of {self.vocab}")

    @classmethod
    def top(cls, logits: Floats, k: int) -> Logits:
        """The k largest of logits [positions, vocab], largest first; of equals, the one with the smaller index first."""
        k = min(k, logits.shape[1])
        indices = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        return cls(np.take_along_axis(logits, indices, 1), indices, logits.shape[1])

    @cached_property
    def digest(self) -> str:
        return _digest("logits", self.vocab, 0, self.values, self.indices)


@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of layers start .. start + layers at all positions so far; both [layers, positions, kv_heads, head_dim], keys turned."""

    start: int
    keys: Floats
    values: Floats

    def __post_init__(self) -> None:
        _set(self, keys=_floats(self.keys, 4, "keys"), values=_floats(self.values, 4, "values"))
        if self.keys.shape != self.values.shape:
            raise PayloadError(f"keys have shape {list(self.keys.shape)}, values {list(self.values.shape)}")
        _natural(start=self.start)

    @property
    def stop(self) -> int:
        """The first layer that is not here."""
        return self.start + self.keys.shape[0]

    @cached_property
    def digest(self) -> str:
        return _digest("kv", self.start, 0, self.keys, self.values)


Payload = Hidden | Logits | KVCache


def _set(payload: Any, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(payload, name, value)


def _floats(array: Any, dimensions: int, name: str) -> Floats:
    found = np.ascontiguousarray(array, dtype=np.float32)
    if found.ndim != dimensions or np.ndim(array) != dimensions:
        raise PayloadError(f"{name} must have {dimensions} dimensions, not {np.ndim(array)}")
    return found


def _ids(array: Any, name: str, dimensions: int = 1) -> Ints:
    given = np.asarray(array)
    if given.ndim != dimensions or given.size and given.dtype.kind not in "iu":
        raise PayloadError(f"{name} must be whole numbers in {dimensions} dimension{'s' if dimensions > 1 else ''}")
    if given.size and (given.min() < 0 or given.max() >= 2**32):
        raise PayloadError(f"{name} must lie in 0 .. 2^32 - 1")
    return np.ascontiguousarray(given, dtype=np.int64)


def _natural(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 0:
            raise PayloadError(f"{name} must not be negative")


def _digest(kind: str, first: int, second: int, *arrays: NDArray[Any] | None) -> str:
    """sha256 of a payload's content. Little-endian, so that it is the same on every machine."""
    digest = hashlib.sha256(f"{kind} {first} {second}".encode())
    for array in arrays:
        digest.update(f" {'none' if array is None else array.shape} ".encode())
        if array is not None:
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
