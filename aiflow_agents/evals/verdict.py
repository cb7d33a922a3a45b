"""What may be said about an arm, and in which words.

Three families of claims, each corrected by Holm's method within itself:

1. every topology against *all* members ("members"): may this team be called better than any single one of its members?
2. every placebo against all members: a channel that carries nothing must not look like a team. Apart from (1), so that adding controls
   does not make a real effect harder to show.
3. the best topology, chosen on dev, against each rival: is it the talking, or only the computing?

A verdict is directional: a two-sided test that rejects says `beats` or `loses` by the sign of the difference. So a family of equal arms says a
wrong `beats` with probability about alpha / 2, and less still where the test is exact and so conservative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from aiflow_agents.evals import clusters, statistics

Says = Literal["beats", "not shown", "loses"]
SAYS: dict[int, Says] = {1: "beats", 0: "not shown", -1: "loses"}
MEMBERS = "members"


@dataclass(frozen=True)
class Verdict:
    """One row: `arm` against every member (`against == "members"`) or against one rival. Shares and scores are in [0, 1], not percent.

    Against members, `delta`, `ci95`, `mde`, `wins`, `losses` and `ties` describe the best member chosen on dev, while `p` is about all of
    them (see `judge`). `says` follows `p_holm` alone, and the sign of `delta`.
    """

    arm: str
    against: str
    delta: float  # mean score of `arm` minus that of the other
    ci95: tuple[float, float] | None  # of delta, not adjusted for the number of arms
    p: float
    p_holm: float
    mde: float | None  # smallest difference shown with 80 % power at Holm's first step; None where no difference could have been
    wins: int  # tasks on which `arm` scored higher
    losses: int
    ties: int
    capture: tuple[float, tuple[float, float]] | None  # share of the oracle's head-room, and its 95 % interval; only against members
    says: Says


def judge(scores: Mapping[str, np.ndarray], kinds: Mapping[str, str], *, best_member: str, best_topology: str | None,
          oracle: str | None, alpha: float = 0.05, seed: int = 0, cluster: np.ndarray | None = None) -> list[Verdict]:
    """The verdicts of one run: every topology and placebo against the members, then the best topology against each rival.

    scores[arm] has shape [n_tasks], aligned by task, a failed task being 0.0; kinds[arm] is member, rival, topology or placebo.
    `best_member` and `best_topology` were chosen on other tasks than these. `oracle` names the arm that is right where any member is: a
    ceiling (see `capture`), not something anyone could run, so it gets no row of its own.

    Against the members the row's p is
    - that of the intersection-union test, if the arm scores above the best member: the largest of its p-values against each member,
      where a member that scores no worse than the arm counts as p = 1. So `beats` means better than every member, whichever is best here.
    - that against the best member chosen on dev, if the arm scores below it. So `loses` means worse than the member one would have used
      instead; being worse than all of them is not required.

    Right/wrong scores (every arm 0 or 1 on every task) get exact McNemar tests and Tango intervals; graded ones paired permutation tests and
    bootstrap intervals. Where tasks are clustered (`cluster` [n_tasks], a number for each task's), clusters are what is drawn: flips of their sums,
    exact for right/wrong scores, and cluster-robust intervals. Raises ValueError for scores that are not aligned, not finite or missing.
    """
    arms = _checked(scores, kinds, best_member, best_topology, oracle)
    binary = all(np.isin(values, (0.0, 1.0)).all() for values in arms.values())
    compare = _Comparison(binary, alpha, seed, cluster)

    def of_kind(kind: str) -> list[str]:
        return [arm for arm in arms if kinds[arm] == kind and arm != oracle]

    verdicts: list[Verdict] = []
    members = of_kind("member")
    for kind in ("topology", "placebo"):
        family = of_kind(kind)
        pairs = [[compare.pair(arms[arm], arms[member]) for member in members] for arm in family]
        p, gain = np.array(pairs).reshape(len(family), len(members), 2).transpose(2, 0, 1)  # each [arms, members]
        pvalues = against_members(p, gain, np.array(members.index(best_member)))
        for arm, p_arm, p_holm in zip(family, pvalues, statistics.holm(pvalues), strict=True):
            team, best, ceiling = (compare.drawn(arms[name]) for name in (arm, best_member, oracle or best_member))
            share = statistics.capture(team, best, ceiling, seed) if oracle else None
            verdicts.append(compare.verdict(arm, MEMBERS, arms[arm], arms[best_member], p_arm, p_holm, len(family), share))
    if best_topology:
        team, rivals = arms[best_topology], of_kind("rival")
        pvalues = np.array([compare.pair(team, arms[rival])[0] for rival in rivals])
        for rival, p_arm, p_holm in zip(rivals, pvalues, statistics.holm(pvalues), strict=True):
            verdicts.append(compare.verdict(best_topology, rival, team, arms[rival], p_arm, p_holm, len(rivals), None))
    return verdicts


def against_members(p: np.ndarray, gain: np.ndarray, best: np.ndarray) -> np.ndarray:
    """p for "better than every member" if an arm is above the best one, for "worse than the best" if below, 1 if level.

    p, gain: [..., arms, members], each arm's p-value and mean difference against each member; best: [...], the index of the best member,
    as chosen on dev. Returns [..., arms].
    """
    chosen = np.broadcast_to(best[..., None, None], (*p.shape[:-1], 1))
    p_best, gain_best = (np.take_along_axis(values, chosen, axis=-1)[..., 0] for values in (p, gain))
    return np.where(gain_best > 0, statistics.iut(np.where(gain > 0, p, 1.0)), p_best)


def outcome(delta: np.ndarray, p_holm: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """What may be said: 1 beats, 0 not shown, -1 loses. Two-sided p-values, so the direction is that of `delta`."""
    return np.where(p_holm > alpha, 0, np.sign(delta)).astype(int)


@dataclass(frozen=True)
class _Comparison:
    """The paired tests for one kind of score."""

    binary: bool
    alpha: float
    seed: int
    cluster: np.ndarray | None = None

    def drawn(self, scores: np.ndarray) -> np.ndarray:
        """Scores of what was drawn: tasks, or clusters of them."""
        return scores if self.cluster is None else clusters.scaled(scores, self.cluster)

    def pair(self, own: np.ndarray, other: np.ndarray) -> tuple[float, float]:
        """(p, mean difference)."""
        if self.cluster is not None:
            found = clusters.sums(own - other, self.cluster)
            return clusters.flips(found) if self.binary else statistics.paired_permutation(found, np.zeros(len(found)), self.seed), _gain(own, other)
        if self.binary:
            return statistics.mcnemar_exact(int(np.sum(own > other)), int(np.sum(own < other))), _gain(own, other)
        return statistics.paired_permutation(own, other, self.seed), _gain(own, other)

    def verdict(self, arm: str, against: str, own: np.ndarray, other: np.ndarray, p: float, p_holm: float, family: int,
                capture: tuple[float, tuple[float, float]] | None) -> Verdict:
        n, wins, losses = len(own), int(np.sum(own > other)), int(np.sum(own < other))
        delta = _gain(own, other)
        if self.cluster is not None:
            ci95 = clusters.interval(clusters.sums(own - other, self.cluster), np.bincount(self.cluster))
            smallest = statistics.mde_graded(self.drawn(own - other), self.alpha / family)
        elif self.binary:
            ci95 = statistics.tango(wins, losses, n)
            smallest = statistics.mde(n, (wins + losses) / n, self.alpha / family)
        else:
            ci95 = statistics.bootstrap_mean(own - other, self.seed)
            smallest = statistics.mde_graded(own - other, self.alpha / family)
        says = SAYS[int(outcome(np.array(delta), np.array(p_holm), self.alpha))]
        return Verdict(arm, against, delta, ci95, float(p), float(p_holm), smallest if math.isfinite(smallest) else None,
                       wins, losses, n - wins - losses, capture, says)


def _gain(own: np.ndarray, other: np.ndarray) -> float:
    """Mean difference; what is left by rounding alone counts as none."""
    gain = float(np.mean(own - other))
    return 0.0 if abs(gain) < 1e-12 else gain


def _checked(scores: Mapping[str, np.ndarray], kinds: Mapping[str, str], best_member: str, best_topology: str | None,
             oracle: str | None) -> dict[str, np.ndarray]:
    arms = {arm: np.asarray(values, dtype=float) for arm, values in scores.items()}
    for role, name, kind in (("best member", best_member, "member"), ("best topology", best_topology, "topology"), ("oracle", oracle, None)):
        if name is not None and (name not in arms or kind not in (None, kinds[name])):
            raise ValueError(f"the {role} '{name}' is no {kind or 'arm'} among {', '.join(arms)}")
    shape = arms[best_member].shape
    for arm, values in arms.items():
        if values.ndim != 1 or values.shape != shape or len(values) == 0 or not np.isfinite(values).all():
            raise ValueError(f"arm '{arm}' has scores of shape {values.shape}, some perhaps not finite; wanted one number for each of {shape} tasks")
    return arms


def sentence(summary: Mapping[str, Any]) -> str:
    """The outcome of a run in a few plain words, for the terminal and the head of the report.

    `summary` is `summary.json`; costs of an arm (`wire_bytes`, `energy_j`, ...) are means per question. Says what was shown and, where nothing was,
    what could have been.
    """
    arms, n = summary["arms"], int(summary["n_tasks"])
    chosen = {role: (summary.get(role) or {}).get("arm") for role in ("best_member", "best_topology")}
    questions = f"{n:,} {'unseen questions' if summary.get('split', 'test') == 'test' else 'questions of the {} split'.format(summary['split'])}"
    if summary.get("n_clusters"):
        questions += f" in {summary['n_clusters']:,} clusters"
    if chosen["best_member"] is None:
        return f"No member answered the {questions}, so there is nothing to compare a team with."
    member = arms[chosen["best_member"]]
    if chosen["best_topology"] is None:
        return (f"No topology was run. The best member, {chosen['best_member']}, answers {percent(member['accuracy'])} of {questions}"
                f"{_failed(member)}. Per question it cost {_cost(member)}.")
    team = arms[chosen["best_topology"]]
    row = next((v for v in summary["verdicts"] if v["arm"] == chosen["best_topology"] and v["against"] == MEMBERS), None)
    return (f"The team ({chosen['best_topology']}) answers {percent(team['accuracy'])} of {questions}{_failed(team)}; "
            f"its best member, {chosen['best_member']}, answers {percent(member['accuracy'])}{_failed(member)}. "
            f"{_said(row) + ' ' if row else ''}Per question it cost {_cost(team)}; the best member: {_cost(member)}.")


def _said(row: Mapping[str, Any]) -> str:
    interval = f" (95 % interval {points(row['ci95'][0])} to {points(row['ci95'][1])})" if row["ci95"] else ""
    p = p_text(row["p_holm"])
    if row["says"] == "beats":
        return f"The difference of {points(row['delta'])} points{interval} is real: it beats every member ({p})."
    if row["says"] == "loses":
        return f"The difference of {points(row['delta'])} points{interval} is real: the team is worse than its best member ({p})."
    could = "so few questions could have shown nothing" if row["mde"] is None else f"this many questions could have shown {points(row['mde'])} points"
    other = " against every member" if row["delta"] > 0 and row["ci95"] and row["ci95"][0] > 0 else ""
    return f"The difference of {points(row['delta'])} points{interval} is not shown{other} ({p}; {could})."


def _cost(arm: Mapping[str, Any]) -> str:
    return (f"{arm['wire_bytes']:,.0f} bytes on the wire, {quantity(arm['latency_s']['p50'], 's')} at the median "
            f"and {quantity(arm['energy_j'], 'J')}")


def _failed(arm: Mapping[str, Any]) -> str:
    notes = [f"{arm['n_failed']:,} failed and count as wrong"] if arm.get("n_failed") else []
    notes += [f"{arm['n_over_budget']:,} stopped by the budget"] if arm.get("n_over_budget") else []
    return f" ({', '.join(notes)})" if notes else ""


def percent(share: float) -> str:
    """0.8132 -> "81.3 %"."""
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of shares in points: 0.173 -> "17.3", -0.04 -> "-4.0"."""
    return f"{100 * share + 0.0:.1f}".replace("-0.0", "0.0")


def p_text(p: float) -> str:
    """As journals print it; the digits end where they stop mattering."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def quantity(value: float | None, unit: str = "") -> str:
    """Three significant digits and a metric prefix: (0.0453, "s") -> "45.3 ms", (1.2e9, "FLOP") -> "1.2 GFLOP", None -> "-"."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return f"0 {unit}".rstrip()
    small, prefixes = (-9, "nµm kMGTPE") if unit in ("s", "J", "W") else (0, " kMGTPE")  # there are no thousandths of a byte or a token
    steps = min(max((math.floor(math.log10(abs(value)) + 1e-12) // 3) * 3, small), small + 3 * (len(prefixes) - 1))
    if float(f"{abs(value) / 10.0 ** steps:.3g}") >= 1000 and steps < small + 3 * (len(prefixes) - 1):
        steps += 3
    digits = f"{value / 10.0 ** steps:.3g}"
    return f"{float(digits):g} {prefixes[(steps - small) // 3].strip()}{unit}".rstrip()
