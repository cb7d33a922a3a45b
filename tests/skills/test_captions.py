"""Captions: letters are shared out as seats are in a parliament."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aiflow_agents.skills.captions import PLACES, shared_out, spell


@given(arrays(np.float64, (3, 17), elements=st.floats(0.001, 1.0)), st.integers(1, 9))
def test_letters_are_shared_out_by_largest_remainders(likely: np.ndarray, letters: int) -> None:
    """Against the rule as written: whole shares first, then one more for the largest rests; the likeliest first."""
    for weights, row in zip(likely, shared_out(likely, letters).tolist(), strict=True):
        quota = [letters * weight / weights.sum() for weight in weights]
        counts = [row.count(kind) for kind in range(17)]
        assert sum(counts) == letters
        rests = [share - int(share) for share in quota]
        more = [count - int(share) for count, share in zip(counts, quota, strict=True)]
        assert all(extra in (0, 1) for extra in more)
        assert min([rest for rest, extra in zip(rests, more, strict=True) if extra], default=1) >= max(
            (rest for rest, extra in zip(rests, more, strict=True) if not extra), default=0) - 1e-9
        assert all(weights[a] >= weights[b] for a, b in zip(row, row[1:], strict=False))


def test_a_caption_has_its_letters_place_by_place() -> None:
    likely = np.full((PLACES, 17), 1e-9)
    likely[:, 16] = 1
    likely[4, [0, 1, 16]] = 0.7, 0.3, 1e-9
    assert spell(shared_out(likely, 1)) == "....a...."
    assert spell(shared_out(likely, 4)) == "." * 16 + "aaab" + "." * 16
