"""What a codec is fitted on: states of one layer that a model really had, on text it was not trained to impress with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aiflow_agents.errors import UserError
from aiflow_agents.wire.payload import Floats, Ints


@dataclass(frozen=True, eq=False)
class Sample:
    """Calibration states, sequence after sequence, and what some codecs want besides.

    gradients: of the log-probability of sampled next tokens, one row a position; their second moment says how much the output minds an error in a
    direction (the Fisher information). token_ids: one a position. lengths: positions of each sequence.
    """

    states: Floats  # [n, width]
    gradients: Floats | None = None  # [n, width]
    token_ids: Ints | None = None  # [n]
    lengths: Ints | None = None  # [sequences]

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or len(self.states) < 2 or not np.isfinite(self.states).all():
            raise UserError(f"calibration needs at least two finite states [n, width], not {list(self.states.shape)}")
        for name, array in (("gradients", self.gradients), ("token_ids", self.token_ids)):
            if array is not None and len(array) != len(self.states):
                raise UserError(f"calibration: {len(array)} {name} for {len(self.states)} states")
        if self.lengths is not None and self.lengths.sum() != len(self.states):
            raise UserError(f"calibration: sequences of {self.lengths.sum()} positions in all, {len(self.states)} states")

    def need(self, name: str, codec: str) -> Floats | Ints:
        """An optional part; `UserError` naming the codec that cannot do without it."""
        found: Floats | Ints | None = getattr(self, name)
        if found is None:
            raise UserError(f"codec '{codec}' is fitted with {name.replace('_', ' ')} of the calibration text; this sample has none")
        return found

    def second_moment(self) -> Floats:
        """Covariance of the states, [width, width]."""
        return np.cov(self.states.T.astype(np.float64)).reshape(self.states.shape[1], -1)
