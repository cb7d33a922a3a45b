"""Everyone answers once; votes count by how sure the voter is, calibrated on the dev split.

    a 0.9, b 0.4, c 0.3 -> the answer least likely to have only mistaken supporters
"""

from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology
from aiflow_agents.topology.decisions import Decision, weighted
from aiflow_agents.wire.message import Message


class Weighted(Topology):
    """`decide`: weighted, or most-confident, which believes the surest member alone."""

    decide: Decision = weighted
    needs = Needs(members=2, capabilities=frozenset({"logprobs"}))

    async def run(self, task: Task, team: Team) -> Message:
        return await self.decide(await team.ask(task.question, partial=True), at=team.home)
