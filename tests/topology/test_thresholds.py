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


def exits(draw: np.random.Generator, stages: int, questions: int) -> tuple[np.ndarray, np.ndarray]:
    """(marks, how sure) of stages of which each knows what the one before knows, and more, and knows in part what it knows."""
    marks = (draw.random(questions) < np.linspace(0.5, 0.9, stages)[:, None]).astype(float)
    return marks, 0.3 * marks[:-1] + 0.7 * draw.random((stages - 1, questions))


@pytest.mark.parametrize(("stages", "asked"), [(2, False), (3, False), (3, True)])
def test_nothing_that_keeps_as_much_is_cheaper(stages: int, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 3)
    marks, sure = exits(np.random.default_rng(stages), stages, 60)
    agrees = np.zeros(sure.shape, bool)
    if asked:
        agrees[1:] = marks[1:-1] == marks[:-2]
    flops = np.arange(1.0, stages + 1)

    def steps(values: np.ndarray) -> list[float]:
        return [*np.quantile(values, np.linspace(0, 1, 4)), NEVER]

    found = tuple(zip(*cheapest(marks, sure, flops, 0.9, agrees), strict=True))
    kept, spent = slowly(marks, sure, agrees, flops, found)
    assert kept.mean() >= 0.9 * marks[-1].mean()
    for at in product(*(product(steps(one[~same]), steps(one[same]) if same.any() else [0.0]) for one, same in zip(sure, agrees, strict=True))):
        got, cost = slowly(marks, sure, agrees, flops, at)
        assert got.mean() < kept.mean() or cost >= spent - 1e-9


def test_it_keeps_on_average_what_was_asked_on_questions_that_it_has_not_seen() -> None:
    kept, asked_alone = [], []
    for seed in range(30):
        draw = np.random.default_rng(seed)
        (marks, sure), (new_marks, new_sure) = exits(draw, 2, 300), exits(draw, 2, 4000)
        for ask, found in ((0.0, asked_alone), (module.MOST_MORE, kept)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "MOST_MORE", ask)
                patch.setattr(module, "STEPS", 100)
                (threshold,), _ = cheapest(marks, sure, np.ones(2), 0.97)
            found.append(np.where(new_sure[0] >= threshold, *new_marks).mean() / new_marks[-1].mean())
    assert np.mean(asked_alone) < 0.97 <= np.mean(kept)


def test_where_nothing_is_enough_but_the_last_stage_it_is_always_reached() -> None:
    marks, sure = np.array([[0.0] * 10, [1.0] * 10]), np.full((1, 10), 0.99)
    assert cheapest(marks, sure, np.ones(2), 1.0) == ((NEVER,), (NEVER,))
    assert cheapest(marks, sure, np.ones(2), 0.0)[0][0] <= 0.99
