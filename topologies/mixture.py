"""Layers of proposers, each hearing the whole layer before; an aggregator hears the last one and answers (arXiv:2406.04692).

    a b c  ->  a b c  ->  aggregator -> home, where with `vote` it has one voice, though a strong one, beside the drafts that it heard
"""

from typing import Self

from pydantic import NonNegativeFloat, PositiveInt

from aiflow_agents.net.together import gather
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, Trial
from aiflow_agents.topology.decisions import weighted
from aiflow_agents.wire.message import Message

TRUST = None, 0.5, 1.0, 2.0, 4.0


class Mixture(Topology):
    """`layers` of proposers before the aggregator, who is the member with role `aggregator`, or else `server`, or else the last.

    `trust`: how many voices the aggregator has when all vote, chosen on dev; None believes it alone, and may be chosen too.
    """

    layers: PositiveInt = 1
    aggregator: str | None = None
    vote: bool = False
    trust: NonNegativeFloat | None = None
    needs = Needs(members=2)

    def check(self, team: Team) -> None:
        super().check(team)
        if self.aggregator:
            team[self.aggregator]  # raises UnknownName

    def fit(self, trial: Trial) -> Self:
        if not self.vote:
            return self
        return max((self.model_copy(update={"trust": trust}) for trust in TRUST), key=lambda one: trial.accuracy(one)[0])

    async def run(self, task: Task, team: Team) -> Message:
        last = team[self.aggregator] if self.aggregator else team.role("aggregator") or team.role("server") or list(team)[-1]
        drafts: list[Message] = []
        for _ in range(self.layers):
            heard = drafts
            drafts = await gather(agent.ask(task.question, heard=heard) for agent in team)
        said = await last.ask(task.question, heard=drafts)
        if self.trust is None:
            return said
        return await weighted([*drafts, said], at=team.home, voices={said.id: self.trust})
