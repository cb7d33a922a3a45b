"""Members answer, a server that has heard them writes guidance, each member revises its own answer (CoLM, arXiv:2511.06991).

    a   b   c        drafts up
     \\  |  /
      server         guidance down
     /  |  \\
    a'  b'  c'  ---> decide at home
"""

from aiflow_agents.errors import OverBudget
from aiflow_agents.net.together import gather, within_budget
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology
from aiflow_agents.topology.decisions import Decision, weighted
from aiflow_agents.wire.message import Message


class Star(Topology):
    decide: Decision = weighted
    needs = Needs(members=3, roles=("server",))

    async def run(self, task: Task, team: Team) -> Message:
        server = team.role("server")
        assert server is not None
        members = [agent for agent in team if agent is not server]
        drafts = await within_budget(agent.ask(task.question) for agent in members)
        try:
            guidance = await server.ask(task.question, heard=drafts)
            revised = await gather(team[draft.author].ask(task.question, heard=[draft, guidance]) for draft in drafts)
        except OverBudget:  # guidance that not all could hear decides nothing
            return await self.decide(drafts, at=team.home)
        return await self.decide([*revised, guidance], at=team.home)
