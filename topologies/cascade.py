"""Ask the cheapest member; while it is not sure enough, ask the next dearer one too. The surest answer wins.

    device --unsure--> device --unsure--> edge --unsure--> cloud
"""

from typing import Self

import numpy as np

from aiflow_agents.errors import OverBudget
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
        marks = np.array([trial.marks[name] for name in order])  # [members, questions]
        # one who failed on dev would have ended the cascade there, as one who is sure does
        sure = np.array([[1.0 if p is None else p for p in trial.confidence[name]] for name in order])

        def mark(threshold: float) -> float:
            enough = sure >= threshold
            spoke = np.where(enough.any(axis=0), enough.argmax(axis=0), sure.argmax(axis=0))  # who has the last word, by question
            return float(np.take_along_axis(marks, spoke[None], axis=0).mean())

        threshold = max((t / 20 for t in range(4, 20)), key=mark) if self.threshold is None else self.threshold
        return self.model_copy(update={"order": order, "threshold": threshold})  # of equally good ones the first asks the fewest

    def check(self, team: Team) -> None:
        super().check(team)
        team.only(*self.order)  # raises UnknownName

    async def run(self, task: Task, team: Team) -> Message:
        threshold = 0.8 if self.threshold is None else self.threshold
        drafts: list[Message] = []
        for name in self.order or tuple(team.agents):
            try:
                drafts.append(await (await team[name].ask(task.question)).to(team.home))
            except OverBudget:
                if drafts:  # the next one cannot be paid for
                    break
                raise
            if (drafts[-1].confidence or 0.0) >= threshold:
                return drafts[-1]
        return await most_confident(drafts, at=team.home)
