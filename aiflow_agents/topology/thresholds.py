"""When is sure sure enough? Thresholds of a cascade, chosen on the dev split from what each stage says alone."""

from __future__ import annotations

from itertools import product

import numpy as np

Thresholds = tuple[float, ...]  # of each stage but the last
STEPS = 14  # a threshold is tried at so many quantiles of how sure a stage was
NEVER = 1.01


def cheapest(marks: np.ndarray, sure: np.ndarray, flops: np.ndarray, keep: float, agrees: np.ndarray | None = None) -> tuple[Thresholds, Thresholds]:
    """How sure each stage but the last must be, so that the fewest FLOPs keep `keep` of the last one's marks; and where it `agrees`.

    marks: [stages, questions]; sure: [stages - 1, questions]; flops: [stages], of one question each, without what a stage before has done; agrees:
    [stages - 1, questions], where a stage says what the one before it said (None: nobody knows, and both thresholds are the same).
    Enough must be kept on both halves of the questions: what is chosen for how it does on all of them does worse elsewhere.
    """
    questions = marks.shape[1]
    agrees = np.zeros(sure.shape, bool) if agrees is None else agrees
    halves = np.random.default_rng(0).permutation(questions) % 2 == np.array([[0], [1]])  # not every other one: skills come in turn
    least = [keep * marks[-1, half].mean() for half in halves]
    found = [(float(flops.sum()), -float(marks[-1].mean()), ((NEVER, NEVER),) * len(sure))]
    for pairs in product(*(_pairs(one, same) for one, same in zip(sure, agrees, strict=True))):
        wanted = np.where(agrees, *(np.array(column)[:, None] for column in zip(*((b, a) for a, b in pairs), strict=True)))
        passed = np.logical_and.accumulate(sure < wanted)
        reached = np.vstack([np.ones((1, questions), bool), passed])  # [stages, questions]
        got = marks[reached.sum(0) - 1, np.arange(questions)]
        if all(got[half].mean() >= enough for half, enough in zip(halves, least, strict=True)):
            found.append((float(flops @ reached.mean(1)), -float(got.mean()), pairs))
    alone, agreeing = zip(*min(found)[2], strict=True)
    return alone, agreeing


def _pairs(sure: np.ndarray, agrees: np.ndarray) -> list[tuple[float, float]]:
    """(threshold, threshold where it agrees) to try for one stage."""
    alone = _steps(sure[~agrees])
    return list(product(alone, _steps(sure[agrees]))) if agrees.any() else [(one, one) for one in alone]


def _steps(sure: np.ndarray) -> list[float]:
    return np.unique([*(np.quantile(sure, np.linspace(0, 1, STEPS + 1)) if len(sure) else ()), NEVER]).tolist()
