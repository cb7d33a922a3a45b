"""What a team must beat to have earned its cost: the same compute without the talking.

One rival is not made here: `monolith`, a single model of the team's parameters, trained on the team's tokens. It is a folder that the user gives.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from random import Random

from pydantic import NonNegativeFloat, PositiveInt

from aiflow_agents.models.protocol import Sampling
from aiflow_agents.net.together import quorate
from aiflow_agents.runtime.scene import stable_hash
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology, Trial
from aiflow_agents.topology.decisions import Decision, arrived, majority, weighted
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.message import Message

MOST_SAMPLES = 64  # of one member; self-consistency stops improving long before
TEMPERATURES = (0.3, 0.5, 0.7, 1.0)  # those that self-consistency tries
RIVALS = (
    *("self-consistency@flops", "self-consistency@tokens", "self-talk", "random"),
    *("vote", "vote@weighted", "vote@most-confident", "vote@flops", "monolith", "oracle"),
)


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


class SampledVote(Topology):
    """Every member answers `samples` times, and nobody hears anybody; all answers are one vote at home.

    Weighted, an answer has the evidence of each of its samples: members count by how sure they are and how often they say it. With a `quorum` who
    fails is absent, as long as so many members' samples are there.
    """

    samples: PositiveInt
    temperature: NonNegativeFloat
    decide: Decision = majority
    quorum: PositiveInt | None = None

    async def run(self, task: Task, team: Team) -> Message:
        sampling = Sampling(self.temperature)
        quorum = None if self.quorum is None else self.quorum * self.samples
        drafts = await quorate((agent.ask(task.question, sampling=sampling, sample=i) for agent in team for i in range(self.samples)), quorum)
        return await self.decide(await arrived(drafts, team.home, quorum), at=team.home)


def self_consistency(trial: Trial, budget: float, cost: int) -> Topology:
    """Self-consistency of the best member at `budget` or just above it on dev, and at the temperature that is best on dev.

    `cost` says what is counted: index 1 for FLOPs, 2 for tokens in what `trial.accuracy` and `trial.tokens` measure. Where one greedy answer is
    better on dev, that is the rival, or it would be a straw man.
    """
    measure = trial.accuracy if cost == 1 else trial.tokens  # type: ignore[attr-defined]
    best = trial.best_member

    def costs(samples: int) -> float:
        return measure(load_topology("self-consistency", {"member": best, "samples": samples, "temperature": 0.7}))[1]

    greedy, samples = load_topology("single", {"member": best}), _first_guess(costs, budget)
    sampled = load_topology("self-consistency", {"member": best, "samples": samples}).fit(trial)
    sampled = _up_to(sampled, samples, lambda topology: measure(topology)[1], budget)
    return max((greedy, sampled), key=lambda topology: trial.accuracy(topology)[0])


def members_vote(trial: Trial, topology: Topology) -> Topology:
    """The vote of the same members at the FLOPs of `topology`, or just above, on dev: what talking must beat to be worth more than asking again.

    Each member answers as often as that takes. By majority or weighted, greedy or sampled, and at which temperature: whatever is best on dev.
    Where a greedy answer of each already costs as much, nothing is sampled. The topology itself, where it is a vote, is no rival.
    """
    quorum = getattr(topology, "quorum", None)
    greedy = [vote for vote in (_vote("majority", quorum), _vote("weighted", quorum)) if vote.needs.missing(trial.team) is None]
    votes, budget = [vote for vote in greedy if not _same(vote, topology)], trial.accuracy(topology)[1]
    if trial.accuracy(greedy[0])[1] < budget or not votes:
        samples = _first_guess(lambda n: trial.accuracy(SampledVote(samples=n, temperature=0.7, quorum=quorum))[1], budget)
        decisions = (majority, weighted)[: len(greedy)]
        tried = [SampledVote(samples=samples, temperature=t, decide=decide, quorum=quorum) for t in TEMPERATURES for decide in decisions]
        sampled: Topology = max(tried, key=lambda vote: trial.accuracy(vote)[0])
        votes.append(_up_to(sampled, samples, lambda vote: trial.accuracy(vote)[1], budget))
    return max(votes, key=lambda vote: trial.accuracy(vote)[0])


def _vote(decide: str, quorum: int | None) -> Topology:
    """A vote without talk, with the quorum of what it is a rival of: or that would win by what it forgives alone."""
    if quorum is None:
        return load_topology("majority") if decide == "majority" else load_topology("weighted", {} if decide == "weighted" else {"decide": decide})
    return load_topology("weighted", {"quorum": quorum} | ({} if decide == "weighted" else {"decide": decide}))


def _same(one: Topology, other: Topology) -> bool:
    return (one.name(), one.learned()) == (other.name(), other.learned())


def _first_guess(cost: Callable[[int], float], budget: float) -> int:
    """How many samples cost `budget`, rounded up, if each costs as much as the second: the first also reads the question."""
    one, two = cost(1), cost(2)
    return min(1 + max(0, ceil((budget - one) / max(two - one, 1e-9))), MOST_SAMPLES)


def _up_to(sampled: Topology, samples: int, cost: Callable[[Topology], float], budget: float) -> Topology:
    """With more samples, until it costs `budget`: later samples, or other temperatures, may be shorter than those of the guess were."""
    while cost(sampled) < budget and samples < MOST_SAMPLES:
        samples += 1
        sampled = sampled.model_copy(update={"samples": samples})
    return sampled


def rivals(trial: Trial, best_topology: Topology, seed: int) -> dict[str, Topology]:
    """All rivals of a topology, by arm name. The oracle is not among them: it is worked out from the members' answers."""
    best, flops = trial.best_member, trial.accuracy(best_topology)[1]
    arms: dict[str, Topology] = {
        "self-consistency@flops": self_consistency(trial, flops, 1),
        "self-consistency@tokens": self_consistency(trial, trial.tokens(best_topology)[1], 2),  # type: ignore[attr-defined]
        "self-talk": SelfTalk(member=best),
        "random": RandomPick(seed=seed),
    }
    if len(trial.team) > 1:
        for arm, decide in {"vote": "majority", "vote@weighted": "weighted", "vote@most-confident": "most-confident"}.items():
            vote = _vote(decide, getattr(best_topology, "quorum", None))
            if vote.needs.missing(trial.team) is None and not _same(vote, best_topology):
                arms[arm] = vote
        arms["vote@flops"] = members_vote(trial, best_topology)
    return arms
