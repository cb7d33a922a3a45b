"""How wide a symbol will spread, known before it is read: a class for each coefficient and context, and a table of counts for each class.

The context is the token at a position and whether the boundary token (where an answer begins) has been seen. Contexts and classes are whole numbers
taken from tables, so sender and receiver cannot disagree about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.codecs.stored import Arrays, Stored
from aiflow_agents.wire.frame import FrameError
from aiflow_agents.wire.payload import Ints

REACH = 24  # symbols -REACH .. REACH have a count; any other is an escape and 16 bits
CLASSES = 56
NARROWEST, WIDEST = 2.0**-10, 2.0**4  # mean magnitudes of the first and the last class
PRIOR = 20.0  # observations by which a context is held to what its token and its coefficient have in common

SPAN = np.log(WIDEST / NARROWEST) / (CLASSES - 1)  # from one class to the next

Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contexts:
    """level: [2 * (vocab + 1), columns] class of each coefficient; counts: [classes, 2 * REACH + 2] of escape, -REACH .. REACH."""

    boundary: int  # a token id; vocab or more: none
    level: NDArray[np.uint8]
    counts: NDArray[np.uint16]

    @property
    def vocab(self) -> int:
        return len(self.level) // 2 - 1

    def of(self, ids: Ints) -> Ints:
        """ids [rows, positions] -> contexts [rows, positions]."""
        return context(ids, self.vocab, self.boundary)

    @classmethod
    def none(cls, vocab: int, boundary: int, columns: int) -> Contexts:
        """Before anything is counted."""
        return cls(boundary, np.zeros((2 * (vocab + 1), columns), np.uint8), np.ones((1, 2 * REACH + 2), np.uint16))

    @classmethod
    def fit(cls, symbols: Whole, contexts: Ints, vocab: int, boundary: int) -> Contexts:
        """symbols [n, columns] and the contexts [n] that they occurred in."""
        size, columns = np.abs(symbols).astype(np.float64), symbols.shape[1]
        total, n = np.zeros((2 * (vocab + 1), columns)), np.bincount(contexts, minlength=2 * (vocab + 1))
        np.add.at(total, contexts, size)
        overall = size.mean(0) + 1e-3  # by coefficient
        share = (total.sum(1) + PRIOR * overall.sum()) / ((n + PRIOR) * overall.sum())  # by context
        expected = (total + PRIOR * share[:, None] * overall) / (n + PRIOR)[:, None]
        level = np.clip(np.rint(np.log(expected / NARROWEST) / SPAN), 0, CLASSES - 1).astype(np.uint8)
        index, found = _index(symbols), np.zeros((CLASSES, 2 * REACH + 2), np.int64)
        np.add.at(found, (level[contexts], index), 1)
        return cls(boundary, level, np.stack([_counts(row, NARROWEST * np.exp(SPAN * k)) for k, row in enumerate(found)]))

    @classmethod
    def restore(cls, stored: Stored, vocab: int, columns: int) -> Contexts:
        level, counts = stored.take("level", "uint8", 2 * (vocab + 1), columns), stored.take("counts", "uint16", None, 2 * REACH + 2)
        if not counts.all() or level.size and level.max() >= len(counts):
            raise stored.error("counts", "has a zero, or fewer rows than there are classes")
        (boundary,) = stored.take("boundary", "int32", 1)
        return cls(int(boundary), level, counts)

    def arrays(self) -> Arrays:
        return {"boundary": np.array([self.boundary], np.int32), "level": self.level, "counts": self.counts}

    def spreads(self) -> NDArray[np.float32]:
        """About the mean magnitude of a symbol in each context, [contexts, columns]."""
        return (NARROWEST * np.exp(SPAN * self.level)).astype(np.float32)

    # -- one position of one message -----------------------------------------------------------------------------------

    def push(self, coder: Any, symbols: Whole, context: int) -> None:
        """symbols [columns] onto the coder, so that `pull` finds them."""
        index = _index(symbols)
        outside = symbols[index == 0]
        if outside.size:
            coder.encode_reverse((np.clip(outside, -(1 << 15), (1 << 15) - 1) + (1 << 15)).astype(np.int32), self._any16)
        coder.encode_reverse(index.astype(np.int32), self._family, self._probabilities[self.level[context]])

    def pull(self, coder: Any, context: int) -> Whole:
        """Raises FrameError for symbols that no writer leaves."""
        index = coder.decode(self._family, self._probabilities[self.level[context]])
        symbols: Whole = index.astype(np.int64) - 1 - REACH
        if outside := int((index == 0).sum()):
            found = coder.decode(self._any16, outside).astype(np.int64) - (1 << 15)
            if (np.abs(found) <= REACH).any():
                raise FrameError("an escape for a symbol that needs none")
            symbols[index == 0] = found
        return symbols

    def cost(self, symbols: Whole, contexts: Ints) -> float:
        """Bits of symbols [n, columns] under the model."""
        index = _index(symbols)
        return float(-np.log2(self._probabilities[self.level[contexts], index]).sum() + 16 * (index == 0).sum())

    @cached_property
    def _probabilities(self) -> NDArray[np.float64]:
        return self.counts / self.counts.sum(1, keepdims=True, dtype=np.int64).astype(np.float64)

    @cached_property
    def _family(self) -> Any:
        import constriction

        return constriction.stream.model.Categorical(perfect=False)

    @cached_property
    def _any16(self) -> Any:
        import constriction

        return constriction.stream.model.Uniform(1 << 16)


def context(ids: Ints, vocab: int, boundary: int) -> Ints:
    """ids [rows, positions] -> contexts, from 0 to 2 * vocab + 1: the token, and in the upper half those from the boundary on."""
    return np.minimum(ids, vocab) + (vocab + 1) * ((ids == boundary).cumsum(1) > 0)


def _index(symbols: Whole) -> Whole:
    return np.where(np.abs(symbols) <= REACH, symbols + REACH + 1, 0)


def _counts(found: NDArray[np.int64], spread: float) -> NDArray[np.uint16]:
    """A class's counts, drawn towards a two-sided geometric distribution of the spread that it stands for."""
    decay = (np.sqrt(1 + spread**2) - 1) / spread  # then the mean magnitude is `spread`
    prior = np.concatenate([[1e-6], decay ** np.abs(np.arange(-REACH, REACH + 1))])
    wanted = found + 40 * prior / prior.sum()
    return np.maximum(np.round(wanted / wanted.sum() * 60_000), 1).astype(np.uint16)
