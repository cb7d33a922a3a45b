"""The cheapest thresholds, against a slow search that asks question by question."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from aiflow_agents.topology import thresholds as module
from aiflow_agents.topology.thresholds import NEVER, cheapest


def slowly(marks: np.ndarray, sure: np.ndarray, flops: np.ndarray, at: tuple[float, ...]) -> tuple[np.ndarray, float]:
    got, spent = [], 0.0
    for question in range(marks.shape[1]):
        for stage in range(len(marks)):
            spent += flops[stage]
            if stage == len(sure) or sure[stage, question] >= at[stage]:
                got.append(marks[stage, question])
                break
    return np.array(got), spent / marks.shape[1]


@pytest.mark.parametrize("stages", [2, 3])
def test_nothing_that_keeps_enough_is_cheaper(stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 4)
    draw = np.random.default_rng(stages)
    marks = (draw.random((stages, 60)) < np.linspace(0.5, 0.9, stages)[:, None]).astype(float)
    sure = 0.5 * marks[:-1] + 0.5 * draw.random((stages - 1, 60))
    flops = np.arange(1.0, stages + 1)
    halves = np.random.default_rng(0).permutation(60) % 2
    candidates = product(*([*np.quantile(one, np.linspace(0, 1, 5)), NEVER] for one in sure))
    costs = []
    for at in candidates:
        got, cost = slowly(marks, sure, flops, at)
        if all(got[halves == half].mean() >= 0.9 * marks[-1][halves == half].mean() for half in (0, 1)):
            costs.append(cost)
    assert slowly(marks, sure, flops, cheapest(marks, sure, flops, 0.9))[1] == pytest.approx(min(costs))


def test_where_nothing_is_enough_but_the_last_stage_it_is_always_reached() -> None:
    marks, sure = np.array([[0.0] * 10, [1.0] * 10]), np.full((1, 10), 0.99)
    assert cheapest(marks, sure, np.ones(2), 1.0) == (NEVER,)
    assert cheapest(marks, sure, np.ones(2), 0.0)[0] <= 0.99
