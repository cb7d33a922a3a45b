"""Statistics against scipy, statsmodels, published examples and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import binom, binomtest, bootstrap, norm, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from aiflow_agents.evals import statistics


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_statsmodels(counts, level):
    low, high = proportion_confint(*counts, alpha=1 - level, method="wilson")
    assert statistics.wilson(*counts, level) == pytest.approx((low, high), abs=1e-9)


def test_wilson_at_the_edges():
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    assert statistics.wilson(0, 10)[0] == 0.0 and statistics.wilson(10, 10)[1] == 1.0
    with pytest.raises(ValueError):
        statistics.wilson(11, 10)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_equals_scipy_and_statsmodels(b, c):
    p = statistics.mcnemar_exact(b, c)
    assert p == pytest.approx(mcnemar([[0, b], [c, 0]], exact=True).pvalue, abs=1e-12)
    if b + c:
        assert p == pytest.approx(binomtest(b, b + c).pvalue, abs=1e-12)


def test_tango_published_examples():
    """Tango 1998 section 6.1 (soft contact lenses, 90 %); Fagerland, Lydersen & Laake 2014 table 4 (stem cells)."""
    assert statistics.tango(0, 1, 44, 0.90)[0] == pytest.approx(-0.096, abs=5e-4)
    assert statistics.tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))).flatmap(
    lambda t: st.tuples(st.just(t[0]), st.integers(0, t[1] - t[0]), st.just(t[1]))))
@settings(max_examples=60)
def test_tango_ends_are_where_the_score_test_turns(table):
    """The restricted estimate is found again here, by maximising the likelihood numerically instead of solving its quadratic."""
    b, c, n = table
    low, high = statistics.tango(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert statistics.tango(c, b, n) == pytest.approx((-high, -low), abs=1e-8)
    for end in (low, high):
        if abs(end) == 1:
            assert end == (b - c) / n
            continue

        def unlikely(only_second: float, end: float = end) -> float:
            cells = np.maximum([only_second + end, only_second, 1 - 2 * only_second - end], 1e-300)
            return -float(np.dot([b, c, n - b - c], np.log(cells)))

        only_second = minimize_scalar(unlikely, bounds=(max(0.0, -end), (1 - end) / 2), method="bounded", options={"xatol": 1e-11}).x
        z = (b - c - n * end) / math.sqrt(n * (2 * only_second + end * (1 - end)))
        assert abs(z) == pytest.approx(1.96, abs=0.01)


@pytest.mark.parametrize(("n", "delta", "discordant"), [(30, 0.0, 0.2), (30, 0.1, 0.3), (60, 0.05, 0.1), (40, -0.2, 0.5)])
def test_tango_covers(n, delta, discordant):
    """Exact coverage, summed over every table."""
    share_b, share_c = (discordant + delta) / 2, (discordant - delta) / 2
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            weight = binom.pmf(b, n, share_b) * binom.pmf(c, n - b, share_c / (1 - share_b))
            if weight > 1e-7:
                low, high = statistics.tango(b, c, n)
                covered += weight * (low <= delta <= high)
    assert 0.93 < covered < 0.985


def test_tango_without_discordant_tasks_still_has_a_width():
    z2 = float(norm.ppf(0.975)) ** 2
    assert statistics.tango(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-8)
    assert statistics.tango(0, 0, 0) == (-1.0, 1.0)


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
@settings(max_examples=40)
def test_paired_permutation_is_exact_when_small(steps):
    x, y = np.array(steps) / 10, np.zeros(len(steps))
    p = statistics.paired_permutation(x, y, seed=0)
    signs = itertools.product((-1, 1), repeat=len(steps))
    brute = [abs(sum(s * d for s, d in zip(pattern, steps, strict=True))) >= abs(sum(steps)) for pattern in signs]
    assert p == pytest.approx(np.mean(brute))


def test_paired_permutation_is_close_when_sampled_and_never_zero():
    rng = np.random.default_rng(3)
    x, y = rng.random(300) + 0.03, rng.random(300)
    coarse = rng.integers(0, 3, size=(2, 300)) / 2  # two repeats: exact, by counting
    many = permutation_test(tuple(coarse), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
                            n_resamples=5000, random_state=np.random.default_rng(1)).pvalue
    assert statistics.paired_permutation(*coarse, seed=0) == statistics.paired_permutation(*coarse, seed=1) == pytest.approx(many, abs=0.03)
    reference = permutation_test((x, y), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
                                 n_resamples=5000, random_state=np.random.default_rng(1)).pvalue
    p = statistics.paired_permutation(x, y, seed=0)
    assert p == pytest.approx(reference, abs=0.03)
    assert p == statistics.paired_permutation(x, y, seed=0) == statistics.paired_permutation(y, x, seed=0)
    assert statistics.paired_permutation(x + 1, y, seed=0, resamples=999) == 1 / 1000


def test_paired_permutation_keeps_its_size():
    rng = np.random.default_rng(0)
    rejected = [statistics.paired_permutation(rng.random(40), rng.random(40), seed, 400) <= 0.05 for seed in range(400)]
    assert np.mean(rejected) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("n", range(9))
def test_holm_equals_statsmodels(n):
    pvalues = np.random.default_rng(n).random(n).round(1) / (1 + n)  # rounded, so with ties; small, so that not all end at 1
    expected = multipletests(pvalues, method="holm")[1] if n else []
    assert statistics.holm(pvalues.tolist()) == pytest.approx(list(expected), abs=1e-12)


def test_iut_is_the_weakest_link():
    assert statistics.iut([0.01, 0.2, 0.03]) == 0.2
    with pytest.raises(ValueError):
        statistics.iut([])


@pytest.mark.parametrize(("n", "delta", "discordant", "alpha"), [
    (40, 0.2, 0.4, 0.05), (25, 0.3, 0.3, 0.05), (60, 0.0, 0.2, 0.05), (50, -0.2, 0.3, 0.01)])
def test_power_equals_enumeration(n, delta, discordant, alpha):
    share_b, share_c = (discordant + delta) / 2, (discordant - delta) / 2
    power = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            if statistics.mcnemar_exact(b, c) <= alpha and (b > c if delta >= 0 else b < c):
                power += math.comb(n, b) * math.comb(n - b, c) * share_b**b * share_c**c * (1 - discordant) ** (n - b - c)
    assert statistics.power_mcnemar(n, delta, discordant, alpha) == pytest.approx(power, abs=1e-9)


@given(st.integers(6, 3000), st.floats(0, 1), st.sampled_from([0.05, 0.005]))
@settings(max_examples=30, deadline=None)
def test_mde_is_what_has_the_power(n, discordant, alpha):
    smallest = statistics.mde(n, discordant, alpha)
    if math.isinf(smallest):
        assert statistics.power_mcnemar(n, 1.0, 1.0, alpha) < 0.8
    else:
        assert statistics.power_mcnemar(n, smallest, max(discordant, smallest), alpha) == pytest.approx(0.8, abs=1e-2)


@pytest.mark.parametrize("discordant", [0.0, 5e-324, 1e-300, 1e-14, 1e-9, 1.0])
def test_power_at_the_edges(discordant):
    assert 0 <= statistics.power_mcnemar(1000, 0.0, discordant) <= 0.025
    assert statistics.power_mcnemar(1000, discordant, discordant) == pytest.approx(float(discordant == 1), abs=1e-12)


def test_mde_shrinks_with_tasks_and_is_infinite_for_a_handful():
    assert statistics.mde(5, 0.2) == math.inf == statistics.mde(0, 0.2)
    assert statistics.mde(1000, 0.2) > statistics.mde(4000, 0.2) > statistics.mde(4000, 0.1)


def test_mde_graded_agrees_with_right_or_wrong_in_the_large():
    rng = np.random.default_rng(0)
    difference = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=20_000)
    assert statistics.mde_graded(difference) == pytest.approx(statistics.mde(20_000, 0.2), rel=0.05)
    assert statistics.mde_graded(np.zeros(9)) == math.inf


@pytest.mark.parametrize("digits", [1, 8], ids=["few distinct", "all distinct"])
def test_bootstrap_mean_matches_the_normal_interval(digits):
    values = np.random.default_rng(0).normal(size=2000).round(digits)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert statistics.bootstrap_mean(values, seed=0) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)


def test_capture():
    rng = np.random.default_rng(0)
    best = (rng.random(2000) < 0.5).astype(float)
    oracle = np.maximum(best, rng.random(2000) < 0.5)
    share, (low, high) = statistics.capture(np.where(rng.random(2000) < 0.6, oracle, best), best, oracle, seed=0)
    assert low < 0.6 < high and low < share < high and high - low < 0.12
    assert statistics.capture(oracle, best, oracle, seed=0)[0] == 1.0 and statistics.capture(best, best, oracle, seed=0)[0] == 0.0
    graded, (low, high) = statistics.capture(oracle * 0.3 + best * 0.7, best, oracle, seed=0)
    assert low <= graded <= high and graded == pytest.approx(0.3)


def test_capture_needs_five_points_of_headroom():
    best = np.zeros(100)
    assert statistics.capture(best, best, np.arange(100) < 4, seed=0) is None
    assert statistics.capture(best, best, np.arange(100) < 5, seed=0) is not None


def test_ratio_is_a_share_with_the_interval_of_scipy():
    rng = np.random.default_rng(3)
    y = rng.random(400) < 0.7
    x = np.where(rng.random(400) < 0.85, y, rng.random(400) < 0.4)
    share, (low, high) = statistics.ratio(x, y, seed=1)
    assert share == pytest.approx(x.sum() / y.sum())
    theirs = bootstrap(
        (x.astype(float), y.astype(float)), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, vectorized=True, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.006)
    assert statistics.ratio(x, np.zeros(400), seed=1) is None and statistics.ratio(np.zeros(0), np.zeros(0), seed=1) is None
    assert statistics.ratio(y, y, seed=1) == (1, (1, 1))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_whole_arrays_give_what_single_numbers_do(pairs):
    b, c = np.array(pairs).T
    low, high = statistics.tango(b, c, 150)
    for i, (x, y) in enumerate(pairs):
        assert statistics.mcnemar_exact(b, c)[i] == statistics.mcnemar_exact(x, y)
        assert (low[i], high[i]) == statistics.tango(x, y, 150)
    assert statistics.holm(np.array([b, c]) / 60)[1].tolist() == statistics.holm(c / 60).tolist()
    assert statistics.iut(np.array([b, c]) / 60).tolist() == [max(b) / 60, max(c) / 60]


@pytest.mark.parametrize("counts", [(3, 20, 15, 2), (0, 0, 15, 0), (0, 9, 0, 0), (4, 0, 6, 0), (0, 5, 30, 0), (1, 3, 2, 8)])
def test_captured_ends_are_where_the_score_test_turns(counts):
    """The most likely outcomes under a share are found again here, by maximising the likelihood over all four with scipy."""
    seen = np.array(counts, dtype=float)
    n = seen.sum()
    for end in statistics.captured(*counts):
        weight = np.array([-1.0, 1 - end, -end, 1.0])
        fit = minimize(lambda p: -float(seen @ np.log(np.maximum(p, 1e-12))), np.full(4, 0.25), bounds=[(0, 1)] * 4, method="SLSQP",
                       constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}, {"type": "eq", "fun": lambda p, weight=weight: p @ weight}],
                       options={"ftol": 1e-14, "maxiter": 500})
        z = seen @ weight / math.sqrt(n * (fit.x @ weight**2))
        assert abs(z) == pytest.approx(1.96, abs=0.01)


def test_captured_takes_arrays_and_holds_the_share():
    lost, won, missed, extra = np.array([[3, 20, 15, 2], [0, 0, 15, 0], [0, 9, 0, 0]]).T
    low, high = statistics.captured(lost, won, missed, extra)
    assert [low[0], high[0]] == pytest.approx(statistics.captured(3, 20, 15, 2)) and (low <= (won + extra - lost) / (won + missed)).all()
    assert low[1] == pytest.approx(-high[1]) and high[2] == pytest.approx(1 - low[2] + 1), "nothing lost or won still has a width"
