"""The few statistical questions an evaluation asks, one function each.

Every question here is *paired*: two arms answered the same tasks, so only the tasks where they differ carry information. All functions are
pure, take plain numbers or arrays and, where chance is involved, a seed. Shares are fractions in [0, 1], never percent. Those that decide
(`mcnemar_exact`, `tango`, `wilson`, `iut`, `holm`) take whole arrays of counts or p-values, one entry for each of many runs, so that
`aiflow bench judge` puts on trial what a verdict is made with, and no copy of it.

| question | function |
|---|---|
| how well is this accuracy known? | `wilson` (right/wrong), `bootstrap_mean` (graded) |
| is arm A better than arm B? | `mcnemar_exact` (right/wrong), `paired_permutation` (graded) |
| by how much? | `tango` (right/wrong), `bootstrap_mean` of the differences (graded) |
| are A and B equally good, within a margin? | `equivalence` (right/wrong), `equivalence_graded` |
| is A better than *every one* of these? | `iut` |
| several claims were tested; which survive? | `holm` |
| what could this many tasks have shown? | `power_mcnemar`, `mde` |
| how much of what is possible was reached? | `capture`, `captured` |
| how good is A, as a share of B? | `ratio` |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import bdtr
from scipy.stats import binom, norm
from scipy.stats import t as student

HEADROOM = 0.05  # below this many points between best member and oracle, a share of it is noise divided by noise


@overload
def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]: ...
@overload
def wilson(successes: np.ndarray, n: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]: ...
def wilson(successes, n, level=0.95):
    """Interval for one accuracy: which true shares are compatible with `successes` right answers out of `n`? (low, high).

    Assumes independent tasks. Unlike "share plus or minus two standard errors" it never leaves [0, 1] and stays honest near 0 and 1.
    `n = 0` says nothing: (0, 1). `successes` may be an array. Source: Wilson, JASA 22 (1927) 209.
    """
    right = _counts(successes)
    _counts(n - right)
    if n == 0:
        return 0.0, 1.0
    z = _z(level)
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return _plain(np.where(right == 0, 0.0, np.maximum(0.0, centre - half))), _plain(np.where(right == n, 1.0, np.minimum(1.0, centre + half)))


@overload
def mcnemar_exact(b: int, c: int) -> float: ...
@overload
def mcnemar_exact(b: np.ndarray, c: np.ndarray) -> np.ndarray: ...
def mcnemar_exact(b, c):
    """Two-sided p that two right/wrong arms are equally good, where only the first was right on `b` tasks and only the second on `c`.

    If the arms are equally good each of the b + c discordant tasks is a fair coin, so this is an exact binomial test. It assumes
    independent tasks and nothing else; being discrete it is conservative (at a nominal 5 % it errs in 2-5 %). `b` and `c` may be arrays.
    Source: McNemar, Psychometrika 12 (1947) 153, in its exact conditional form.
    """
    b, c = _counts(b), _counts(c)
    return _plain(np.minimum(1.0, 2.0 * bdtr(np.minimum(b, c).astype(float), (b + c).astype(np.int64), 0.5)))


@overload
def tango(b: int, c: int, n: int, level: float = 0.95) -> tuple[float, float]: ...
@overload
def tango(b: np.ndarray, c: np.ndarray, n: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]: ...
def tango(b, c, n, level=0.95):
    """Interval for the paired difference (b - c) / n of two accuracies on the same `n` tasks; `b`, `c` as in `mcnemar_exact`. (low, high).

    It holds every difference that a score test would not reject, where the nuisance (how often the arms differ at all) takes its most
    likely value under that difference. Good coverage down to a few dozen tasks and at b = c = 0, where simpler intervals have width 0.
    `n = 0` gives (-1, 1). `b` and `c` may be arrays. Source: Tango, Statistics in Medicine 17 (1998) 891, closed form of the restricted
    estimate from section 3.
    """
    b, c = _counts(b), _counts(c)
    _counts(n - b - c)
    if n == 0:
        return -1.0, 1.0
    z = _z(level)

    def rejects(delta: np.ndarray) -> np.ndarray:  # written without a division, so finite everywhere
        difference, variance = _score(b, c, n, delta)
        return difference**2 > z * z * variance

    centre = (b - c) / n
    return _plain(_edge(rejects, centre, np.full(centre.shape, -1.0))), _plain(_edge(rejects, centre, np.full(centre.shape, 1.0)))


def _score(b: np.ndarray, c: np.ndarray, n: int, delta: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """How far b - c lies from what a true difference of `delta` would give, and its variance were `delta` true."""
    linear = (2 * n - b + c) * delta - b - c
    root = np.sqrt(np.maximum(0.0, linear * linear + 8 * n * c * delta * (1 - delta)))
    only_second = (root - linear) / (4 * n)  # most likely share of tasks that only the second arm gets right, given `delta`
    return b - c - n * delta, n * np.maximum(0.0, 2 * only_second + delta * (1 - delta))


def _edge(rejects: Callable[[np.ndarray], np.ndarray], near: np.ndarray, far: np.ndarray, halvings: int = 54) -> np.ndarray:
    """Where `rejects` begins between `near`, which is not rejected, and `far`, which is, by bisection (54: to the last bits). All [...]."""
    for _ in range(halvings):
        middle = (near + far) / 2
        out = rejects(middle)
        near, far = np.where(out, near, middle), np.where(out, middle, far)
    return near


@overload
def equivalence(b: int, c: int, n: int, margin: float) -> float: ...
@overload
def equivalence(b: np.ndarray, c: np.ndarray, n: int, margin: float) -> np.ndarray: ...
def equivalence(b, c, n, margin):
    """p that two right/wrong arms differ by `margin` or more; small: they are equally good within it. `b`, `c`, `n` as in `tango`.

    Two one-sided score tests, of differences of -margin and of +margin; the larger p, as both must reject. It is at most 0.05 just where the 90 %
    `tango` interval lies within the margin. Raises ValueError unless 0 < margin < 1. Source: Schuirmann, J. Pharmacokinet.
    Biopharm. 15 (1987) 657; for paired shares: Tango (1998), section 4, and Liu et al., Statistics in Medicine 21 (2002) 231.
    """
    if not 0 < margin < 1:
        raise ValueError(f"a margin lies between 0 and 1, not at {margin}")
    b, c = _counts(b), _counts(c)
    _counts(n - b - c)
    (below, spread_below), (above, spread_above) = _score(b, c, n, -margin), _score(b, c, n, margin)
    with np.errstate(divide="ignore"):  # no spread where one arm is right on all tasks and the other on none
        return _plain(np.maximum(norm.sf(below / np.sqrt(spread_below)), norm.cdf(above / np.sqrt(spread_above))))


def equivalence_graded(difference: np.ndarray, margin: float) -> float:
    """`equivalence` for graded scores: `difference` holds the paired differences, shape [n_tasks]. Two one-sided t tests."""
    if not margin > 0:
        raise ValueError(f"a margin is positive, not {margin}")
    n, mean = len(difference), float(np.mean(difference))
    error = float(np.std(difference, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    if error == 0:
        return float(abs(mean) >= margin)
    return float(max(student.sf((mean + margin) / error, max(n - 1, 1)), student.cdf((mean - margin) / error, max(n - 1, 1))))


def paired_permutation(x: np.ndarray, y: np.ndarray, seed: int, resamples: int = 10_000) -> float:
    """Two-sided p that two graded arms are equally good: `x`, `y` are scores of the same tasks, shape [n_tasks].

    If the arms are exchangeable, the sign of every task's difference is a fair coin. p is the share of sign patterns whose mean
    difference is at least as large as the one observed. It is exact where there are few tasks or few sizes of a difference (two or three repeats of
    right/wrong scores): signs of equal size are counted by a binomial. Otherwise `resamples` random patterns plus the observed stand for
    all, so p is never 0 and the test stays valid. Assumes independent tasks.
    Source: Fisher, The Design of Experiments (1935) §21; the plus one: Phipson & Smyth, SAGMB 9 (2010) 39.
    """
    difference = np.asarray(x, dtype=float) - np.asarray(y, dtype=float)
    difference = difference[difference != 0]
    k = len(difference)
    observed = abs(difference.sum()) - 1e-12 * np.abs(difference).sum()  # sums of floats that are equal on paper must count as equal
    sizes, times = np.unique(np.abs(difference).round(12), return_counts=True)
    if np.log(times + 1.0).sum() <= math.log(20 * resamples):
        sums, chances = np.zeros(1), np.ones(1)
        for size, many in zip(sizes, times, strict=True):
            flipped = np.arange(many + 1)
            sums = np.add.outer(sums, size * (many - 2 * flipped)).ravel()
            chances = np.outer(chances, binom.pmf(flipped, many, 0.5)).ravel()
        return min(1.0, float(chances[np.abs(sums) >= observed].sum()))
    rng = np.random.default_rng(seed)
    hits, left = 0, resamples
    while left:
        rows = min(left, max(1, 4_000_000 // k))  # blocks of 4 million signs: a few tens of megabytes
        bits = np.unpackbits(np.frombuffer(rng.bytes(rows * -(-k // 8)), dtype=np.uint8).reshape(rows, -1), axis=1, count=k)
        hits += int(np.count_nonzero(np.abs(difference.sum() - 2.0 * (bits.astype(np.float64) @ difference)) >= observed))
        left -= rows
    return (hits + 1) / (resamples + 1)


def bootstrap_mean(values: np.ndarray, seed: int, level: float = 0.95, resamples: int = 2_000) -> tuple[float, float]:
    """Interval for the mean of per-task values, shape [n_tasks]: scores of one arm, or differences of two arms.

    Percentile bootstrap over tasks. Assumes independent tasks, and a few dozen of them. Source: Efron, Ann. Statist. 7 (1979) 1.
    """
    means = _bootstrap_means(np.asarray(values, dtype=float)[:, None], seed, resamples)[:, 0]
    tail = (1 - level) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def holm(pvalues: ArrayLike) -> np.ndarray:
    """Adjusted p-values, in the order given: rejecting those at or below alpha makes one or more false claims with probability <= alpha.

    The last axis is the family: [..., tests] -> [..., tests]. Valid whatever the dependence between the tests; never less powerful than
    Bonferroni. Source: Holm, Scand. J. Statist. 6 (1979) 65.
    """
    p = np.asarray(pvalues, dtype=float)
    order = np.argsort(p, axis=-1, kind="stable")
    left = np.arange(p.shape[-1], 0, -1)  # how many claims are left to test at each step
    steps = np.maximum.accumulate(np.minimum(1.0, left * np.take_along_axis(p, order, axis=-1)), axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, steps, axis=-1)
    return adjusted


def iut(pvalues: ArrayLike) -> Any:
    """p for the claim that *all* of several nulls are false ("better than every member"): the largest p. [..., parts] -> [...].

    The intersection-union test: each part must reject on its own, so no correction for their number is due.
    Source: Berger, Technometrics 24 (1982) 295.
    """
    p = np.asarray(pvalues, dtype=float)
    if p.shape[-1] == 0:
        raise ValueError("a claim about every member needs at least one member")
    return _plain(p.max(axis=-1))


def power_mcnemar(n: int, delta: float, discordant: float, alpha: float = 0.05) -> float:
    """How often would `n` tasks show a true difference of `delta`, when the arms differ on a share `discordant` of the tasks?

    The probability that `mcnemar_exact` gives p <= alpha *in the direction of delta*, by summing the exact binomial tail over every number
    of discordant tasks (those with a total weight below 1e-12 aside, by Bernstein's inequality). Raises ValueError unless
    |delta| <= discordant <= 1.
    """
    if not 0 <= abs(delta) <= discordant <= 1:
        raise ValueError(f"a difference of {delta} needs at least that many discordant tasks, not {discordant}")
    return _power(n, abs(delta), discordant, _most_losses(n, alpha))


def _most_losses(n: int, alpha: float) -> np.ndarray:
    """Among d = 0..n discordant tasks, the most losses at which `mcnemar_exact` still gives p <= alpha; -1 where it never does. [n + 1]."""
    d = np.arange(n + 1)
    losses = np.asarray(binom.ppf(alpha / 2, d, 0.5))
    return losses - (bdtr(losses, d, 0.5) > alpha / 2)


def _power(n: int, delta: float, discordant: float, most_losses: np.ndarray) -> float:
    if n * discordant < 1e-12:  # the arms never differ; shares so small also overflow scipy's binomial
        return 0.0
    mean, reach = n * discordant, 8 * math.sqrt(n * discordant * (1 - discordant)) + 20
    d = np.arange(max(0, math.floor(mean - reach)), min(n, math.ceil(mean + reach)) + 1)  # numbers of discordant tasks worth summing over
    d = d[most_losses[d] >= 0]
    loses_share = max(0.0, (1 - delta / discordant) / 2)
    return float(np.sum(binom.pmf(d, n, discordant) * bdtr(most_losses[d], d, loses_share)))


def mde(n: int, discordant: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that `n` tasks would have shown with probability `power`; inf where none would.

    `discordant` is the share of tasks on which the arms differ. A difference larger than that share needs more of them, so beyond it the
    share is taken to be the difference itself (which keeps the answer defined when the arms hardly ever differ).
    """
    most_losses = _most_losses(n, alpha)

    def shown(delta: float) -> float:
        return _power(n, delta, max(discordant, delta), most_losses) - power

    if shown(1.0) < 0:
        return math.inf
    return float(brentq(shown, 0.0, 1.0, xtol=1e-6))


def mde_graded(difference: np.ndarray, alpha: float = 0.05, power: float = 0.8) -> float:
    """`mde` for graded scores: `difference` holds the paired differences, shape [n_tasks]. Normal approximation; inf where nothing varies."""
    spread = float(np.std(difference, ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0:
        return math.inf
    return (float(norm.isf(alpha / 2)) + float(norm.ppf(power))) * spread / math.sqrt(len(difference))


def capture(team: np.ndarray, best: np.ndarray, oracle: np.ndarray, seed: int,
            level: float = 0.95, resamples: int = 2_000) -> tuple[float, tuple[float, float]] | None:
    """The share of the oracle's head-room over the best member that the team won: (share, (low, high)).

    (team - best) / (oracle - best) of the mean scores; arrays of scores of the same tasks, shape [n_tasks]. 0: no better than the best member,
    1: as good as picking a right member every time; it may be negative or, when members help each other, above 1. The interval is
    `captured` for right/wrong scores, where the oracle is right wherever the best member is, and else a percentile bootstrap over tasks. None
    where the head-room is under 5 points: the ratio would be noise. An oracle is credited with lucky guesses, so the share means little where
    answers are few.
    """
    gain = np.stack([np.asarray(team, dtype=float), np.asarray(oracle, dtype=float)], axis=1) - np.asarray(best, dtype=float)[:, None]
    if len(gain) == 0 or gain[:, 1].mean() < HEADROOM - 1e-12:
        return None
    share = float(gain[:, 0].mean() / gain[:, 1].mean())
    lost, won, missed, extra = (np.all(gain == cell, axis=1) for cell in ((-1, 0), (1, 1), (0, 1), (1, 0)))
    if np.all(lost | won | missed | extra | np.all(gain == 0, axis=1)):
        return share, captured(lost.sum(), won.sum(), missed.sum(), extra.sum(), level)
    means = _bootstrap_means(gain, seed, resamples)
    means = means[means[:, 1] > 0]
    shares = means[:, 0] / means[:, 1]
    tail = (1 - level) / 2
    return share, (float(np.quantile(shares, tail)), float(np.quantile(shares, 1 - tail)))


def captured(lost: ArrayLike, won: ArrayLike, missed: ArrayLike, extra: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """Score interval for the captured share (won + extra - lost) / (won + missed), from counts of tasks; all [...], (low, high).

    `lost`: the best member is right and the team is not. Where the best member is wrong: `won`: the team is right and so is another member;
    `missed`: another member is right, the team is not; `extra`: only the team is right. At least one of `won` and `missed` is positive.

    Like `tango` it holds every share that a score test would not reject, where the probabilities of the four outcomes take their most likely
    values under that share. A share `s` says that `extra - lost + (1 - s) won - s missed` is 0 on average, so these are the weights of an empirical
    likelihood, in which an outcome that was not seen may be possible (Owen, Empirical Likelihood, 2001, section 2.9). A percentile bootstrap,
    which never sees what did not happen, covers 90 to 93 % where few tasks tell the team from its best member.
    """
    counts = np.stack(np.broadcast_arrays(*(_counts(one) for one in (lost, won, missed, extra))), axis=-1).astype(float)
    z = _z(level)

    def rejects(share: np.ndarray) -> np.ndarray:
        one = np.ones_like(share)
        weight = np.stack([-one, 1 - share, -share, one], axis=-1)  # what each outcome adds, which is 0 on average if `share` is true
        most, least = weight.max(axis=-1), weight.min(axis=-1)

        def too_small(tilt: np.ndarray) -> np.ndarray:
            return (counts * weight / (1 + tilt[..., None] * weight)).sum(axis=-1) <= 0

        with np.errstate(divide="ignore", invalid="ignore"):
            tilt = _edge(too_small, -1 / most, -1 / least, 40)
            expected = np.where(counts > 0, counts / (1 + tilt[..., None] * weight), 0.0)
        left = (expected * weight).sum(axis=-1)  # not 0 where only an outcome that was not seen can bring the mean to 0
        variance = (expected * weight**2).sum(axis=-1) + np.maximum(left, 0) * -least + np.maximum(-left, 0) * most
        return (counts * weight).sum(axis=-1) ** 2 > z * z * variance

    share = counts @ np.array([-1.0, 1.0, 0.0, 1.0]) / (counts[..., 1] + counts[..., 2])
    ends = []
    for side in (-1.0, 1.0):
        reach = np.full(share.shape, side)
        while not (far := rejects(share + reach)).all():
            reach = np.where(far, reach, 2 * reach)
        ends.append(_plain(_edge(rejects, share, share + reach, 40)))
    return ends[0], ends[1]


def ratio(x: np.ndarray, y: np.ndarray, seed: int, level: float = 0.95, resamples: int = 2_000) -> tuple[float, tuple[float, float]] | None:
    """The mean of `x` as a share of the mean of `y`: (share, (low, high)); scores of the same tasks, shape [n_tasks].

    Percentile bootstrap over tasks, so that what both arms find hard counts for both. None where `y` has no right answer.
    """
    pairs = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=1)
    if len(pairs) == 0 or pairs[:, 1].mean() <= 0:
        return None
    means = _bootstrap_means(pairs, seed, resamples)
    means = means[means[:, 1] > 0]
    shares, tail = means[:, 0] / means[:, 1], (1 - level) / 2
    return float(pairs[:, 0].mean() / pairs[:, 1].mean()), (float(np.quantile(shares, tail)), float(np.quantile(shares, 1 - tail)))


def _bootstrap_means(rows: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Column means of `resamples` bootstrap samples of the rows. rows: [n, columns] -> [resamples, columns].

    Where few rows are distinct (right/wrong scores: a handful, whatever n is) the equal ones are drawn together, by one multinomial.
    """
    if len(rows) == 0:
        raise ValueError("nothing to resample")
    n, rng = len(rows), np.random.default_rng(seed)
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    few = 8 * len(distinct) <= n
    means, block = [], max(1, 4_000_000 // (len(distinct) if few else n))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if few:
            means.append(rng.multinomial(n, counts / n, size=size) @ distinct / n)  # [size, distinct] @ [distinct, columns]
        else:
            drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]  # row i of the sample counts in [i * n, (i + 1) * n)
            means.append(np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n) @ rows / n)
    return np.concatenate(means)


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not at {level}")
    return float(norm.isf((1 - level) / 2))


def _counts(counts: ArrayLike) -> np.ndarray:
    found = np.asarray(counts)
    if (found < 0).any():
        raise ValueError(f"counts must not be negative, and parts must not exceed the whole: {found[found < 0][:5]}")
    return found


def _plain(value: np.ndarray) -> Any:
    """A number where one number was asked for, and else the array."""
    return value if value.ndim else float(value)
