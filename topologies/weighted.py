"""Everyone answers once; votes count by how sure the voter is, calibrated on the dev split.

    a 0.9, b 0.4, c 0.3 -> the answer least likely to have only mistaken supporters
"""

from pydantic import PositiveInt

from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology
from aiflow_agents.topology.decisions import Decision, arrived, weighted
from aiflow_agents.wire.message import Message


class Weighted(Topology):
    """`decide`: weighted, or most-confident, which believes the surest member alone. With a `quorum` who fails is absent, if so many answer."""

    decide: Decision = weighted
    quorum: PositiveInt | None = None
    needs = Needs(members=2, capabilities=frozenset({"logprobs"}))

    async def run(self, task: Task, team: Team) -> Message:
        drafts = await team.ask(task.question, partial=True, quorum=self.quorum)
        return await self.decide(await arrived(drafts, team.home, self.quorum), at=team.home)
