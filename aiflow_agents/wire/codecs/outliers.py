"""`outliers`: the few channels that are far larger than the rest travel in float16, the others as integers (LLM.int8(), arXiv:2208.07339)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aiflow_agents.errors import UserError
from aiflow_agents.wire.codecs.integer import integers
from aiflow_agents.wire.codecs.quantiser import Quantiser
from aiflow_agents.wire.codecs.sample import Sample


@dataclass(frozen=True)
class Outliers:
    """The `channels` of largest magnitude apart, integers of so many bits for the rest."""

    channels: int = 4
    bits: int = 4

    def fit(self, sample: Sample) -> Quantiser:
        width = sample.states.shape[1]
        if self.channels >= width:
            raise UserError(f"codec 'outliers': {self.channels} channels apart leave nothing of {width}")
        apart = np.sort(np.argsort(-np.abs(sample.states).max(0), kind="stable")[: self.channels]).astype(np.int32)
        rest = sample.states.copy()
        rest[:, apart] = 0
        kept = np.delete(np.arange(width), apart)
        pick = np.eye(width, dtype=np.float32)[:, kept]
        return replace(integers(rest @ pick, self.bits, analysis=pick, synthesis=np.ascontiguousarray(pick.T)), apart=apart)
