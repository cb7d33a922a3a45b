"""From states to whole numbers and back: a linear map, then one uniform step a coefficient.

    states [positions, width] - mean -> @ analysis -> / step -> round -> symbols [positions, columns] -> ... -> states

Integer, rotated, low-rank and transform codecs are all of this one form and differ in how it is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.errors import AIFlowError
from aiflow_agents.wire.codecs.stored import Arrays, Stored
from aiflow_agents.wire.codecs.symbols import Bits, Symbols
from aiflow_agents.wire.payload import Floats


class CodecError(AIFlowError):
    """These states cannot be coded: they are not finite, have another width, or are too large for the format."""


@dataclass(frozen=True, eq=False)
class Quantiser:
    """Fitted for the states of one layer. Coefficients beyond low .. low + 2**bits - 1 are cut off there."""

    step: Floats  # [columns]
    low: NDArray[np.int32]  # [columns], the smallest whole number
    bits: Bits  # [columns]
    mean: Floats | None = None  # [width]; None: zero
    analysis: Floats | None = None  # [width, columns]; None: the identity
    synthesis: Floats | None = None  # [columns, width]
    apart: NDArray[np.int32] | None = None  # channels that travel in float16, as last columns, and are zero for the map
    places: Floats | None = None  # [places, width]: the mean of each of the first positions, where it is not that of all

    @classmethod
    def restore(cls, stored: Stored) -> Quantiser:
        """From a file. Raises CalibrationError for arrays that do not belong together."""
        step = stored.take("step", "float32", None)
        m = len(step)
        low, bits = stored.take("low", "int32", m), stored.take("bits", "uint8", m)
        analysis = stored.maybe("analysis", "float32", None, m)
        width = m if analysis is None else len(analysis)
        synthesis = None if analysis is None else stored.take("synthesis", "float32", m, width)
        apart = stored.maybe("apart", "int32", None)
        if not (step > 0).all():
            raise stored.error("step", "must be positive")
        if not ((bits >= 1) & (bits <= 24)).all():
            raise stored.error("bits", "must lie in 1 .. 24")
        if apart is not None and not ((apart >= 0) & (apart < width)).all():
            raise stored.error("apart", f"names channels outside 0 .. {width - 1}")
        mean, places = stored.maybe("mean", "float32", width), stored.maybe("places", "float32", None, width)
        return cls(step, low, bits, mean, analysis, synthesis, apart, places)

    def arrays(self) -> Arrays:
        return {name: array for name, array in vars(self).items() if array is not None}

    @property
    def width(self) -> int:
        return len(self.step) if self.analysis is None else self.analysis.shape[0]

    @property
    def columns(self) -> Bits:
        """Bits of each column of symbols."""
        return self.bits if self.apart is None else np.concatenate([self.bits, np.full(len(self.apart), 16, np.uint8)])

    def symbols(self, states: Floats, first: int = 0) -> Symbols:
        """Of states that begin at position `first` of their sequence.

        Raises CodecError for states that are not finite, or too large for float16 in a channel apart.
        """
        if not np.isfinite(states).all():
            raise CodecError("states that are not finite cannot be quantised; send them raw")
        centred = states if self.mean is None else states - self.middle(first, len(states))
        if self.apart is not None:
            channels, centred = to_float16(centred[:, self.apart]), centred.copy()
            centred[:, self.apart] = 0
        y = centred if self.analysis is None else centred @ self.analysis
        top = (np.int64(1) << self.bits.astype(np.int64)) - 1
        found = np.clip(np.rint(y / self.step) - self.low, 0, top).astype(np.uint32)
        return found if self.apart is None else np.concatenate([found, channels.view(np.uint16).astype(np.uint32)], 1)

    def states(self, symbols: Symbols, first: int = 0) -> Floats:
        m = len(self.step)
        y = (symbols[:, :m].astype(np.int64) + self.low).astype(np.float32) * self.step
        x: Floats = y if self.synthesis is None else np.asarray(y @ self.synthesis, np.float32)
        if self.apart is not None:
            x[:, self.apart] = symbols[:, m:].astype(np.uint16).view(np.float16)
        return x if self.mean is None else x + self.middle(first, len(x))

    def middle(self, first: int, count: int) -> Floats:
        """What is taken off before, [count, width] or [width]: the mean, or that of each place."""
        assert self.mean is not None
        if self.places is None:
            return self.mean
        known = self.places[first : first + count]
        return np.concatenate([known, np.broadcast_to(self.mean, (count - len(known), len(self.mean)))])


def to_float16(x: Floats) -> NDArray[np.float16]:
    """Raises CodecError for what would become infinite."""
    with np.errstate(over="ignore"):
        found = x.astype(np.float16)
    if (np.isinf(found) & np.isfinite(x)).any():
        raise CodecError(f"a state of {np.abs(x[np.isfinite(x)]).max():.3g} does not fit into float16; use bfloat16")
    return found
