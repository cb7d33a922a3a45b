"""Codings that do not look around: every position by itself, as numbers that a model or a fixed width turns into bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from aiflow_agents.wire.codecs.floats import FloatFormat
from aiflow_agents.wire.codecs.quantiser import Quantiser
from aiflow_agents.wire.codecs.sample import Sample
from aiflow_agents.wire.codecs.stored import Arrays, Stored
from aiflow_agents.wire.codecs.symbols import Modelled, Packed
from aiflow_agents.wire.frame import FrameError
from aiflow_agents.wire.payload import Floats, Hidden, Ints


class Known(NamedTuple):
    """What both sides know besides the message."""

    token_ids: Ints | None = None  # of the positions that travel
    before: Hidden | None = None  # the positions before them, as they were decoded
    first: int = 0  # where in its sequence the first of them stands


class Coding(Protocol):
    """How the states of one space travel: the input of one layer, or its keys, or its values. A width of 0 means any."""

    @property
    def width(self) -> int: ...
    @property
    def floats(self) -> FloatFormat | None:
        """The float format that states keep; None where they are quantised."""
        ...

    def pack(self, states: Floats, known: Known) -> bytes:
        """states [positions, width] -> body. Raises CodecError."""
        ...

    def unpack(self, body: bytes, positions: int, width: int, known: Known) -> Floats:
        """The states again, or what is left of them. Raises FrameError for a body that `pack` does not make."""
        ...

    def arrays(self) -> Arrays:
        """All that a receiver needs to have the same coding."""
        ...


@dataclass(frozen=True, eq=False)
class Plain:
    """Quantise, then write the symbols."""

    quantiser: Quantiser | FloatFormat
    writer: Packed | Modelled

    @classmethod
    def fit(cls, quantiser: Quantiser | FloatFormat, sample: Sample, entropy: bool) -> Plain:
        """With an entropy model of what these states become, or packed at a fixed width."""
        bits = quantiser.columns
        if not entropy:
            return cls(quantiser, Packed(bits))
        if isinstance(quantiser, FloatFormat) or quantiser.places is None:
            return cls(quantiser, Modelled.fit(quantiser.symbols(sample.states), bits))
        return cls(quantiser, Modelled.fit(np.concatenate([quantiser.symbols(*piece) for piece in sample.placed("klt:places=")]), bits))

    @classmethod
    def restore(cls, stored: Stored, floats: FloatFormat | None, entropy: bool) -> Plain:
        """From a file. `floats` is the format where nothing is quantised."""
        if floats is not None:
            (width,) = stored.take("width", "int32", 1)
            quantiser: Quantiser | FloatFormat = FloatFormat(floats.dtype, int(width))
        else:
            quantiser = Quantiser.restore(stored)
        bits = quantiser.columns
        return cls(quantiser, Modelled.restore(stored, bits) if entropy else Packed(bits))

    @property
    def width(self) -> int:
        return self.quantiser.width

    @property
    def floats(self) -> FloatFormat | None:
        return self.quantiser if isinstance(self.quantiser, FloatFormat) else None

    def pack(self, states: Floats, known: Known) -> bytes:
        return self.writer.pack(self.quantiser.symbols(states, known.first))

    def unpack(self, body: bytes, positions: int, width: int, known: Known) -> Floats:
        return self.quantiser.states(self.writer.unpack(body, positions), known.first)

    def arrays(self) -> Arrays:
        return {**self.quantiser.arrays(), **({"counts": self.writer.counts} if isinstance(self.writer, Modelled) else {})}


@dataclass(frozen=True)
class Unchanged:
    """Raw floats of any width: there is nothing to fit."""

    floats: FloatFormat
    width: int = 0

    def pack(self, states: Floats, known: Known) -> bytes:
        return self.floats.patterns(states).tobytes()

    def unpack(self, body: bytes, positions: int, width: int, known: Known) -> Floats:
        if len(body) != positions * width * self.floats.size:
            raise FrameError(f"{len(body)} bytes of states, expected {positions * width * self.floats.size}")
        return self.floats.floats(np.frombuffer(body, f"<u{self.floats.size}")).reshape(positions, width)

    def arrays(self) -> Arrays:
        return {}
