"""How wide a symbol will spread, known before it is read: a class for each coefficient and context, and a table of counts for each class and mood.

The context is the token at a position and whether the boundary token (where an answer begins) has been seen. The mood is how large the symbols of
the position have been so far beside what their classes promise: a surprise is rarely one of a single coefficient. All of it is whole numbers, from
tables and symbols, so sender and receiver cannot disagree about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.codecs.coder import Reader, Writer
from aiflow_agents.wire.codecs.stored import Arrays, Stored
from aiflow_agents.wire.frame import FrameError
from aiflow_agents.wire.payload import Ints

REACH = 24  # symbols -REACH .. REACH have a count; any other is an escape and 16 bits
CLASSES = 56
NARROWEST, WIDEST = 2.0**-10, 2.0**4  # mean magnitudes of the first and the last class
PRIOR = 20.0  # observations by which a context is held to what its token and its coefficient have in common

UNIT = 64  # what a magnitude of 1 counts in sums of magnitudes, which are whole numbers
FIRST = 16  # columns of the first part; each later part begins where its number of columns is doubled
FLAT = 3 * UNIT  # held against both sums, so that a few symbols do not make a mood
MOODS = 9, 12, 15, 18, 22, 28, 36  # where one ends and the next begins: sixteenths of what was promised

SPAN = np.log(WIDEST / NARROWEST) / (CLASSES - 1)  # from one class to the next

Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contexts:
    """level: [2 * (vocab + 1), columns] class of each coefficient; counts: [classes, moods, 2 * REACH + 2] of escape, -REACH .. REACH."""

    boundary: int  # a token id; vocab or more: none
    level: NDArray[np.uint8]
    promised: NDArray[np.uint16]  # [classes], mean magnitude in units
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
        level, counts = np.zeros((2 * (vocab + 1), columns), np.uint8), np.ones((1, len(MOODS) + 1, 2 * REACH + 2), np.uint16)
        return cls(boundary, level, np.ones(1, np.uint16), counts)

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
        spread, found = NARROWEST * np.exp(SPAN * np.arange(CLASSES)), np.zeros((CLASSES, len(MOODS) + 1, 2 * REACH + 2), np.int64)
        fitted = cls(boundary, level, np.rint(UNIT * spread).astype(np.uint16), found.astype(np.uint16))
        index = _index(symbols)
        np.add.at(found, (level[contexts], fitted._moods(index, contexts), index), 1)
        return replace(fitted, counts=np.stack([_counts(rows, spread[k]) for k, rows in enumerate(found)]))

    @classmethod
    def restore(cls, stored: Stored, vocab: int, columns: int) -> Contexts:
        level, counts = stored.take("level", "uint8", 2 * (vocab + 1), columns), stored.take("counts", "uint16", None, len(MOODS) + 1, 2 * REACH + 2)
        if not counts.all() or level.size and level.max() >= len(counts):
            raise stored.error("counts", "has a zero, or fewer rows than there are classes")
        (boundary,) = stored.take("boundary", "int32", 1)
        return cls(int(boundary), level, stored.take("promised", "uint16", len(counts)), counts)

    def arrays(self) -> Arrays:
        return {"boundary": np.array([self.boundary], np.int32), "level": self.level, "promised": self.promised, "counts": self.counts}

    def spreads(self) -> NDArray[np.float32]:
        """About the mean magnitude of a symbol in each context, [contexts, columns]."""
        return (NARROWEST * np.exp(SPAN * self.level)).astype(np.float32)

    # -- one position of one message -----------------------------------------------------------------------------------

    def put(self, coder: Writer, symbols: Whole, context: int) -> None:
        """symbols [columns] into the coder."""
        index = _index(symbols)
        mood = self._moods(index[None], np.array([context]))[0]
        coder.put(index.astype(np.int32), self._family, self._probabilities[self.level[context], mood])
        outside = symbols[index == 0]
        if outside.size:
            coder.put((np.clip(outside, -(1 << 15), (1 << 15) - 1) + (1 << 15)).astype(np.int32), self._any16)

    def take(self, coder: Reader, context: int) -> Whole:
        """Raises FrameError for symbols that no writer leaves."""
        level, index = self.level[context], np.empty(self.level.shape[1], np.int64)
        sums = _Sums(1)
        for part in _parts(len(index)):
            index[part] = coder.take(self._family, self._probabilities[level[part], sums.mood()])
            sums.add(index[None, part], self.promised[level[None, part]])
        symbols: Whole = index - 1 - REACH
        if outside := int((index == 0).sum()):
            found = coder.take(self._any16, outside).astype(np.int64) - (1 << 15)
            if (np.abs(found) <= REACH).any():
                raise FrameError("an escape for a symbol that needs none")
            symbols[index == 0] = found
        return symbols

    def cost(self, symbols: Whole, contexts: Ints) -> float:
        """Bits of symbols [n, columns] under the model."""
        index = _index(symbols)
        p = self._probabilities[self.level[contexts], self._moods(index, contexts), index]
        return float(-np.log2(p).sum() + 16 * (index == 0).sum())

    def _moods(self, index: Whole, contexts: Ints) -> Whole:
        """Of each coefficient, [n, columns], as they follow from those before it."""
        level, found, sums = self.level[contexts], np.empty(index.shape, np.int64), _Sums(len(index))
        for part in _parts(index.shape[1]):
            found[:, part] = sums.mood()[:, None]
            sums.add(index[:, part], self.promised[level[:, part]])
        return found

    @cached_property
    def _probabilities(self) -> NDArray[np.float64]:
        return self.counts / self.counts.sum(-1, keepdims=True, dtype=np.int64).astype(np.float64)

    @cached_property
    def _family(self) -> Any:
        import constriction

        return constriction.stream.model.Categorical(perfect=False)

    @cached_property
    def _any16(self) -> Any:
        import constriction

        return constriction.stream.model.Uniform(1 << 16)


class _Sums:
    """Over the coefficients of some positions so far: how large they are, and how large they were promised to be."""

    def __init__(self, positions: int):
        self.found = self.promised = np.full(positions, FLAT, np.int64)

    def add(self, index: Whole, promised: NDArray[np.uint16]) -> None:
        """Both [positions, n]. An escape counts as the smallest symbol that needs one."""
        self.found = self.found + UNIT * np.abs(index - 1 - REACH).sum(1)
        self.promised = self.promised + promised.sum(1, dtype=np.int64)

    def mood(self) -> Whole:
        return (16 * self.found[:, None] >= np.array(MOODS) * self.promised[:, None]).sum(1)


def _parts(columns: int) -> Iterator[slice]:
    """Within a part, no symbol tells anything of another: each costs the receiver a step."""
    start, stop = 0, FIRST
    while start < columns:
        yield slice(start, min(stop, columns))
        start, stop = stop, 2 * stop


def context(ids: Ints, vocab: int, boundary: int) -> Ints:
    """ids [rows, positions] -> contexts, from 0 to 2 * vocab + 1: the token, and in the upper half those from the boundary on."""
    return np.minimum(ids, vocab) + (vocab + 1) * ((ids == boundary).cumsum(1) > 0)


def _index(symbols: Whole) -> Whole:
    return np.where(np.abs(symbols) <= REACH, symbols + REACH + 1, 0)


def _counts(found: NDArray[np.int64], spread: float) -> NDArray[np.uint16]:
    """A class's counts [moods, values]: each mood's drawn towards those of all, these towards a two-sided geometric distribution of that spread."""
    decay = (np.sqrt(1 + spread**2) - 1) / spread  # then the mean magnitude is `spread`
    prior = np.concatenate([[1e-6], decay ** np.abs(np.arange(-REACH, REACH + 1))])
    of_all = found.sum(0) + 40 * prior / prior.sum()
    wanted = found + 40 * of_all / of_all.sum()
    return np.maximum(np.round(wanted / wanted.sum(1, keepdims=True) * 60_000), 1).astype(np.uint16)
