"""What a codec is fitted on: states of one layer that a model really had, on text it was not trained to impress with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.errors import UserError
from aiflow_agents.wire.payload import Floats, Ints


@dataclass(frozen=True, eq=False)
class Sample:
    """Calibration states, sequence after sequence, and what some codecs want besides.

    gradients: of the log-probability of sampled next tokens, one row a position, drawn once or several times; their second moment says how much the
    output minds an error in a direction (the Fisher information). token_ids: one a position. lengths: positions of each
    sequence; first: where each of them begins, 0 where nothing is said.
    """

    states: Floats  # [n, width]
    gradients: Floats | None = None  # [n, width] or [draws, n, width]
    token_ids: Ints | None = None  # [n]
    lengths: Ints | None = None  # [sequences]
    first: Ints | None = None  # [sequences]

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or len(self.states) < 2 or not np.isfinite(self.states).all():
            raise UserError(f"calibration needs at least two finite states [n, width], not {list(self.states.shape)}")
        for name, array in (("gradients", self.gradients), ("token_ids", self.token_ids)):
            rows = len(self.states) if array is None else array.shape[-2] if name == "gradients" else len(array)
            if rows != len(self.states):
                raise UserError(f"calibration: {rows} {name} for {len(self.states)} states")
        if self.lengths is not None and self.lengths.sum() != len(self.states):
            raise UserError(f"calibration: sequences of {self.lengths.sum()} positions in all, {len(self.states)} states")

    def needed_gradients(self, codec: str) -> Floats:
        """The gradients [draws, n, width]; `UserError` naming the codec that cannot do without them."""
        if self.gradients is None:
            raise UserError(f"codec '{codec}' is fitted with gradients of the outputs; this sample has none")
        return self.gradients.reshape(-1, *self.states.shape)

    def pieces(self, codec: str) -> list[Floats]:
        """The states of each sequence; `UserError` naming the codec that wants whole sequences, where this sample has none."""
        if self.lengths is None:
            raise UserError(f"codec '{codec}' is fitted with the lengths of whole sequences; this sample has none")
        return np.split(self.states, self.lengths.cumsum()[:-1])

    def placed(self, codec: str) -> list[tuple[Floats, int]]:
        """The states of each sequence, and the position at which it begins."""
        pieces = self.pieces(codec)
        return list(zip(pieces, [0] * len(pieces) if self.first is None else self.first.tolist(), strict=True))

    def padded(self, codec: str) -> tuple[Floats, Ints, NDArray[np.bool_]]:
        """States [sequences, positions, width], token ids and which places are not padding, both [sequences, positions].

        `UserError` naming the codec that wants whole sequences, where this sample has none.
        """
        if self.token_ids is None or self.lengths is None:
            raise UserError(f"codec '{codec}' is fitted with the token ids and lengths of whole sequences; this sample has none")
        present = np.arange(self.lengths.max()) < self.lengths[:, None]
        states = np.zeros((*present.shape, self.states.shape[1]), np.float32)
        ids = np.zeros(present.shape, np.int64)
        states[present], ids[present] = self.states, self.token_ids
        return states, ids, present
