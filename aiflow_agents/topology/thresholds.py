"""When is sure sure enough? Thresholds of a cascade, chosen on the dev split from what each stage says alone."""

from __future__ import annotations

from itertools import product

import numpy as np

STEPS = 20  # a threshold is tried at so many quantiles of how sure a stage was
NEVER = 1.01


def cheapest(marks: np.ndarray, sure: np.ndarray, flops: np.ndarray, keep: float) -> tuple[float, ...]:
    """How sure each stage but the last must be, so that the fewest FLOPs keep `keep` of the last one's marks.

    marks: [stages, questions]; sure: [stages - 1, questions]; flops: [stages], of one question each, without what a stage before has done.
    Enough must be kept on both halves of the questions: what is chosen for how it does on all of them does worse elsewhere.
    """
    questions = marks.shape[1]
    halves = np.random.default_rng(0).permutation(questions) % 2 == np.array([[0], [1]])  # not every other one: skills come in turn
    least = [keep * marks[-1, half].mean() for half in halves]
    found = [(float(flops.sum()), -float(marks[-1].mean()), (NEVER,) * len(sure))]
    for thresholds in product(*(np.unique([*np.quantile(one, np.linspace(0, 1, STEPS + 1)), NEVER]).tolist() for one in sure)):
        passed = np.logical_and.accumulate(sure < np.array(thresholds)[:, None])
        reached = np.vstack([np.ones((1, questions), bool), passed])  # [stages, questions]
        got = marks[reached.sum(0) - 1, np.arange(questions)]
        if all(got[half].mean() >= enough for half, enough in zip(halves, least, strict=True)):
            found.append((float(flops @ reached.mean(1)), -float(got.mean()), thresholds))
    return min(found)[2]
