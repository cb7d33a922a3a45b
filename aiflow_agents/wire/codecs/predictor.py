"""What the next state will be, before it is sent: from the tokens, which both sides know, and from the positions before, as they were decoded.

    z = place[t] + sum over lags of lag[i][token t-i] + mean of bag[tokens so far] + [y(t-1), y(t-2), mean of y before] @ recent
    prediction of y(t) = z[:width] + silu(z[width:]) @ out

A table look-up for the tokens, one small matrix for the past and, if there is a hidden part, two: a fraction of the layers that made the state. An
error in the last bit moves a prediction by as much and nothing else, so two machines need not compute the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.codecs.stored import Arrays, Stored
from aiflow_agents.wire.payload import Floats, Ints

LAGS, PLACES = 4, 64
RIDGE = 10.0  # pseudo-observations that hold the tables back
NOISE = 0.02  # variance of the decoder's error in what it looks back on, relative to that of the states


@dataclass(frozen=True, eq=False)
class Predictor:
    """For states normed to mean 0 and deviation about 1. Row `vocab` of a table stands for any other token, and for none."""

    lag: Floats  # [lags, vocab + 1, width + hidden]
    place: Floats  # [places, width + hidden]
    bag: Floats  # [vocab + 1, width + hidden]
    recent: Floats  # [3 * width, width + hidden]
    out: Floats  # [hidden, width]

    @property
    def width(self) -> int:
        return self.out.shape[1]

    @property
    def vocab(self) -> int:
        return self.bag.shape[0] - 1

    @property
    def multiplications(self) -> int:
        """For one position; look-ups have none."""
        return self.recent.size + self.out.size

    def of_tokens(self, ids: Ints, first: int = 0) -> Floats:
        """The part that tokens decide: ids [rows, positions], the first at place `first` -> [rows, positions, width + hidden]."""
        rows, positions = ids.shape
        ids = np.minimum(ids, self.vocab)
        z = self.bag[ids].cumsum(1) / np.arange(1, positions + 1, dtype=np.float32)[:, None]
        z += self.place[np.minimum(np.arange(first, first + positions), len(self.place) - 1)]
        for i, table in enumerate(self.lag):
            z += table[np.concatenate([np.full((rows, min(i, positions)), self.vocab), ids[:, : max(positions - i, 0)]], 1)]
        return np.asarray(z, np.float32)

    def predict(self, of_tokens: Floats, past: Past) -> Floats:
        """of_tokens [rows, width + hidden] of one position -> the state expected there, [rows, width]."""
        z = of_tokens + past.features() @ self.recent
        plain, hidden = z[:, : self.width], z[:, self.width :]
        return plain + (hidden / (1 + np.exp(-hidden.clip(-80)))) @ self.out

    @classmethod
    def restore(cls, stored: Stored) -> Predictor:
        lag = stored.take("lag", "float16", None, None, None).astype(np.float32)
        _, rows, both = lag.shape
        out = stored.take("out", "float16", None, None).astype(np.float32)
        hidden, width = out.shape
        if hidden + width != both or rows < 1:
            raise stored.error("lag", f"has {rows} rows of {both} numbers, 'out' is [{hidden}, {width}]")
        place, bag = stored.take("place", "float16", None, both), stored.take("bag", "float16", rows, both)
        recent = stored.take("recent", "float16", 3 * width, both)
        if not len(place):
            raise stored.error("place", "is empty")
        return cls(lag, place.astype(np.float32), bag.astype(np.float32), recent.astype(np.float32), out)

    def arrays(self) -> Arrays:
        return {name: array.astype(np.float16) for name, array in vars(self).items()}

    def rounded(self) -> Predictor:
        """As it comes back from a file, where numbers have 16 bits."""
        return Predictor(**{name: array.astype(np.float32) for name, array in self.arrays().items()})


class Past:
    """The decoded states before a position, as far as the predictor looks back: the last two, and the mean of all."""

    def __init__(self, rows: int, width: int):
        self.last, self.second, self.sum, self.count = (*(np.zeros((rows, width), np.float32) for _ in range(3)), 0)

    def add(self, y: Floats) -> None:
        self.last, self.second, self.sum, self.count = y, self.last, self.sum + y, self.count + 1

    def features(self) -> Floats:
        return np.concatenate([self.last, self.second, self.sum / max(self.count, 1)], 1)


def fit_predictor(y: Floats, ids: Ints, present: NDArray[np.bool_], vocab: int, seed: int = 0) -> Predictor:
    """The least-squares predictor without a hidden part. y: normed states [rows, positions, width]; ids, present: [rows, positions]."""
    rows, positions, width = y.shape
    ids = np.minimum(ids, vocab)
    seen = y + np.float32(np.sqrt(NOISE)) * np.random.default_rng(seed).standard_normal(y.shape).astype(np.float32)
    tables = (LAGS + 1) * (vocab + 1)
    size = tables + PLACES + 3 * width
    gram, moment = np.zeros((size, size)), np.zeros((size, width))
    past, bag, each = Past(rows, width), np.zeros((rows, vocab + 1), np.float32), np.arange(rows)
    for t in range(positions):
        x = np.zeros((rows, size), np.float32)
        bag[each, ids[:, t]] += 1
        for i in range(LAGS):
            x[each, i * (vocab + 1) + (ids[:, t - i] if t >= i else vocab)] = 1
        x[:, LAGS * (vocab + 1) : tables] = bag / (t + 1)
        x[:, tables + min(t, PLACES - 1)] = 1
        x[:, tables + PLACES :] = past.features()
        past.add(seen[:, t])
        x = x[present[:, t]]
        gram += x.T @ x
        moment += x.T @ y[present[:, t], t]
    solved = np.linalg.solve(gram + RIDGE * np.eye(size), moment).astype(np.float32)
    lag = solved[: LAGS * (vocab + 1)].reshape(LAGS, vocab + 1, width)
    rest = solved[LAGS * (vocab + 1) :]
    return Predictor(lag, rest[vocab + 1 : vocab + 1 + PLACES], rest[: vocab + 1], rest[vocab + 1 + PLACES :], np.zeros((0, width), np.float32))
