"""Everyone answers once; the answer most of them gave wins. Nobody hears anybody.

    a, b, c -> vote at home
"""

from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology
from aiflow_agents.topology.decisions import majority
from aiflow_agents.wire.message import Message


class Majority(Topology):
    needs = Needs(members=2)

    async def run(self, task: Task, team: Team) -> Message:
        return await majority(await team.ask(task.question, partial=True), at=team.home)
