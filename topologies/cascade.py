"""Ask the cheapest member; while it is not sure enough, ask the next dearer one too. The surest answer wins.

    device --unsure--> device --unsure--> edge --unsure--> cloud
"""

from typing import Self

from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, Trial
from aiflow_agents.topology.decisions import most_confident
from aiflow_agents.wire.message import Message


class Cascade(Topology):
    """`threshold`: how sure (calibrated) is sure enough; None means the most accurate one on the dev split, of equals the cheapest."""

    threshold: float | None = None
    order: tuple[str, ...] = ()
    needs = Needs(members=2, capabilities=frozenset({"logprobs"}))

    def fit(self, trial: Trial) -> Self:
        order = self.order or tuple(sorted(trial.flops, key=trial.flops.__getitem__))
        fitted = self.model_copy(update={"order": order})
        if self.threshold is not None:
            return fitted
        candidates = [fitted.model_copy(update={"threshold": t / 20}) for t in range(4, 20)]
        results = [trial.accuracy(candidate) for candidate in candidates]
        best = max(range(len(results)), key=lambda i: (results[i][0], -results[i][1]))
        return candidates[best]

    def check(self, team: Team) -> None:
        super().check(team)
        team.only(*self.order)  # raises UnknownName

    async def run(self, task: Task, team: Team) -> Message:
        threshold = 0.8 if self.threshold is None else self.threshold
        drafts: list[Message] = []
        for name in self.order or tuple(team.agents):
            drafts.append(await (await team[name].ask(task.question)).to(team.home))
            if (drafts[-1].confidence or 0.0) >= threshold:
                return drafts[-1]
        return await most_confident(drafts, at=team.home)
