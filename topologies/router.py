"""Send each question to the one member likeliest to know, judged by its form alone; what that is, was learned on the dev split.

    home -- 37*8= --> the one for numbers --> home
"""

from typing import Any, Self

import numpy as np

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, Trial
from aiflow_agents.topology.selector import BUCKETS, Weights, fit, predict
from aiflow_agents.wire.message import Message


class Router(Topology):
    """`weights` come from `fit`: [patterns + 1, members], in the order of `members`."""

    members: tuple[str, ...] = ()
    weights: Weights | None = None
    needs = Needs(members=2)

    def check(self, team: Team) -> None:
        super().check(team)
        team.only(*self.members)  # raises UnknownName
        if self.weights is not None and self.weights.shape != (BUCKETS + 1, len(self.members)):
            raise UnmetNeed("topology 'router' needs weights for its members, as they are fitted on a dev split")

    def fit(self, trial: Trial) -> Self:
        members = tuple(trial.correct)
        correct = np.array([trial.correct[name] for name in members], dtype=float).T
        return self.model_copy(update={"members": members, "weights": fit(trial.questions, correct)})

    def learned(self) -> dict[str, Any]:
        return {"members": list(self.members), "weights": None if self.weights is None else list(np.shape(self.weights))}

    async def run(self, task: Task, team: Team) -> Message:
        if self.weights is None:
            raise UnmetNeed("topology 'router' must be fitted on a dev split first: use `aiflow eval`")
        chosen = self.members[int(np.argmax(predict(self.weights, task.question)))]
        return await team[chosen].ask(task.question)
