"""`merge`: positions that say the same are sent once, with a map of who is like whom.

    states - mean of their place -> clusters -> mean of each --klt, one step-> symbols --+
                                       +------ who belongs to which ---------------------+--> one entropy-coded body

Task-oriented feature compression (TOFC, arXiv:2503.12926): density-peaks clustering over the nearest neighbours (Rodriguez and Laio, Science 344
(2014) 1492; Du et al., Knowledge-Based Systems 99 (2016) 135), then an entropy code. There the receiver goes on from the merged features alone.
Here it puts every position back where it was: a model that counts what it sees, and was not trained on merged features, loses much without that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.errors import UserError
from aiflow_agents.wire.codecs.coder import Reader, Writer
from aiflow_agents.wire.codecs.klt import basis, covariance, uniform
from aiflow_agents.wire.codecs.plain import Known
from aiflow_agents.wire.codecs.quantiser import CodecError, Quantiser
from aiflow_agents.wire.codecs.sample import Sample
from aiflow_agents.wire.codecs.stored import Arrays, Stored
from aiflow_agents.wire.codecs.symbols import Modelled, categorical
from aiflow_agents.wire.payload import Floats

WIDE = 3.0  # of density: what stands alone is not taken for noise, as it is with a narrow one
PLACES = 256  # places that have a mean of their own
PRIOR = 20.0  # observations by which that is held to the mean of all
LATE, SHARES = 16, 8  # of the map: positions from there on are alike; so many shares of centres among them are told apart

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Merge:
    """`step` as in klt. A position is a centre if rho * delta is more than `spread`, and it is among the `centres` largest (0: however many).

    rho = exp(-mean squared distance to the `near` nearest / 3), delta = distance to the nearest denser position; distances are in units of the root
    mean squared one between two positions of a sequence. With spread 0 and no number of centres nothing is merged.
    """

    step: float = 1.0
    spread: float = 0.39
    centres: int = 0
    near: int = 3

    def __post_init__(self) -> None:
        if not self.step > 0 or self.near < 1:
            raise UserError("codec 'merge' wants a positive step and a neighbour or more: merge:step=1,near=3")

    def fit(self, sample: Sample) -> Merging:
        pieces, width = sample.pieces("merge"), sample.states.shape[1]
        middle, total, seen = sample.states.mean(0), np.zeros((PLACES, width)), np.zeros((PLACES, 1))
        for piece in pieces:
            total[: len(piece)] += piece[:PLACES]
            seen[: len(piece)] += 1
        places = ((total + PRIOR * middle) / (seen + PRIOR))[: max(map(len, pieces))].astype(np.float32)
        pairs = [_squares(piece - _at(places, middle, len(piece))) for piece in pieces if len(piece) > 1]
        unit = np.sqrt(sum(float(d.sum()) for d in pairs) / max(sum(len(d) * (len(d) - 1) for d in pairs), 1))
        how = np.array([self.spread, self.centres, self.near, max(unit, 1e-12)], np.float32)
        nothing = Quantiser(np.ones(1, np.float32), np.zeros(1, np.int32), np.ones(1, np.uint8))
        unread = Modelled.fit(np.zeros((1, 1), np.uint32), nothing.bits)
        rough = Merging(middle, places, how, nothing, unread, np.ones((LATE, SHARES + 1, 2), np.uint16))
        merged = [rough.merged(piece) for piece in pieces if len(piece)]
        centres, step = np.concatenate([rows for rows, _ in merged]), max(self.step * float(np.sqrt(sample.states.var(0, ddof=1).mean())), 1e-12)
        if len(centres) < 2:
            raise UserError("codec 'merge' is fitted on two sequences or more")
        quantiser = _transform(centres, step)
        writer = Modelled.fit(quantiser.symbols(centres), quantiser.bits)
        return replace(rough, quantiser=quantiser, writer=writer, joins=_joins([labels for _, labels in merged]))


@dataclass(frozen=True, eq=False)
class Merging:
    """`merge`, fitted for the states of one layer.

    middle [width], or of the first positions places [places, width], are taken off before. `how` holds spread, centres, near and the unit of
    distances, which only the sender needs. joins [positions, shares, 2]: how often a position joined a cluster, and how often it began one.
    """

    middle: Floats
    places: Floats
    how: Floats
    quantiser: Quantiser
    writer: Modelled
    joins: NDArray[np.uint16]
    floats: None = None

    @property
    def width(self) -> int:
        return len(self.middle)

    def pack(self, states: Floats, known: Known) -> bytes:
        if not np.isfinite(states).all():
            raise CodecError("states that are not finite cannot be merged; send them raw")
        if not len(states):
            return b""
        centres, labels = self.merged(states)
        coder = Writer()
        for place in range(1, len(labels)):
            for symbol, model in self._told(labels, place):
                coder.put(symbol, model)
        self.writer.put(coder, self.quantiser.symbols(centres))
        return coder.body()

    def unpack(self, body: bytes, positions: int, width: int, known: Known) -> Floats:
        coder, labels, sizes = Reader(body), np.zeros(positions, np.int64), [1]
        for place in range(1, positions):
            labels[place] = len(sizes) if coder.take(self._begins(place, len(sizes))) else 0
            if labels[place] == len(sizes):
                sizes.append(0)
            elif len(sizes) > 1:
                labels[place] = coder.take(categorical(np.array(sizes)))
            sizes[labels[place]] += 1
        centres = self.quantiser.states(self.writer.take(coder, len(sizes) if positions else 0))
        coder.done()
        found: Floats = centres[labels] + _at(self.places, self.middle, positions)
        return found

    def merged(self, states: Floats) -> tuple[Floats, Labels]:
        """The mean of each cluster, without that of its places, [clusters, width], and the cluster of each position, numbered as they come."""
        left = states - _at(self.places, self.middle, len(states))
        spread, centres, near, unit = self.how
        labels = density_peaks(_squares(left) / unit**2, float(spread), int(centres), int(near))
        total = np.zeros((labels.max() + 1, self.width), np.float32)
        np.add.at(total, labels, left)
        return (total / np.bincount(labels)[:, None]).astype(np.float32), labels

    def _told(self, labels: Labels, place: int) -> list[tuple[int, Any]]:
        """What is said of a position, each symbol with its model: whether it begins a cluster, and else which one it joins."""
        sizes = np.bincount(labels[:place])
        begins = labels[place] == len(sizes)
        found: list[tuple[int, Any]] = [(int(begins), self._begins(place, len(sizes)))]
        return found if begins or len(sizes) == 1 else [*found, (int(labels[place]), categorical(sizes))]

    def _begins(self, place: int, clusters: int) -> Any:
        return self._flags[_context(place, clusters)]

    @cached_property
    def _flags(self) -> dict[tuple[int, int], Any]:
        return {(at, share): categorical(self.joins[at, share]) for at in range(LATE) for share in range(SHARES + 1)}

    @classmethod
    def restore(cls, stored: Stored) -> Merging:
        """From a file. Raises CalibrationError for arrays that do not belong together."""
        quantiser = Quantiser.restore(stored)
        if quantiser.apart is not None:
            raise stored.error("apart", "belongs to another codec")
        middle, how = stored.take("middle", "float32", quantiser.width), stored.take("how", "float32", 4)
        places, joins = stored.take("places", "float32", None, len(middle)), stored.take("joins", "uint16", LATE, SHARES + 1, 2)
        if (how < 0).any() or how[2] < 1 or not how[3] > 0:
            raise stored.error("how", "must hold spread, centres, near and a positive unit")
        if not joins.all():
            raise stored.error("joins", "has a zero")
        return cls(middle, places, how, quantiser, Modelled.restore(stored, quantiser.bits), joins)

    def arrays(self) -> Arrays:
        own = {name: getattr(self, name) for name in ("middle", "places", "how", "joins")}
        return {**self.quantiser.arrays(), **own, "counts": self.writer.counts}


def density_peaks(squares: NDArray[np.floating[Any]], spread: float, centres: int, near: int) -> Labels:
    """Clusters from squared distances [n, n], n > 0: the label of each position, numbered in the order in which clusters first appear, [n].

    See `Merge` for the rule. The densest position is always a centre; others join the centre nearest to them. Of equals the earlier one comes first.
    """
    n = len(squares)
    away = squares + np.where(np.eye(n, dtype=bool), np.inf, 0.0)
    nearest = np.sort(away, axis=1)[:, : min(near, n - 1)]
    rho = np.exp(-(nearest.mean(axis=1) if n > 1 else np.zeros(1)) / WIDE)
    order = np.argsort(-rho, kind="stable")
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    delta = np.sqrt(np.where(rank[None, :] < rank[:, None], away, np.inf).min(axis=1))
    delta[order[0]] = 0.0
    peak = rho * delta
    peak[order[0]] = np.inf
    chosen = np.argsort(-peak, kind="stable")[: centres or n]
    chosen = np.sort(chosen[peak[chosen] > spread])
    nearby = chosen[np.argmin(squares[:, chosen], axis=1)]
    nearby[chosen] = chosen
    _, first, label = np.unique(nearby, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label]  # by first appearance


def _transform(centres: Floats, step: float) -> Quantiser:
    """A Karhunen-Loeve transform of centres [n, width], with one step, of the directions in which any of them would not be zero."""
    analysis, synthesis, _ = basis(covariance(centres), np.eye(centres.shape[1]))
    y = centres @ analysis
    used = np.flatnonzero((np.abs(y) > step / 2).any(axis=0) | (np.arange(len(synthesis)) == 0))
    analysis, synthesis = np.ascontiguousarray(analysis[:, used]), np.ascontiguousarray(synthesis[used])
    return uniform(y[:, used], np.full(len(used), step, np.float32), analysis=analysis, synthesis=synthesis)


def _squares(x: Floats) -> Floats:
    """Squared distances between rows, [n, width] -> [n, n]."""
    return np.stack([((x - row) ** 2).sum(axis=1) for row in x]) if len(x) else np.zeros((0, 0), np.float32)


def _at(places: Floats, middle: Floats, positions: int) -> Floats:
    """What each of the first positions is on average, [positions, width]."""
    known = places[:positions]
    return np.concatenate([known, np.broadcast_to(middle, (positions - len(known), len(middle)))])


def _context(place: int, clusters: int) -> tuple[int, int]:
    return min(place, LATE - 1), SHARES * clusters // place


def _joins(maps: list[Labels]) -> NDArray[np.uint16]:
    """Counts of joining and beginning by context, each context's drawn a little towards those of all."""
    found = np.zeros((LATE, SHARES + 1, 2))
    for labels in maps:
        so_far = np.maximum.accumulate(labels) + 1
        for place in range(1, len(labels)):
            found[(*_context(place, int(so_far[place - 1])), int(labels[place] == so_far[place - 1]))] += 1
    of_all = (found.sum((0, 1)) + 1) / (found.sum() + 2)
    wanted = found + 2 * of_all
    return np.maximum(np.round(60_000 * wanted / wanted.sum(-1, keepdims=True)), 1).astype(np.uint16)
