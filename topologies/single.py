"""One member answers, the others are not asked.

    home -> member -> home
"""

from typing import Self

from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology, Trial
from aiflow_agents.wire.message import Message


class Single(Topology):
    """`member`: who answers; by default the best one on the dev split, or the first."""

    member: str | None = None

    def fit(self, trial: Trial) -> Self:
        return self if self.member else self.model_copy(update={"member": trial.best_member})

    def check(self, team: Team) -> None:
        super().check(team)
        if self.member:
            team[self.member]  # raises UnknownName

    async def run(self, task: Task, team: Team) -> Message:
        agent = team[self.member] if self.member else next(iter(team))
        return await agent.ask(task.question)
