"""`int8`, `int4`: a scale a channel, fitted on calibration states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aiflow_agents.wire.codecs.quantiser import Quantiser
from aiflow_agents.wire.codecs.sample import Sample
from aiflow_agents.wire.payload import Floats

CLIPS = np.linspace(0.3, 1.0, 29)  # shares of a channel's largest value that may become the largest symbol


@dataclass(frozen=True)
class Integer:
    """Symmetric integers of so many bits."""

    bits: int = 8

    def fit(self, sample: Sample) -> Quantiser:
        return integers(sample.states, self.bits)


def integers(y: Floats, bits: int, **rest: Any) -> Quantiser:
    """Symmetric integers for coefficients y [n, columns], each column with the step of least squared error on them."""
    most, columns = (1 << (bits - 1)) - 1 or 1, y.shape[1]  # one bit: -1 and 0
    largest = np.maximum(np.abs(y).max(0), 1e-12)
    best, step = np.full(columns, np.inf), np.empty(columns)
    for clip in CLIPS:
        trial = largest * clip / most
        error = ((np.clip(np.rint(y / trial), -most, most) * trial - y) ** 2).sum(0)
        step, best = np.where(error < best, trial, step), np.minimum(error, best)
    low = np.full(columns, -most, np.int32)
    return Quantiser(step.astype(np.float32), low, np.full(columns, bits, np.uint8), **rest)
