"""`predict`: send only what the receiver could not have guessed, as finely as the output minds.

    y = (state - mean) / scale        symbols = round((y - expected) @ analysis[side] * gain[context])
    decoded y = expected + symbols / gain[context] @ synthesis[side]

Closed-loop prediction and transform coding, as in every video codec: what is expected is made from decoded states, so errors do not add up. The basis
is turned by the outputs' sensitivity (see `klt`): one before the boundary, one from it on, where states tell the next token beside being looked at.
The gain spends more where a token's state matters more (reverse water-filling), and the spread of each symbol is known from its context.
The token ids must be known to both sides; where they are not, they travel in the same frame and are counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.codecs.coder import Reader, Writer
from aiflow_agents.wire.codecs.contexts import Contexts, context
from aiflow_agents.wire.codecs.klt import basis, covariance, sensitivity
from aiflow_agents.wire.codecs.plain import Known
from aiflow_agents.wire.codecs.predictor import Past, Predictor, fit_predictor
from aiflow_agents.wire.codecs.quantiser import CodecError
from aiflow_agents.wire.codecs.sample import Sample
from aiflow_agents.wire.codecs.stored import Arrays, Stored
from aiflow_agents.wire.payload import Floats, Hidden, Ints

GAINS = 0.25, 4.0  # no context is coded more coarsely or finely than this
PRIOR = 50.0  # observations by which a context's gain is held to 1
DEAD = 0.06  # symbols are drawn towards zero by this: fewer bits for a little more error


@dataclass(frozen=True)
class Predict:
    """`step` as in klt:by=output, but a share of what the prediction leaves. `boundary`: the token with which an answer begins (-1: none)."""

    step: float = 0.5
    boundary: int = -1

    def fit(self, sample: Sample) -> Predictive:
        gradients = sample.needed_gradients("predict")
        y, ids, present = sample.padded("predict")
        vocab, boundary = int(ids.max()) + 1, self.boundary if self.boundary >= 0 else NONE
        mean, scale = sample.states.mean(0), np.float32(max(sample.states.std(), 1e-12))
        y = (y - mean) / scale
        predictor = fit_predictor(y, ids, present, vocab).rounded()
        left, contexts = left_by(predictor, y, ids)[present], context(ids, vocab, boundary)[present]
        sides = [contexts <= vocab, contexts > vocab]
        if not all(side.sum() > 2 * len(mean) and gradients[:, side].any() for side in sides):
            sides = [np.ones(len(left), bool)]
        analysis, synthesis, variance = zip(*(basis(covariance(left[side]), sensitivity(gradients[:, side])) for side in sides), strict=True)
        spread = np.sqrt(sum(side.mean() * each.mean() for side, each in zip(sides, variance, strict=True)))
        step = np.float32(max(self.step * spread, 1e-12))
        gain = gains(gradients, contexts, 2 * (vocab + 1))
        nothing = Contexts.none(vocab, boundary, len(mean))
        both = np.stack([one / step for one in analysis]), np.stack([one * step for one in synthesis])
        return Predictive(mean, scale, predictor, *both, gain, nothing).counted(y, ids, present)


NONE = (1 << 31) - 1  # no token


@dataclass(frozen=True, eq=False)
class Predictive:
    """The fitted coding of one space."""

    mean: Floats  # [width]
    scale: np.float32
    predictor: Predictor
    analysis: Floats  # [sides, width, columns]; sides: before the boundary and from it on, or one for both
    synthesis: Floats  # [sides, columns, width]
    gain: Floats  # [contexts]
    contexts: Contexts

    floats = None  # no number keeps its format

    @property
    def width(self) -> int:
        return len(self.mean)

    def pack(self, states: Floats, known: Known) -> bytes:
        if not np.isfinite(states).all():
            raise CodecError("states that are not finite cannot be quantised; send them raw")
        walk = self._walk(len(states), known)
        rows = [walk.send(y[None])[0] for y in (states - self.mean) / self.scale]
        coder = Writer()
        for symbols, where in zip(rows, walk.contexts[0], strict=True):
            self.contexts.put(coder, symbols, int(where))
        return coder.body()

    def unpack(self, body: bytes, positions: int, width: int, known: Known) -> Floats:
        walk, coder = self._walk(positions, known), Reader(body)
        decoded = [walk.receive(self.contexts.take(coder, int(where))[None])[0] for where in walk.contexts[0]]
        coder.done()
        return np.stack(decoded) * self.scale + self.mean if decoded else np.zeros((0, width), np.float32)

    def counted(self, y: Floats, ids: Ints, present: NDArray[np.bool_]) -> Predictive:
        """The same with an entropy model of what it sends for normed states y [rows, positions, width]."""
        walk = Walk(self, ids)
        symbols = np.stack([walk.send(y[:, t]) for t in range(y.shape[1])], 1)
        fitted = Contexts.fit(symbols[present], walk.contexts[present], self.contexts.vocab, self.contexts.boundary)
        return replace(self, contexts=fitted)

    def sides(self, contexts: Ints) -> Ints:
        """Which basis each context takes, of the same shape."""
        return np.minimum(contexts // (self.contexts.vocab + 1), len(self.analysis) - 1)

    def _walk(self, positions: int, known: Known) -> Walk:
        if known.token_ids is None or len(known.token_ids) != positions:
            raise CodecError("this codec predicts states from their token ids; give them to both sides, or send them along")
        return Walk(self, known.token_ids[None], known.before)

    @classmethod
    def restore(cls, stored: Stored) -> Predictive:
        predictor = Predictor.restore(stored)
        width, contexts = predictor.width, 2 * (predictor.vocab + 1)
        analysis, gain = stored.take("analysis", "float32", None, width, None), stored.take("gain", "float32", contexts)
        scale = stored.take("scale", "float32", 1)
        if not (gain > 0).all() or not scale[0] > 0:
            raise stored.error("gain", "must be positive, and so must 'scale'")
        sides, _, columns = analysis.shape
        if sides not in (1, 2):
            raise stored.error("analysis", f"has {sides} sides, expected 1 or 2")
        return cls(
            stored.take("mean", "float32", width),
            scale[0],
            predictor,
            analysis,
            stored.take("synthesis", "float32", sides, columns, width),
            gain,
            Contexts.restore(stored, predictor.vocab, columns),
        )

    def arrays(self) -> Arrays:
        own = {name: getattr(self, name) for name in ("mean", "analysis", "synthesis", "gain")}
        return {**own, "scale": np.array([self.scale], np.float32), **self.predictor.arrays(), **self.contexts.arrays()}


class Walk:
    """Along the positions of some sequences, both sides in step: what is expected, what is sent, what that becomes."""

    def __init__(self, coding: Predictive, ids: Ints, before: Hidden | None = None):
        self.coding, self.past, first = coding, Past(len(ids), coding.width), 0
        if before is not None and len(before.states):
            if before.token_ids is None:
                raise CodecError("what came before must have its token ids too")
            ids, first = np.concatenate([before.token_ids[None], ids], 1), len(before.states)
            for state in before.states:
                self.past.add(((state - coding.mean) / coding.scale)[None])
        self.contexts = coding.contexts.of(ids)[:, first:]
        self._sides = coding.sides(self.contexts)
        self._of_tokens, self._at = coding.predictor.of_tokens(ids)[:, first:], 0

    def send(self, y: Floats) -> NDArray[np.int64]:
        """The symbols [rows, columns] for normed states y [rows, width] of the next position."""
        expected, gain = self._expected()
        wanted = self._turned(y - expected, self.coding.analysis) * gain
        symbols = np.clip(np.sign(wanted) * np.floor(np.abs(wanted) + (0.5 - DEAD)), -(1 << 15), (1 << 15) - 1).astype(np.int64)
        self._step(expected, symbols, gain)
        return symbols

    def receive(self, symbols: NDArray[np.int64]) -> Floats:
        """The normed states [rows, width] of the next position."""
        expected, gain = self._expected()
        return self._step(expected, symbols, gain)

    def _turned(self, x: Floats, bases: Floats) -> Floats:
        """x [rows, n] times the basis [n, m] of each row's side."""
        side, found = self._sides[:, self._at], np.empty((len(x), bases.shape[2]), np.float32)
        for k, matrix in enumerate(bases):
            found[side == k] = x[side == k] @ matrix
        return found

    def _expected(self) -> tuple[Floats, Floats]:
        """And the gain of the place, [rows, 1]."""
        expected = self.coding.predictor.predict(self._of_tokens[:, self._at], self.past)
        return expected, self.coding.gain[self.contexts[:, self._at], None]

    def _step(self, expected: Floats, symbols: NDArray[np.int64], gain: Floats) -> Floats:
        decoded = np.asarray(expected + self._turned(symbols.astype(np.float32) / gain, self.coding.synthesis), np.float32)
        self.past.add(decoded)
        self._at += 1
        return decoded


def left_by(predictor: Predictor, y: Floats, ids: Ints) -> Floats:
    """What remains of y [rows, positions, width] when each is predicted from the true states before."""
    past, of_tokens, left = Past(len(y), y.shape[2]), predictor.of_tokens(ids), np.empty_like(y)
    for t in range(y.shape[1]):
        left[:, t] = y[:, t] - predictor.predict(of_tokens[:, t], past)
        past.add(y[:, t])
    return left


def gains(gradients: Floats, contexts: Ints, count: int) -> Floats:
    """Finer steps where the output minds more: the root of a context's mean squared gradient, relative to that of all, [count].

    gradients: [draws, n, width]; contexts: [n].
    """
    size, n = np.zeros(count), np.bincount(contexts, minlength=count)
    np.add.at(size, contexts, (gradients.astype(np.float64) ** 2).sum(2).mean(0))
    mean = size.sum() / n.sum()
    return np.clip(np.sqrt((size / mean + PRIOR) / (n + PRIOR)), *GAINS).astype(np.float32)
