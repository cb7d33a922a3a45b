"""When is sure sure enough? Thresholds of a cascade, chosen on the dev split from what each stage says alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

Thresholds = tuple[float, ...]  # of each stage but the last
STEPS = 14  # a threshold is tried at so many quantiles of how sure a stage was
NEVER = 1.01
FOLDS = 10
MORE, MOST_MORE = 0.001, 0.02  # how much more than `keep` is asked, step by step


def cheapest(marks: np.ndarray, sure: np.ndarray, flops: np.ndarray, keep: float, agrees: np.ndarray | None = None) -> tuple[Thresholds, Thresholds]:
    """How sure each stage but the last must be, so that the fewest FLOPs keep `keep` of the last one's marks; and where it `agrees`.

    marks: [stages, questions]; sure: [stages - 1, questions]; flops: [stages], of one question each, without what a stage before has done; agrees:
    [stages - 1, questions], where a stage says what the one before it said (None: nobody knows, and both thresholds are the same).

    The cheapest choice that keeps enough on some questions keeps less on others, as it was chosen for its luck too. So more is asked, until what
    is chosen on nine tenths of the questions keeps enough on the tenth left out, over all ten; or all there is.
    """
    agrees = np.zeros(sure.shape, bool) if agrees is None else agrees
    choices = list(product(*(_pairs(one, same) for one, same in zip(sure, agrees, strict=True)))) + [((NEVER, NEVER),) * len(sure)]
    folds = np.random.default_rng(0).permutation(marks.shape[1]) % FOLDS == np.arange(FOLDS)[:, None]  # not in turn: skills come so
    outcomes = [_outcome(pairs, marks, sure, flops, agrees) for pairs in choices]
    got, spent = (np.array([folds @ one for one in column]) for column in zip(*outcomes, strict=True))  # [choices, folds], sums
    whole = folds @ marks[-1]

    def chosen(on: np.ndarray, ask: float) -> int:
        """The cheapest that keeps `ask` on these folds, and of equals the best."""
        enough = got[:, on].sum(1) >= ask * whole[on].sum() - 1e-9
        return min(np.flatnonzero(enough).tolist(), key=lambda i: (spent[i, on].sum(), -got[i, on].sum()))

    def elsewhere(ask: float) -> float:
        return sum(got[chosen(np.arange(FOLDS) != fold, ask), fold] for fold in range(FOLDS))

    asks = np.append(np.arange(keep, min(keep + MOST_MORE, 1.0), MORE), min(keep + MOST_MORE, 1.0))
    ask = next((ask for ask in asks if elsewhere(ask) >= keep * whole.sum()), asks[-1])
    alone, agreeing = zip(*choices[chosen(np.ones(FOLDS, bool), ask)], strict=True)
    return alone, agreeing


def _outcome(
    pairs: Sequence[tuple[float, float]], marks: np.ndarray, sure: np.ndarray, flops: np.ndarray, agrees: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(marks, FLOPs) of each question with these thresholds."""
    wanted = np.where(agrees, *(np.array(column)[:, None] for column in zip(*((b, a) for a, b in pairs), strict=True)))
    reached = np.logical_and.accumulate(sure < wanted).sum(0)  # the stage that answers
    return marks[reached, np.arange(marks.shape[1])], np.cumsum(flops)[reached]


def _pairs(sure: np.ndarray, agrees: np.ndarray) -> list[tuple[float, float]]:
    """(threshold, threshold where it agrees) to try for one stage."""
    alone = _steps(sure[~agrees])
    return list(product(alone, _steps(sure[agrees]))) if agrees.any() else [(one, one) for one in alone]


def _steps(sure: np.ndarray) -> list[float]:
    return np.unique([*(np.quantile(sure, np.linspace(0, 1, STEPS + 1)) if len(sure) else ()), NEVER]).tolist()
