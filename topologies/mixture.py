"""Layers of proposers, each hearing the whole layer before; an aggregator hears the last one and answers (arXiv:2406.04692).

    a b c  ->  a b c  ->  aggregator -> home
"""

from pydantic import PositiveInt

from aiflow_agents.net.together import gather
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology
from aiflow_agents.wire.message import Message


class Mixture(Topology):
    """`layers` of proposers before the aggregator, who is the member with role `aggregator`, or else `server`, or else the last."""

    layers: PositiveInt = 1
    aggregator: str | None = None
    needs = Needs(members=2)

    def check(self, team: Team) -> None:
        super().check(team)
        if self.aggregator:
            team[self.aggregator]  # raises UnknownName

    async def run(self, task: Task, team: Team) -> Message:
        last = team[self.aggregator] if self.aggregator else team.role("aggregator") or team.role("server") or list(team)[-1]
        drafts: list[Message] = []
        for _ in range(self.layers):
            heard = drafts
            drafts = await gather(agent.ask(task.question, heard=heard) for agent in team)
        return await last.ask(task.question, heard=drafts)
