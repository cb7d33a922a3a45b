"""Simulated worlds in which it is known who is better, for putting the judge on trial.

A world says how likely each arm is right on a task of each *class*. A class is who of the members is right, and whether the topologies are in
luck together; given the class, topologies and rivals answer independently. Whole runs are drawn as counts of tasks, class by class, so 20,000 runs
of 6,400 tasks take seconds, and any of them can be written out task by task to be judged as a real one is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

TOGETHER = 0.5  # how much topologies are right and wrong on the same tasks, beyond what the members explain
ALIKE = 0.6  # how much members are


@dataclass(frozen=True)
class World:
    """`members` are true accuracies, the first being the best. Each topology differs from the first member on a share `discordance` of the tasks
    and is better by its entry in `gains`; each of the `rivals` likewise, by nothing."""

    name: str
    tasks: int
    discordance: float
    members: tuple[float, ...]
    gains: tuple[float, ...]
    rivals: int = 2
    dev: int = 200

    @cached_property
    def patterns(self) -> np.ndarray:
        """Which members are right in each class. [classes, members] of 0 and 1."""
        return np.repeat(np.array(list(product((0, 1), repeat=len(self.members)))), 2, axis=0)

    @cached_property
    def shares(self) -> np.ndarray:
        """How many of the tasks are of each class. Members share the difficulty of a share ALIKE of the tasks. [classes]."""
        right, a = self.patterns[::2], np.array(self.members)
        alone = np.prod(np.where(right, a, 1 - a), axis=1)
        easy, hard = np.where(right, a, 1.0).min(axis=1), np.where(right, 0.0, a).max(axis=1)  # right below a member's accuracy, wrong above it
        return np.repeat(ALIKE * np.maximum(0.0, easy - hard) + (1 - ALIKE) * alone, 2) / 2

    @cached_property
    def right(self) -> np.ndarray:
        """How likely each topology is right on a task of each class. [topologies, classes]."""
        return np.array([self._right(gain) for gain in self.gains])

    @cached_property
    def rival(self) -> np.ndarray:
        return self._right(0.0)  # [classes]

    def _right(self, gain: float) -> np.ndarray:
        best, luck = self.members[0], np.tile([-1, 1], len(self.patterns) // 2)
        mends, breaks = (self.discordance + gain) / 2, (self.discordance - gain) / 2
        if not (0 <= breaks <= best and 0 <= mends <= 1 - best):
            raise ValueError(f"{self.name}: nobody can differ from a member of {best} on {self.discordance} of the tasks and gain {gain}")
        share = np.where(self.patterns[:, 0] == 1, 1 - breaks / best, mends / (1 - best))
        return share + luck * TOGETHER * np.minimum(share, 1 - share)

    @cached_property
    def accuracies(self) -> np.ndarray:
        """True accuracy of each topology."""
        return self.right @ self.shares

    @cached_property
    def better(self) -> np.ndarray:
        """Whether each topology is truly better than every member. [topologies]."""
        return self.accuracies > max(self.members) + 1e-12


@dataclass(frozen=True)
class Runs:
    """Many runs of a world on one split, as counts of tasks: `n` [runs, classes], `right` of each topology [runs, topologies, classes]."""

    world: World
    n: np.ndarray
    right: np.ndarray

    @classmethod
    def draw(cls, world: World, tasks: int, runs: int, rng: np.random.Generator) -> Runs:
        n = rng.multinomial(tasks, world.shares, size=runs)
        return cls(world, n, rng.binomial(n[:, None, :], world.right))

    @property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies: of the members [runs, members], of the topologies [runs, topologies]."""
        tasks = self.n.sum(axis=1, keepdims=True)
        return self.n @ self.world.patterns / tasks, self.right.sum(axis=2) / tasks

    @property
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Tasks that a topology won from, and lost to, each member. Each [runs, topologies, members]."""
        patterns = self.world.patterns
        return self.right @ (1 - patterns), (self.n[:, None, :] - self.right) @ patterns

    def against_rivals(self, team: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw the rivals. team: [runs], a topology in each. Tasks on which rivals are right [runs, rivals, classes] where the team is right,
        and where it is wrong."""
        right = self.right[np.arange(len(team)), team]
        shape = (len(team), self.world.rivals, self.n.shape[1])
        both = rng.binomial(np.broadcast_to(right[:, None], shape), self.world.rival)
        only = rng.binomial(np.broadcast_to((self.n - right)[:, None], shape), self.world.rival)
        return both, only

    def written_out(self, run: int, team: int, both: np.ndarray, only: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One run task by task, as `verdict.judge` takes it: arm -> scores [tasks]. `both`, `only`: of this run, [rivals, classes]."""
        world, n = self.world, self.n[run]
        columns: dict[str, list[np.ndarray]] = {}

        def put(arm: str, right: np.ndarray) -> None:
            columns.setdefault(arm, []).append(right)

        for k, size in enumerate(n):
            for i, right in enumerate(world.patterns[k]):
                put(f"member-{i}", np.full(size, right))
            ours = rng.permutation(np.arange(size) < self.right[run, team, k])
            for t in range(len(world.gains)):
                put(f"topology-{t}", ours if t == team else rng.permutation(np.arange(size) < self.right[run, t, k]))
            for r in range(world.rivals):
                theirs = np.zeros(size, dtype=bool)
                theirs[ours] = rng.permutation(np.arange(ours.sum()) < both[r, k])
                theirs[~ours] = rng.permutation(np.arange((~ours).sum()) < only[r, k])
                put(f"rival-{r}", theirs)
        return {arm: np.concatenate(parts).astype(float) for arm, parts in columns.items()}


def shown_exactly(world: World, alpha: float = 0.05) -> float:
    """How often the first topology is shown to be better than every member, by summing over every table of outcomes that a run can have.

    Written for this alone, with scipy's binomial distribution: an oracle for the judge, which shares no code with it. For one member and one
    topology, or for some twenty tasks. With two topologies there must be one member (Holm's other test depends on who was best on dev).
    """
    from scipy.special import gammaln
    from scipy.stats import binom

    outcomes: dict[tuple[int, ...], float] = {}  # for each pair of topology and member: 1 won, -1 lost, 0 neither -> probability
    for k, share in enumerate(world.shares):
        for answer in product((0, 1), repeat=len(world.gains)):
            chance = share * np.prod(np.where(answer, world.right[:, k], 1 - world.right[:, k]))
            key = tuple(int(t) - int(m) for t in answer for m in world.patterns[k])
            outcomes[key] = outcomes.get(key, 0.0) + float(chance)
    outcomes = {key: chance for key, chance in outcomes.items() if chance > 0}
    tables = _compositions(world.tasks, len(outcomes))  # [tables, outcomes]
    log_chance = gammaln(world.tasks + 1) - gammaln(tables + 1).sum(axis=1) + tables @ np.log(list(outcomes.values()))
    signs = np.array(list(outcomes))  # [outcomes, pairs]
    won, lost = tables @ (signs == 1), tables @ (signs == -1)
    less, which = np.unique(np.minimum(won, lost) * (world.tasks + 1) + won + lost, return_inverse=True)
    pvalues = np.minimum(1, 2 * binom.cdf(less // (world.tasks + 1), less % (world.tasks + 1), 0.5))[which.ravel()]
    pvalues = pvalues.reshape(len(tables), len(world.gains), -1)
    ahead = (won > lost).reshape(pvalues.shape)
    first = pvalues[:, 0].max(axis=1)  # of the intersection-union test
    adjusted = first * len(world.gains)
    if len(world.gains) == 2:  # Holm: the larger of two need not be doubled, if the smaller one passed
        other = pvalues[:, 1].max(axis=1)
        adjusted = np.where(first <= other, 2 * first, np.maximum(first, 2 * other))
    elif len(world.gains) > 2:
        raise ValueError("enumerated for one or two topologies")
    return float(np.exp(log_chance[ahead[:, 0].all(axis=1) & (adjusted <= alpha)]).sum())


def _compositions(total: int, parts: int) -> np.ndarray:
    """Every way to share `total` out over `parts`. [ways, parts]."""
    ways = np.arange(total + 1)[:, None]
    for _ in range(parts - 2):
        left = total - ways.sum(axis=1)
        rows = np.repeat(ways, left + 1, axis=0)
        new = np.arange(len(rows)) - np.repeat(np.cumsum(left + 1) - (left + 1), left + 1)
        ways = np.column_stack([rows, new])
    return np.column_stack([ways, total - ways.sum(axis=1)]) if parts > 1 else np.array([[total]])
