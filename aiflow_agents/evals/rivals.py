"""What a team must beat to have earned its cost: the same compute without the talking."""

from __future__ import annotations

from math import ceil
from random import Random

from aiflow_agents.runtime.scene import stable_hash
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology, Trial
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.message import Message

MOST_SAMPLES = 64  # self-consistency stops improving long before
RIVALS = ("self-consistency@flops", "self-consistency@tokens", "self-talk", "random", "vote", "vote@weighted", "vote@most-confident", "oracle")


class SelfTalk(Topology):
    """The best member answers, hears itself, and answers again."""

    member: str
    rounds: int = 1

    async def run(self, task: Task, team: Team) -> Message:
        agent = team[self.member]
        draft = await agent.ask(task.question)
        for _ in range(self.rounds):
            draft = await agent.ask(task.question, heard=[draft])
        return draft


class RandomPick(Topology):
    """Some member answers; which one depends on the task alone."""

    seed: int = 0

    async def run(self, task: Task, team: Team) -> Message:
        return await Random(stable_hash(self.seed, task.id)).choice(list(team)).ask(task.question)


def self_consistency(trial: Trial, budget: float, cost: int) -> Topology:
    """Self-consistency of the best member at `budget` or just above it on dev, and at the temperature that is best on dev.

    `cost` says what is counted: index 1 for FLOPs, 2 for tokens in what `trial.accuracy` and `trial.tokens` measure. Where one greedy answer is
    better on dev, that is the rival, or it would be a straw man.
    """
    measure = trial.accuracy if cost == 1 else trial.tokens  # type: ignore[attr-defined]
    best = trial.best_member
    one, two = (measure(load_topology("self-consistency", {"member": best, "samples": n, "temperature": 0.7}))[1] for n in (1, 2))
    samples = 1 + max(0, ceil((budget - one) / max(two - one, 1e-9)))
    greedy = load_topology("single", {"member": best})
    sampled = load_topology("self-consistency", {"member": best, "samples": min(samples, MOST_SAMPLES)}).fit(trial)
    while measure(sampled)[1] < budget and samples < MOST_SAMPLES:  # later samples, or other temperatures, may be shorter than those two were
        samples += 1
        sampled = sampled.model_copy(update={"samples": samples})
    return max((greedy, sampled), key=lambda topology: trial.accuracy(topology)[0])


def rivals(trial: Trial, best_topology: Topology, seed: int) -> dict[str, Topology]:
    """All rivals of a topology, by arm name. The oracle is not among them: it is worked out from the members' answers."""
    best = trial.best_member
    arms = {
        "self-consistency@flops": self_consistency(trial, trial.accuracy(best_topology)[1], 1),
        "self-consistency@tokens": self_consistency(trial, trial.tokens(best_topology)[1], 2),  # type: ignore[attr-defined]
        "self-talk": SelfTalk(member=best),
        "random": RandomPick(seed=seed),
    }
    if len(trial.team) > 1:
        votes = {"vote": ("majority", {}), "vote@weighted": ("weighted", {}), "vote@most-confident": ("weighted", {"decide": "most-confident"})}
        for arm, (name, parameters) in votes.items():
            vote = load_topology(name, parameters)
            same = (vote.name(), vote.learned()) == (best_topology.name(), best_topology.learned())
            if vote.needs.missing(trial.team) is None and not same:
                arms[arm] = vote
    return arms
