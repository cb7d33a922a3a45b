"""Worlds whose questions come in clusters, as several about one scene do, and the judge in them: see `judge` for the others.

All that makes an answer right or wrong is shared, with probability `ALIKE`, by the questions of a cluster: who of the members is right, whether the
topologies are in luck, and each arm's own luck. So what an arm wins of one question of a cluster it tends to win of the others too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from aiflow_agents.bench.worlds import World
from aiflow_agents.evals import clusters, statistics, verdict
from aiflow_agents.evals.trial import chosen

ALIKE = 0.7
SIZE = 7  # questions of a cluster
TOGETHER = 1_000_000  # answers drawn at once
WRITTEN_OUT = 5  # runs that `verdict.judge` itself gets


class Answers(NamedTuple):
    """Right or wrong, of runs: members [runs, members, clusters, SIZE], topologies [runs, topologies, clusters, SIZE]."""

    members: np.ndarray
    topologies: np.ndarray


def worlds() -> list[World]:
    """As `judge.worlds`, of fewer kinds: what fools a judge that takes these questions for independent ones shows in each."""
    shapes = (("level", 0.0, 0.0), ("far", 0.2, 0.0), ("one works", 0.2, 0.1))
    return [World(f"{name}, clustered", tasks, d, (0.6, 0.6 - gap), (gain, 0.0, 0.0), rivals=0, dev=196)
            for tasks in (350, 1050) for d in (0.2, 0.4) for name, gap, gain in shapes]  # fmt: skip


def draw(world: World, tasks: int, runs: int, rng: np.random.Generator) -> Answers:
    """So many runs. Each single answer is as likely right as `world` says."""
    shape = (runs, tasks // SIZE, SIZE)

    def uniform(*arms: int) -> np.ndarray:
        """Numbers in [0, 1), shared within a cluster or not: [runs, *arms, clusters, SIZE]."""
        size = (runs, *arms, *shape[1:])
        return np.where(rng.random(size) < ALIKE, rng.random((*size[:-1], 1)), rng.random(size))

    of_class = np.searchsorted(np.cumsum(world.shares)[:-1], uniform(), side="right")
    members = np.moveaxis(world.patterns[of_class], -1, 1).astype(bool)
    chance = np.moveaxis(world.right.T[of_class], -1, 1)
    return Answers(members, uniform(len(world.gains)) < chance)


def try_clustered(world: World, runs: int, seed: int) -> dict[str, Any]:
    """What `judge.try_world` returns, with all p-values and intervals by clusters; they are the judge's own functions, on whole arrays of runs."""
    rng = np.random.default_rng([seed, runs, world.tasks, *(round(1000 * (1 + one)) for one in (*world.members, world.discordance, *world.gains))])
    step, parts = max(1, TOGETHER // (world.tasks * (len(world.members) + len(world.gains)))), []
    for start in range(0, runs, step):
        parts.append(_judged(world, min(step, runs - start), rng, WRITTEN_OUT if start == 0 else 0))
    rates = {name: float(np.concatenate([part[name] for part in parts]).mean()) for name in ("false_beats", "false_loses", "difference", "accuracy")}
    return {
        "world": world.name, "tasks": world.tasks, "discordance": world.discordance, "topologies": len(world.gains), "runs": runs,
        "false_beats": rates["false_beats"], "false_beats_rival": 0.0, "false_loses": rates["false_loses"],
        "covered": {"clustered difference": rates["difference"], "clustered accuracy": rates["accuracy"]},
        "written_out": WRITTEN_OUT, "same": all(part["same"].all() for part in parts),
    }  # fmt: skip


def _judged(world: World, runs: int, rng: np.random.Generator, compared: int) -> dict[str, np.ndarray]:
    """For each run: whether a topology was wrongly said to beat or to lose, and whether the intervals of the chosen one hold the truth."""
    dev, test = draw(world, world.dev, runs, rng), draw(world, world.tasks, runs, rng)
    every, sizes = np.arange(runs), np.full(world.tasks // SIZE, SIZE)
    member, team = (chosen(arms.mean(axis=(2, 3)), np.arange(arms.shape[1])) for arms in dev)
    theirs, ours = (arms.sum(axis=3) for arms in test)
    sums = ours[:, :, None] - theirs[:, None]  # [runs, topologies, members, clusters]
    gain = sums.sum(axis=3) / world.tasks
    p_holm = statistics.holm(verdict.against_members(clusters.flips(sums), gain, member))
    says = verdict.outcome(gain[every[:, None], np.arange(len(world.gains)), member[:, None]], p_holm)
    low, high = clusters.interval(sums[every, team, member], sizes)
    own = clusters.share(ours[every, team], sizes)
    best = np.array(world.members)[member]
    truth = world.accuracies[team]
    same = []
    for run in range(min(compared, runs)):
        scores = {f"member-{m}": row.ravel().astype(float) for m, row in enumerate(test.members[run])}
        scores |= {f"topology-{t}": row.ravel().astype(float) for t, row in enumerate(test.topologies[run])}
        rows = verdict.judge(scores, {arm: arm.split("-")[0] for arm in scores}, best_member=f"member-{member[run]}", best_topology=None, oracle=None,
                             cluster=np.repeat(np.arange(len(sizes)), SIZE))  # fmt: skip
        same.append(all(row.says == verdict.SAYS[int(says[run, t])] and abs(row.p_holm - p_holm[run, t]) < 1e-12 for t, row in enumerate(rows))
                    and np.allclose(rows[team[run]].ci95, (low[run], high[run]), rtol=0, atol=1e-12))  # fmt: skip
    return {
        "false_beats": ((says == 1) & ~world.better).any(axis=1),
        "false_loses": ((says == -1) & (world.accuracies >= best[:, None] - 1e-12)).any(axis=1),
        "difference": (low <= truth - best) & (truth - best <= high),
        "accuracy": (own[0] <= truth) & (truth <= own[1]),
        "same": np.array(same, bool),
    }
