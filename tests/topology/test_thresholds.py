"""The cheapest thresholds, against a slow search that asks question by question."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from aiflow_agents.topology import thresholds as module
from aiflow_agents.topology.thresholds import NEVER, cheapest

Pair = tuple[float, float]  # where it differs from the stage before, and where it agrees with it


def slowly(marks: np.ndarray, sure: np.ndarray, agrees: np.ndarray, flops: np.ndarray, at: tuple[Pair, ...]) -> tuple[np.ndarray, float]:
    got, spent = [], 0.0
    for question in range(marks.shape[1]):
        for stage in range(len(marks)):
            spent += flops[stage]
            if stage == len(sure) or sure[stage, question] >= at[stage][int(agrees[stage, question])]:
                got.append(marks[stage, question])
                break
    return np.array(got), spent / marks.shape[1]


@pytest.mark.parametrize(("stages", "asked"), [(2, False), (3, False), (3, True)])
def test_nothing_that_keeps_enough_is_cheaper(stages: int, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 3)
    draw = np.random.default_rng(stages)
    marks = (draw.random((stages, 60)) < np.linspace(0.5, 0.9, stages)[:, None]).astype(float)
    sure = 0.5 * marks[:-1] + 0.5 * draw.random((stages - 1, 60))
    agrees = np.zeros(sure.shape, bool)
    if asked:
        agrees[1:] = marks[1:-1] == marks[:-2]
    flops, halves = np.arange(1.0, stages + 1), np.random.default_rng(0).permutation(60) % 2

    def steps(values: np.ndarray) -> list[float]:
        return [*np.quantile(values, np.linspace(0, 1, 4)), NEVER]

    costs = []
    for at in product(*(product(steps(one[~same]), steps(one[same]) if same.any() else [0.0]) for one, same in zip(sure, agrees, strict=True))):
        got, cost = slowly(marks, sure, agrees, flops, at)
        if all(got[halves == half].mean() >= 0.9 * marks[-1][halves == half].mean() for half in (0, 1)):
            costs.append(cost)
    found = tuple(zip(*cheapest(marks, sure, flops, 0.9, agrees), strict=True))
    assert slowly(marks, sure, agrees, flops, found)[1] == pytest.approx(min(costs))


def test_where_nothing_is_enough_but_the_last_stage_it_is_always_reached() -> None:
    marks, sure = np.array([[0.0] * 10, [1.0] * 10]), np.full((1, 10), 0.99)
    assert cheapest(marks, sure, np.ones(2), 1.0) == ((NEVER,), (NEVER,))
    assert cheapest(marks, sure, np.ones(2), 0.0)[0][0] <= 0.99
