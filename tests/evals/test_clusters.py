"""Clustered statistics against statsmodels, brute force, and their unclustered kin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.regression.linear_model import OLS

from aiflow_agents.evals import clusters, statistics


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_flips_counts_every_pattern_of_signs(sums):
    totals = [abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in itertools.product((-1, 1), repeat=len(sums))]
    expected = np.mean([total >= abs(sum(sums)) for total in totals])
    assert clusters.flips(sums) == pytest.approx(expected, abs=1e-12)
    assert clusters.flips(sums) == pytest.approx(statistics.paired_permutation(np.array(sums), np.zeros(len(sums)), 0), abs=1e-12)


def test_flips_of_single_tasks_is_the_exact_mcnemar_test():
    for b, c in ((0, 0), (5, 0), (12, 3), (300, 250), (3, 900)):
        sums = np.repeat([1, -1, 0], [b, c, 40])
        assert clusters.flips(sums) == pytest.approx(statistics.mcnemar_exact(b, c), rel=1e-9, abs=1e-14)
    many = np.random.default_rng(0).integers(-3, 4, (6, 2, 50))
    np.testing.assert_allclose(clusters.flips(many), [[clusters.flips(row) for row in rows] for rows in many], rtol=1e-9)
    with pytest.raises(ValueError, match="whole"):
        clusters.flips([0.5])


@pytest.mark.parametrize("equal", [True, False])
def test_the_interval_is_that_of_a_regression_with_clustered_errors(equal):
    rng = np.random.default_rng(3)
    for _ in range(20):
        sizes = np.full(30, 7) if equal else rng.integers(1, 9, 30)
        groups = np.repeat(np.arange(30), sizes)
        difference = np.clip(rng.integers(-1, 2, 30)[groups] + rng.integers(-1, 2, len(groups)), -1, 1).astype(float)
        fitted = OLS(difference, np.ones(len(groups))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
        found = clusters.interval(clusters.sums(difference, groups), sizes)
        assert found == pytest.approx(tuple(fitted.conf_int()[0]), abs=1e-9)
        assert clusters.scaled(difference, groups).mean() == pytest.approx(difference.mean())


def test_where_nothing_differs_an_interval_still_has_a_width():
    sizes = np.full(40, 5)
    assert clusters.interval(np.zeros(40), sizes) == pytest.approx(statistics.tango(0, 0, 40))
    assert clusters.interval(sizes, sizes) == pytest.approx(statistics.tango(40, 0, 40))
    assert clusters.interval([3], [4]) == (-1.0, 1.0)


def test_equivalence_is_where_the_wider_interval_lies_within_the_margin():
    rng, sizes = np.random.default_rng(1), np.full(60, 5)
    for _ in range(30):
        sums = rng.integers(-1, 2, 60) + (rng.random(60) < 0.1)
        low, high = clusters.interval(sums, sizes, 0.9)
        margin = max(abs(low), abs(high))
        assert clusters.equivalence(sums, sizes, margin * 1.01) < 0.05 < clusters.equivalence(sums, sizes, margin * 0.99)
        assert clusters.equivalence(sums, sizes, 0.1) == pytest.approx(statistics.equivalence_graded(sums / 5, 0.1), abs=1e-12)
    assert clusters.equivalence(np.zeros(40), np.full(40, 5), 0.02) == pytest.approx(statistics.equivalence(0, 0, 40, 0.02)) and statistics.equivalence(0, 0, 40, 0.02) > 0.1


def test_an_accuracy_is_worth_its_clusters():
    sizes, rng = np.full(50, 6), np.random.default_rng(0)
    together = 6 * rng.integers(0, 2, 50)  # all of a cluster or none: fifty tasks are what there is
    assert clusters.share(together, sizes) == pytest.approx(statistics.wilson(together.sum() / 6 * 49 / 50, 49), abs=0.01)
    assert clusters.share(np.zeros(50), sizes) == pytest.approx(statistics.wilson(0, 50))
    alike = np.full(50, 3)  # every cluster has as many: then tasks are worth no more than themselves
    assert clusters.share(alike, sizes) == pytest.approx(statistics.wilson(25, 50))
    apart = rng.binomial(6, 0.5, 4000)
    assert clusters.share(apart, np.full(4000, 6)) == pytest.approx(statistics.wilson(int(apart.sum()), 24000), abs=2e-3)


def test_names_become_numbers():
    assert clusters.numbered(["b", "a", "b"]).tolist() == [1, 0, 1] and clusters.sums([1, 2, 4], clusters.numbered([7, 8, 7])).tolist() == [5, 2]
