"""`raw`: states as they are, in float32, float16 or bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.codecs.quantiser import to_float16
from aiflow_agents.wire.codecs.stored import Arrays
from aiflow_agents.wire.codecs.symbols import Bits, Symbols
from aiflow_agents.wire.payload import Floats

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class FloatFormat:
    """Float states as whole numbers: the bit patterns of a format. Any state can be written but, in float16, one of 65,520 or more (CodecError)."""

    dtype: Dtype
    width: int = 0

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == "float32" else 2

    @property
    def columns(self) -> Bits:
        return np.full(self.width, 8 * self.size, np.uint8)

    def symbols(self, states: Floats, first: int = 0) -> Symbols:
        return self.patterns(states).astype(np.uint32)

    def states(self, symbols: Symbols, first: int = 0) -> Floats:
        return self.floats(symbols.astype(f"<u{self.size}"))

    def patterns(self, x: Floats) -> NDArray[Any]:
        """Bit patterns, little-endian, of the shape of x."""
        if self.dtype == "float16":
            return to_float16(x).astype("<f2").view("<u2")
        whole = np.ascontiguousarray(x, "<f4").view("<u4")
        if self.dtype == "float32":
            return whole
        rounded = (whole + 0x7FFF + (whole >> 16 & 1)) >> 16  # to nearest, ties to even
        return np.where(np.isnan(x), whole >> 16 | 0x40, rounded).astype("<u2")

    def floats(self, patterns: NDArray[Any]) -> Floats:
        if self.dtype == "bfloat16":
            return (patterns.astype("<u4") << 16).view("<f4").astype(np.float32)
        return patterns.view("<f4" if self.dtype == "float32" else "<f2").astype(np.float32)

    def arrays(self) -> Arrays:
        return {"width": np.array([self.width], np.int32)}


@dataclass(frozen=True)
class Raw:
    """The states in one of three formats."""

    dtype: Dtype = "float16"
