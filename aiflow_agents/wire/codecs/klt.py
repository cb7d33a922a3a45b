"""`klt`: the directions in which the states really vary, and with one step for all of them the classic transform code.

The Karhunen-Loeve transform is the eigenvectors of the states' covariance. A uniform step in that basis spends bits where the variance is (reverse
water-filling) and, entropy-coded, is the code to beat. `by=output` turns the basis so that not the error of the states counts but what it
does to the next token: distances are taken in the metric of the outputs' Fisher information.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.errors import UserError
from aiflow_agents.wire.codecs.integer import integers
from aiflow_agents.wire.codecs.quantiser import Quantiser
from aiflow_agents.wire.codecs.sample import Sample
from aiflow_agents.wire.payload import Floats

Doubles = NDArray[np.float64]

FLOOR = 0.1  # of the mean sensitivity is granted to every direction: the estimate is an average over text and says nothing certain about small ones
ROOM = 1.5  # coefficients may be so many times larger than any in calibration


@dataclass(frozen=True)
class Klt:
    """Either one `step` for all directions, as a share of a channel's mean deviation, or `bits` each; of the first `rank` directions (0: all).

    `places`: so many first positions show always the same, as patches do of cameras that stand still: what each is on average need not be sent.
    """

    step: float = 0.0
    bits: int = 0
    rank: int = 0
    by: Literal["variance", "output"] = "variance"
    places: int = 0

    def __post_init__(self) -> None:
        if (self.step > 0) == (self.bits > 0) or self.step < 0:
            raise UserError("codec 'klt' wants either a step or bits: klt:step=0.5 or klt:bits=4")

    def fit(self, sample: Sample) -> Quantiser:
        width = sample.states.shape[1]
        if self.rank > width:
            raise UserError(f"codec 'klt': rank {self.rank} is more than the states' width, {width}")
        metric = np.eye(width) if self.by == "variance" else sensitivity(sample.needed_gradients("klt:by=output"))
        mean, keep = sample.states.mean(0), slice(self.rank or None)
        places, left = _places(sample, self.places, mean) if self.places else (None, sample.states - mean)
        analysis, synthesis, variance = basis(covariance(left), metric)
        analysis, synthesis = np.ascontiguousarray(analysis[:, keep]), np.ascontiguousarray(synthesis[keep])
        y = left @ analysis
        if self.bits:
            return integers(y, self.bits, mean=mean, analysis=analysis, synthesis=synthesis, places=places)
        step = np.full(y.shape[1], max(self.step * np.sqrt(variance.mean()), 1e-12), np.float32)
        return uniform(y, step, mean=mean, analysis=analysis, synthesis=synthesis, places=places)


def _places(sample: Sample, count: int, mean: Floats) -> tuple[Floats, Floats]:
    """The mean of each of the first `count` positions, that of all where none was seen; and the states [n, width] without them."""
    pieces = sample.placed("klt:places=")
    total, seen = np.zeros((count, len(mean))), np.zeros((count, 1))
    for piece, first in pieces:
        inside = piece[: max(count - first, 0)]
        total[first : first + len(inside)] += inside
        seen[first : first + len(inside)] += 1
    places = np.where(seen > 0, total / np.maximum(seen, 1), mean).astype(np.float32)
    plain = Quantiser(np.ones(len(mean), np.float32), np.zeros(0, np.int32), np.zeros(0, np.uint8), mean, places=places)
    return places, np.concatenate([piece - plain.middle(first, len(piece)) for piece, first in pieces])


def covariance(states: Floats) -> Doubles:
    """Of states [n, width], [width, width]."""
    return np.cov(states.T.astype(np.float64)).reshape(states.shape[1], states.shape[1])


def basis(moment: Doubles, metric: Doubles) -> tuple[Floats, Floats, Floats]:
    """Analysis [width, width], synthesis (its inverse) and the coefficients' variance [width], largest first; `metric` is positive definite."""
    values, vectors = np.linalg.eigh(metric)
    root, inverse = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
    variance, turn = np.linalg.eigh(root @ moment @ root)
    turn, variance = turn[:, ::-1], np.maximum(variance[::-1], 0)
    return (root @ turn).astype(np.float32), (turn.T @ inverse).astype(np.float32), variance.astype(np.float32)


def sensitivity(gradients: Floats) -> Doubles:
    """How much the outputs mind an error in each direction, [width, width]: the second moment of gradients [..., width], with a floor, of mean 1."""
    rows = gradients.reshape(-1, gradients.shape[-1])
    moment = rows.T.astype(np.float64) @ rows / len(rows)
    mean = np.trace(moment) / len(moment)
    if not mean > 0:
        raise UserError("calibration: the gradients are all zero, so no direction matters to the output")
    return moment / mean + FLOOR * np.eye(len(moment))


def uniform(y: Floats, step: Floats, **rest: Any) -> Quantiser:
    """A given step a column, and as many symbols as calibration coefficients y [n, columns] need, with room."""
    reach = np.rint(ROOM * np.abs(y / step).max(0)) + 1
    bits = np.minimum(np.ceil(np.log2(2 * reach + 1)), 24).astype(np.uint8)
    return Quantiser(step, -(np.int32(1) << (bits.astype(np.int32) - 1)), bits, **rest)
