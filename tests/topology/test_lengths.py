"""How many tokens to draft at a time, beside brute force: the rate of every length, summed over all that may happen."""

from __future__ import annotations

import itertools
from statistics import mean
from typing import Any

import pytest

from aiflow_agents.topology.lengths import FIRST, MOST, Pace, best_length

ACCEPTED, DRAFT_S, CHECK_S, WAY_S = (0.3, 0.6, 0.8, 0.9), (0.001, 0.004, 0.02), (0.005, 0.02), (0.0, 0.01, 0.1)
GRID = list(itertools.product(ACCEPTED, DRAFT_S, CHECK_S, WAY_S))


def waiting(n: int, a: float, draft_s: float, check_s: float, way_s: float) -> float:
    """Tokens a second where each draft waits for its check: kept ones, and the checker's own."""
    settled = sum(a**kept * (1 - a) * (kept + 1) for kept in range(n)) + a**n * (n + 1)
    return settled / (n * draft_s + check_s + way_s)


def pipelined(n: int, a: float, draft_s: float, check_s: float, way_s: float) -> float:
    """Tokens a second where drafts go on, from one overturned token to the next, which is the r-th with probability a^(r-1) (1 - a).

    Drafts leave every n * draft_s; whoever checks reads all that has come in one pass; what overturns takes the other half of the way.
    """
    seconds = 0.0
    for r in range(1, 300):
        read, free = 0, 0.0
        while read < r:
            start = max(free, (read // n + 1) * n * draft_s + way_s / 2)
            read = max(read + n, n * int((start - way_s / 2) / (n * draft_s) + 1e-9))
            free = start + check_s
        seconds += a ** (r - 1) * (1 - a) * (free + way_s / 2)
        if a**r < 1e-5:
            break
    return 1 / (1 - a) / seconds


@pytest.mark.parametrize("how", [waiting, pipelined])
def test_it_is_nearly_as_good_as_the_best_of_all_lengths(how: Any) -> None:
    """The formula for pipelining is a rough one: 1 % of the rate is lost on average, 15 % in the worst of 72."""
    rates = [[how(n, *case) for n in range(1, MOST + 1)] for case in GRID]
    lost = [1 - row[best_length(*case, pipelined=how is pipelined) - 1] / max(row) for row, case in zip(rates, GRID, strict=True)]
    fixed = [mean(1 - row[n - 1] / max(row) for row in rates) for n in range(1, MOST + 1)]
    assert max(lost) < (1e-9 if how is waiting else 0.16) and mean(lost) < 0.015
    assert mean(lost) < 0.9 * min(fixed)  # than with any one length


def test_what_was_seen_decides_and_a_fixed_length_stays() -> None:
    assert Pace(5, True).ahead() == 5 and Pace(None, True).ahead() == FIRST
    sure, unsure = Pace(None, False), Pace(None, False)
    for pace, kept in ((sure, 8), (unsure, 0)):
        pace.drafted(0.008, 8)
        pace.answered(0.05, 0.02)
        for _ in range(30):
            pace.kept(kept, 8)
    assert (sure.draft_s, sure.check_s, sure.way_s) == pytest.approx((0.001, 0.02, 0.03))
    assert sure.acceptance > 0.97 and unsure.acceptance < 0.1
    assert sure.ahead() == MOST and unsure.ahead() <= 2
    assert unsure.ahead() == best_length(unsure.acceptance, 0.001, 0.02, 0.03, pipelined=False)
    before = sure.acceptance
    sure.kept(3, 3)  # all that was claimed was kept: nothing was overturned
    assert sure.acceptance > before
    unsure.kept(0, 0)
    assert unsure.acceptance < 0.1
