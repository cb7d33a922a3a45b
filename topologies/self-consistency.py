"""One member answers several times, sampled; the most frequent answer wins (Wang et al., arXiv:2203.11171).

    home -> member -> a, b, a -> majority at the member -> home
"""

from typing import Self

from pydantic import NonNegativeFloat, PositiveInt

from aiflow_agents.models.protocol import Sampling
from aiflow_agents.net.together import within_budget
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology, Trial
from aiflow_agents.topology.decisions import Decision, majority
from aiflow_agents.wire.message import Message


class SelfConsistency(Topology):
    """`temperature` None means: the best of 0.3, 0.5, 0.7 and 1.0 on the dev split."""

    member: str | None = None
    samples: PositiveInt = 5
    temperature: NonNegativeFloat | None = None
    decide: Decision = majority

    def fit(self, trial: Trial) -> Self:
        fitted = self.model_copy(update={"member": self.member or trial.best_member})
        if self.temperature is None:
            candidates = [fitted.model_copy(update={"temperature": t}) for t in (0.3, 0.5, 0.7, 1.0)]
            fitted = max(candidates, key=lambda candidate: trial.accuracy(candidate)[0])
        return fitted

    def check(self, team: Team) -> None:
        super().check(team)
        if self.member:
            team[self.member]  # raises UnknownName

    async def run(self, task: Task, team: Team) -> Message:
        agent = team[self.member] if self.member else next(iter(team))
        sampling = Sampling(0.7 if self.temperature is None else self.temperature)
        drafts = await within_budget(agent.ask(task.question, sampling=sampling, sample=i) for i in range(self.samples))
        return await self.decide(drafts, at=agent.node)
