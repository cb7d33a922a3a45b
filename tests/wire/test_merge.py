"""Merging: clusters as a reader of the papers would find them by hand, and what is left of states that are merged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UserError
from aiflow_agents.wire.codecs import CodecError, Sample, codec, fit
from aiflow_agents.wire.codecs.merge import WIDE, density_peaks
from aiflow_agents.wire.frame import FrameError
from aiflow_agents.wire.payload import Hidden

WIDTH = 12


def by_hand(points: list[list[float]], spread: float, centres: int, near: int) -> list[int]:
    """Density peaks with nothing but loops: for each position, the position of its centre."""
    n = len(points)
    squares = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points] for p in points]
    rho = []
    for i in range(n):
        nearest = sorted(squares[i][j] for j in range(n) if j != i)[:near]
        rho.append(math.exp(-sum(nearest) / len(nearest) / WIDE) if nearest else 1.0)

    def denser(j: int, i: int) -> bool:
        return rho[j] > rho[i] or rho[j] == rho[i] and j < i

    score = [min((math.sqrt(squares[i][j]) for j in range(n) if denser(j, i)), default=math.inf) * rho[i] for i in range(n)]
    chosen = sorted(range(n), key=lambda i: (-score[i], i))[: centres or n]
    chosen = sorted(i for i in chosen if score[i] > spread)
    return [i if i in chosen else min(chosen, key=lambda c: (squares[i][c], c)) for i in range(n)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=12), st.sampled_from((0.0, 0.5, 2.0)), st.integers(0, 5), st.integers(1, 4))
def test_clusters_are_those_found_by_hand(points: list[list[float]], spread: float, centres: int, near: int) -> None:
    """Whole numbers, so that many are equal and ties count."""
    x = np.array(points, np.float64)
    found = density_peaks(((x[:, None] - x[None]) ** 2).sum(2), spread, centres, near)
    expected = by_hand(points, spread, centres, near)
    numbers = {centre: i for i, centre in enumerate(dict.fromkeys(expected))}  # clusters are numbered as they come
    assert found.tolist() == [numbers[centre] for centre in expected]
    assert not centres or found.max() < centres


def pictures(count: int, seed: int, kinds: int = 4, places: int = 8) -> Sample:
    """Sequences whose positions are each of a few kinds, with a mean of their place and a little noise."""
    model, text = np.random.default_rng(1), np.random.default_rng(seed)
    kind, place = 3 * model.normal(size=(kinds, WIDTH)), 5 * model.normal(size=(places, WIDTH))
    states = kind[text.integers(0, kinds, (count, places))] + place + 0.05 * text.normal(size=(count, places, WIDTH))
    return Sample(states.reshape(-1, WIDTH).astype(np.float32), lengths=np.full(count, places))


def test_what_is_alike_is_sent_once() -> None:
    sample, other = pictures(300, 0), pictures(40, 5).pieces("merge")
    merged, whole, plain = fit("merge:step=0.2", {"hidden.1": sample}), fit("merge:step=0.2,spread=0", {"hidden.1": sample}), fit("klt:step=0.2+range", {"hidden.1": sample})

    def size(one: object) -> int:
        return sum(len(one.encode(Hidden(1, piece))) - len(one.encode(Hidden(1, piece[:0]))) for piece in other)  # type: ignore[attr-defined]

    assert size(merged) < 0.65 * size(whole) and size(merged) < 0.55 * size(plain)
    for piece in other:
        found = merged.decode(merged.encode(Hidden(1, piece)))
        assert isinstance(found, Hidden) and np.abs(found.states - piece).max() < 0.1 * sample.states.std() * WIDTH**0.5
    coding = merged.codings["hidden.1"]
    assert {len(coding.merged(piece)[0]) for piece in other} <= {2, 3, 4}  # type: ignore[attr-defined]


def test_a_cluster_is_the_mean_of_its_members_at_their_places() -> None:
    """At a fine step, what comes back is what averaging by hand gives."""
    sample = pictures(200, 0)
    one = fit("merge:step=0.001,spread=0,centres=3", {"hidden.1": sample})
    coding, piece = one.codings["hidden.1"], pictures(1, 9).states
    left = piece - coding.places  # type: ignore[attr-defined]
    _, labels = coding.merged(piece)  # type: ignore[attr-defined]
    expected = np.stack([left[labels == label].mean(0) for label in labels]) + coding.places  # type: ignore[attr-defined]
    found = one.decode(one.encode(Hidden(1, piece)))
    assert isinstance(found, Hidden) and len(set(labels.tolist())) == 3
    np.testing.assert_allclose(found.states, expected, atol=0.01)


def test_a_map_weighs_what_its_model_says() -> None:
    sample = pictures(300, 0)
    coding = fit("merge:step=0.2", {"hidden.1": sample}).codings["hidden.1"]
    for piece in pictures(20, 5).pieces("merge"):
        centres, labels = coding.merged(piece)  # type: ignore[attr-defined]
        bits, sizes = 0.0, [1]
        for place in range(1, len(labels)):
            joins, begins = coding.joins[min(place, 15), 8 * len(sizes) // place].astype(float)  # type: ignore[attr-defined]
            if labels[place] == len(sizes):
                bits, sizes = bits - math.log2(begins / (joins + begins)), [*sizes, 1]
            else:
                bits -= math.log2(joins / (joins + begins)) + math.log2(sizes[labels[place]] / place)
                sizes[labels[place]] += 1
        bits += coding.writer.cost(coding.quantiser.symbols(centres))  # type: ignore[attr-defined]
        assert bits / 8 - 3 <= len(coding.pack(piece, None)) <= bits / 8 + 8  # type: ignore[arg-type]


def test_any_number_of_positions_and_columns_of_any_width() -> None:
    sample = pictures(60, 0)
    one = fit("merge:step=0.0001", {"hidden.1": sample})  # columns wider than the eight bits that have a model
    assert one.codings["hidden.1"].writer.bits.max() > 12  # type: ignore[attr-defined]
    for positions in (0, 1, 2, 8, 20):
        states = np.concatenate([sample.states] * 2)[:positions]
        found = one.decode(one.encode(Hidden(1, states)))
        assert isinstance(found, Hidden) and found.states.shape == (positions, WIDTH)
    assert one.fidelity() == "lossy"


def test_what_cannot_be_merged_is_said() -> None:
    with pytest.raises(UserError, match="lengths of whole sequences"):
        fit("merge", {"hidden.1": Sample(pictures(9, 0).states)})
    with pytest.raises(UserError, match="leave \\+range out"):
        codec("merge:step=1+range")
    for bad in ("merge:step=0", "merge:near=0", "merge:centres=-1", "merge:spread=x"):
        with pytest.raises(UserError, match="merge"):
            codec(bad)
    one = fit("merge", {"hidden.1": pictures(40, 0)})
    with pytest.raises(CodecError, match="not finite"):
        one.encode(Hidden(1, np.full((2, WIDTH), np.nan, np.float32)))
    frame = one.encode(Hidden(1, pictures(1, 3).states))
    with pytest.raises(FrameError):
        one.decode(frame[:-5] + frame[-4:])
