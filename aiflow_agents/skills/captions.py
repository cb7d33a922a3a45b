"""Captions: what a camera sees, in text, a letter for each thing: `a` a red disc, `b` a red square ... `p` a gold ring, `.` nothing.

With several letters for each place they are shared out by how likely each thing is there: `aaaa` is sure, `aaab` holds a square possible.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PLACES = 9  # in a view
LETTERS = "abcdefghijklmnop."  # by kind: colour * 4 + shape, and 16 for nothing


def shared_out(likely: NDArray[np.floating[Any]], letters: int) -> NDArray[np.int64]:
    """Kinds for so many letters, [..., 17] -> [..., letters], likeliest first: each as often as its share of the likelihood says."""
    quota = letters * likely / likely.sum(-1, keepdims=True)
    whole = np.floor(quota)
    rank = (whole - quota).argsort(-1, kind="stable").argsort(-1)
    counts = whole + (rank < np.rint(letters - whole.sum(-1, keepdims=True)))
    order = (-likely).argsort(-1, kind="stable")
    behind = np.take_along_axis(counts, order, -1).cumsum(-1)  # letters up to and with each kind, the likeliest first
    index = (behind[..., None, :] <= np.arange(letters)[:, None]).sum(-1)
    return np.take_along_axis(order, index, -1)


def spell(kinds: NDArray[np.integer[Any]]) -> str:
    """The caption of one view, [9, letters] or [9]."""
    return "".join(LETTERS[kind] for kind in kinds.flatten().tolist())


def see(letters: int) -> str:
    """The agreed question to which a caption is the answer: `see4?`."""
    return f"see{letters}?"
