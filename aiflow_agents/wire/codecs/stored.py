"""Arrays of a fitted codec as they come out of a file: nothing about them is believed before it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.errors import UserError

Arrays = dict[str, NDArray[Any]]


class CalibrationError(UserError):
    """A calibration file that is damaged, or does not fit its codec. Says file and array."""


@dataclass(frozen=True)
class Stored:
    """The arrays of one space."""

    file: str
    space: str
    arrays: Mapping[str, NDArray[Any]]

    def take(self, name: str, dtype: str, *shape: int | None) -> NDArray[Any]:
        """An array of this dtype and shape (None: any length). Raises CalibrationError, also where a float is not finite."""
        if name not in self.arrays:
            raise self.error(name, "is missing")
        found, wanted = self.arrays[name], np.dtype(dtype)
        if found.dtype != wanted:
            raise self.error(name, f"has dtype {found.dtype}, expected {wanted}")
        if found.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, found.shape, strict=True)):
            expected = ", ".join("any" if n is None else str(n) for n in shape)
            raise self.error(name, f"has shape {list(found.shape)}, expected [{expected}]")
        if wanted.kind == "f" and not np.isfinite(found).all():
            raise self.error(name, "is not finite")
        return found

    def maybe(self, name: str, dtype: str, *shape: int | None) -> NDArray[Any] | None:
        """As `take`, or None where there is no such array."""
        return self.take(name, dtype, *shape) if name in self.arrays else None

    def error(self, name: str, what: str) -> CalibrationError:
        return CalibrationError(f"calibration {self.file}: '{self.space}/{name}' {what}")
