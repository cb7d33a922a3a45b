"""One member answers, and the user reads each token as it comes home.

    home --question--> member: token, token, token, end
      ^------------------'------'------'-----'   each a frame of its own
"""

from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.wire.message import Message

TIERS = ("device", "edge", "cloud")


class Stream(Topology):
    """`member`: who answers, which may be a tier (device, edge, cloud): the deepest exit there. By default that of the highest tier there is."""

    member: str | None = None
    decodes = "exact"

    def check(self, team: Team) -> None:
        super().check(team)
        self._speaker(team)  # raises UnknownName

    async def run(self, task: Task, team: Team) -> Message:
        return await self._speaker(team).ask(task.question, stream=True)

    def _speaker(self, team: Team) -> Agent:
        tiers = {agent.name: team.network.node(agent.node).tier for agent in team}
        wanted = self.member if self.member in tiers.values() else max(tiers.values(), key=TIERS.index)
        if self.member is not None and self.member not in tiers.values():
            return team[self.member]
        return [agent for agent in team.by_depth() if tiers[agent.name] == wanted][-1]
