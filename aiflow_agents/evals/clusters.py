"""Tasks that belong together, as several questions about one scene do: answers to them are no independent evidence.

What a cluster says is the sum over its tasks, and clusters are what is drawn. As in `statistics`, all functions are pure and shares lie in [0, 1];
those that decide take whole arrays of runs: sums [..., clusters] -> [...].

| question | function |
|---|---|
| is arm A better than arm B? | `flips` (right/wrong); `statistics.paired_permutation` of the sums (graded) |
| by how much? | `interval` |
| are A and B equally good, within a margin? | `equivalence` |
| how well is this accuracy known? | `share` |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from aiflow_agents.evals import statistics

BLOCK = 4_000_000  # numbers held at once


def numbered(names: Sequence[object]) -> np.ndarray:
    """Each task's cluster as a number from 0, [tasks]."""
    return np.unique(np.array([str(name) for name in names]), return_inverse=True)[1]


def sums(values: ArrayLike, clusters: np.ndarray) -> np.ndarray:
    """Per-task values added up by cluster: [tasks] -> [clusters]."""
    return np.bincount(clusters, np.asarray(values, dtype=float))


def scaled(values: ArrayLike, clusters: np.ndarray) -> np.ndarray:
    """The sums, scaled so that their mean over clusters is the mean over tasks: what can stand for tasks where these are resampled."""
    found = sums(values, clusters)
    return found * (len(found) / len(clusters))


def flips(found: ArrayLike) -> Any:
    """Two-sided p that two right/wrong arms are equally good; `found` [..., clusters]: tasks of each cluster that the first won, minus those it lost.

    If the arms are exchangeable the sign of every cluster's sum is a fair coin, whatever goes on inside a cluster. p is the share of sign patterns
    whose total is at least as far from zero as the one observed: `statistics.paired_permutation` of the sums, but exact, as the characteristic
    function of the total is a product of cosines, one for each cluster, and one Fourier transform gives all its probabilities. With a task a cluster
    it is the exact McNemar test. Source: Fisher, The Design of Experiments (1935) §21; for clustered pairs: Durkalski et al., Statistics in
    Medicine 22 (2003) 2417.
    """
    given = np.asarray(found)
    whole = np.rint(given).astype(np.int64)
    if not np.array_equal(whole, given):
        raise ValueError("sums of right/wrong scores are whole numbers")
    rows = whole.reshape(-1, whole.shape[-1])
    size, total = np.abs(rows), np.abs(rows.sum(axis=1))
    reach, largest = int(size.sum(axis=1).max(initial=0)), int(size.max(initial=0))
    angle, p = 2 * np.pi * np.arange(2 * reach + 1) / (2 * reach + 1), np.ones(len(rows))
    step = max(1, BLOCK // (2 * reach + 1))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        many = (size[part, :, None] == np.arange(1, largest + 1)).sum(axis=1) if largest else np.zeros((len(rows[part]), 0), int)  # [rows, sizes]
        wave = np.ones((len(many), len(angle)))
        for k in range(largest):
            wave *= np.cos((k + 1) * angle) ** many[:, k, None]
        chance = np.fft.rfft(wave, axis=1).real / len(angle)  # [rows, reach + 1], of a total of 0, 1, ...
        tail = 2 * np.cumsum(chance[:, ::-1], axis=1)[:, ::-1]
        least = 2.0 ** (1 - many.sum(axis=1))  # all signs alike: two patterns of all. What rounding leaves is not less
        p[part] = np.clip(np.where(total[part] == 0, 1.0, tail[np.arange(len(many)), total[part]]), least, 1.0)
    return statistics._plain(p.reshape(whole.shape[:-1]))


def interval(found: ArrayLike, sizes: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """Interval for the mean over tasks of a paired difference: (low, high). found [..., clusters]: its sum in each; sizes [clusters]: how many tasks.

    The cluster-robust interval of a mean, with Student's t for so many clusters less one: what a regression of the differences on a constant gives
    with standard errors clustered. Where no cluster differs from another it is that of `statistics.tango`, as if each cluster were one task. One
    cluster says nothing. Source: Liang and Zeger, Biometrika 73 (1986) 13; Cameron and Miller, J. Human Resources 50 (2015) 317.
    """
    total, size = np.asarray(found, dtype=float), np.asarray(sizes, dtype=float)
    mean, error = _error(total, size)
    n = len(size)
    if n < 2:
        return statistics._plain(np.full(mean.shape, -1.0)), statistics._plain(np.full(mean.shape, 1.0))
    half = float(student.isf((1 - level) / 2, n - 1)) * error
    low, high = mean - half, mean + half
    flat = error < 1e-12
    if flat.any():
        won, lost = n * np.maximum(mean, 0.0), n * np.maximum(-mean, 0.0)
        edge = statistics.tango(np.minimum(won, n), np.minimum(lost, n), n, level)
        low, high = np.where(flat, edge[0], low), np.where(flat, edge[1], high)
    return statistics._plain(low), statistics._plain(high)


def equivalence(found: ArrayLike, sizes: ArrayLike, margin: float) -> Any:
    """p that two arms differ by `margin` or more, `found` and `sizes` as in `interval`: two one-sided tests with its error, [...].

    Where no cluster differs from another it is `statistics.equivalence`, as if each cluster were one task. Source: Schuirmann, J. Pharmacokinet.
    Biopharm. 15 (1987) 657.
    """
    total, size = np.asarray(found, dtype=float), np.asarray(sizes, dtype=float)
    mean, error = _error(total, size)
    n, flat = len(size), error < 1e-12
    some = np.where(flat, 1.0, error)
    p = np.maximum(student.sf((mean + margin) / some, max(n - 1, 1)), student.cdf((mean - margin) / some, max(n - 1, 1)))
    if flat.any():
        p = np.where(flat, statistics.equivalence(np.minimum(n * np.maximum(mean, 0), n), np.minimum(n * np.maximum(-mean, 0), n), n, margin), p)
    return statistics._plain(np.asarray(p))


def share(found: ArrayLike, sizes: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """Interval for one accuracy: `statistics.wilson` for as many tasks as the clusters are worth. found [..., clusters]: right answers in each.

    That number is tasks times the variance they would have one by one over that of clusters; it is at most the tasks, and the clusters where all
    answers are alike. Source: Rao and Scott, Biometrics 48 (1992) 577.
    """
    total, size = np.asarray(found, dtype=float), np.asarray(sizes, dtype=float)
    mean, error = _error(total, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        worth = np.where(error > 1e-12, mean * (1 - mean) / error**2, float(len(size)))
    worth = np.clip(worth, 1.0, size.sum())
    low, high = np.vectorize(lambda p, n: statistics.wilson(p * n, n, level), otypes=[float, float])(mean, worth)
    return statistics._plain(low), statistics._plain(high)


def accuracy(scores: np.ndarray, cluster: np.ndarray | None) -> tuple[Any, Any]:
    """Interval for one accuracy: Wilson over tasks, or over what clusters are worth. scores, cluster: [tasks]; None where there are none."""
    if cluster is None:
        return statistics.wilson(round(float(scores.sum())), len(scores))
    return share(sums(scores, cluster), np.bincount(cluster))


def _error(total: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over tasks and its cluster-robust standard error, each [...]."""
    n, tasks = len(size), size.sum()
    mean = total.sum(axis=-1) / tasks
    left = total - size * mean[..., None]
    return mean, np.sqrt((left**2).sum(axis=-1) * (n / max(n - 1, 1))) / tasks
