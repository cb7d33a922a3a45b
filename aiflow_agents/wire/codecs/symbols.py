"""From whole numbers to bytes: packed at a fixed width, or entropy-coded with a model that both sides have.

Symbols are unsigned, [positions, columns]; column j lies in 0 .. 2**bits[j] - 1. A model is a table of counts for each column, fitted on calibration
states and shipped, so a message carries nothing about it. All of it is whole numbers: were a probability computed by two machines with a different
last bit, the receiver would read another tensor without noticing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.codecs.coder import Reader, Writer
from aiflow_agents.wire.codecs.stored import Stored
from aiflow_agents.wire.frame import FrameError

MODELLED_BITS = 8  # of a wider symbol only the upper eight bits have a model, the rest is noise
TOTAL = 60_000  # what the counts of a column are scaled to, so that they fit in 16 bits

Symbols = NDArray[np.uint32]
Bits = NDArray[np.uint8]


def packed_size(positions: int, bits: Bits) -> int:
    """Bytes of `positions` rows of packed symbols."""
    return -(-positions * int(bits.sum(dtype=np.int64)) // 8)


def pack(symbols: Symbols, bits: Bits) -> bytes:
    """Symbols at a fixed number of bits a column, the highest bit first, row by row."""
    column, shift = _layout(bits)
    return np.packbits(((symbols[:, column] >> shift) & 1).astype(np.uint8)).tobytes()


def unpack(body: bytes, positions: int, bits: Bits) -> Symbols:
    """The inverse of `pack`. Raises FrameError where the body has another length."""
    if len(body) != packed_size(positions, bits):
        raise FrameError(f"{len(body)} bytes of packed symbols, expected {packed_size(positions, bits)}")
    column, shift = _layout(bits)
    flat = np.unpackbits(np.frombuffer(body, np.uint8), count=positions * len(column)).reshape(positions, len(column))
    symbols = np.zeros((positions, len(bits)), np.uint32)
    np.add.at(symbols.T, column, (flat.astype(np.uint32) << shift).T)
    return symbols


def _layout(bits: Bits) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """For every bit of a row: its column, and how far to the right it lies there."""
    column = np.repeat(np.arange(len(bits)), bits)
    shift = np.concatenate([np.arange(b)[::-1] for b in bits]) if len(bits) else np.zeros(0)
    return column, shift.astype(np.uint32)


@dataclass(frozen=True, eq=False)
class Packed:
    """A fixed width a column: no model."""

    bits: Bits  # [columns]

    def pack(self, symbols: Symbols) -> bytes:
        return pack(symbols, self.bits)

    def unpack(self, body: bytes, positions: int) -> Symbols:
        return unpack(body, positions, self.bits)


@dataclass(frozen=True, eq=False)
class Modelled:
    """Entropy coding, a model a column.

    counts: [columns, 2**8] uint16, of each value of the upper eight bits; none is 0 within a column's range.
    """

    bits: Bits  # [columns]
    counts: NDArray[np.uint16]

    @classmethod
    def fit(cls, symbols: Symbols, bits: Bits) -> Modelled:
        """Count the symbols of calibration states."""
        high, counts = symbols >> _low_bits(bits), np.zeros((len(bits), 1 << MODELLED_BITS), np.uint16)
        for j, values in enumerate(_values(bits)):
            counts[j, :values] = smooth(np.bincount(high[:, j], minlength=values))
        return cls(bits, counts)

    @classmethod
    def restore(cls, stored: Stored, bits: Bits) -> Modelled:
        """From a file. Raises CalibrationError where a symbol in range has no probability."""
        counts = stored.take("counts", "uint16", len(bits), 1 << MODELLED_BITS)
        if not all(row[:values].all() for row, values in zip(counts, _values(bits), strict=True)):
            raise stored.error("counts", "has a zero within a column's range")
        return cls(bits, counts)

    def put(self, coder: Writer, symbols: Symbols) -> None:
        """symbols into a coder, for those who have more to say in one body. No column may be wider than 24 bits."""
        for j, low in enumerate(_low_bits(self.bits).tolist()):
            coder.put(np.ascontiguousarray(symbols[:, j] >> low).astype(np.int32), self._models[j])
            if low:
                coder.put(np.ascontiguousarray(symbols[:, j] & ((1 << low) - 1)).astype(np.int32), _even(low))

    def take(self, coder: Reader, positions: int) -> Symbols:
        """The next symbols on a coder, [positions, columns]."""
        found = np.empty((positions, len(self.bits)), np.uint32)
        for j, low in enumerate(_low_bits(self.bits).tolist()):
            found[:, j] = coder.take(self._models[j], positions)
            if low:
                found[:, j] = found[:, j] << low | coder.take(_even(low), positions).astype(np.uint32)
        return found

    def pack(self, symbols: Symbols) -> bytes:
        coder, high = Writer(), (symbols >> _low_bits(self.bits)).astype(np.int32)
        for j, model in enumerate(self._models):
            coder.put(np.ascontiguousarray(high[:, j]), model)
        return pack(symbols[:, self._wide], _low_bits(self.bits)[self._wide]) + coder.body()

    def unpack(self, body: bytes, positions: int) -> Symbols:
        low_bits = _low_bits(self.bits)[self._wide]
        cut = packed_size(positions, low_bits)
        low, coder = unpack(body[:cut], positions, low_bits), Reader(body[cut:])
        symbols = np.stack([coder.take(model, positions) for model in self._models], 1).astype(np.uint32)
        coder.done()
        symbols[:, self._wide] = symbols[:, self._wide] << low_bits | low
        return symbols

    def cost(self, symbols: Symbols) -> float:
        """Bits that these symbols have under the model: what `pack` comes close to."""
        high, p = symbols >> _low_bits(self.bits), self.counts / self.counts.sum(1, keepdims=True, dtype=np.int64)
        return float(-np.log2(p[np.arange(len(self.bits)), high]).sum() + len(symbols) * _low_bits(self.bits).sum())

    @cached_property
    def _wide(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.bits > MODELLED_BITS)

    @cached_property
    def _models(self) -> list[Any]:
        return [categorical(row[:values]) for row, values in zip(self.counts, _values(self.bits), strict=True)]


def smooth(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Counts as whole numbers of 16 bits, none 0, drawn a little (two observations) towards a two-sided geometric distribution of equal spread."""
    n, place = counts.sum(), np.arange(len(counts))
    centre = (counts * place).sum() / n if n else (len(counts) - 1) / 2
    spread = (counts * np.abs(place - centre)).sum() / n if n else len(counts)
    prior = np.exp(-np.abs(place - centre) / max(spread, 0.1))
    wanted = (counts + 2 * prior / prior.sum()) / (n + 2)
    return np.maximum(np.round(wanted * TOTAL), 1).astype(np.uint16)


def categorical(counts: NDArray[Any]) -> Any:
    """A model for the coder. Its probabilities are made from whole numbers, so they are the same on every machine."""
    import constriction

    return constriction.stream.model.Categorical(counts.astype(np.float64) / float(counts.sum(dtype=np.int64)), perfect=False)


def _even(bits: int) -> Any:
    """A model of so many bits of noise."""
    import constriction

    return constriction.stream.model.Uniform(1 << bits)


def _values(bits: Bits) -> list[int]:
    """How many values the modelled part of each column has."""
    return [1 << min(int(b), MODELLED_BITS) for b in bits]


def _low_bits(bits: Bits) -> NDArray[np.uint8]:
    return np.where(bits > MODELLED_BITS, bits - MODELLED_BITS, 0).astype(np.uint8)
