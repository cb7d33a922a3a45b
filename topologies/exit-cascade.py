"""A family answers at its first exit that is sure; the next one goes on from the hidden states of the one before instead of starting again.

    device, exit 1 --unsure: its hidden states--> edge, exit 3 --unsure: its own--> cloud, exit 7
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

from aiflow_agents.errors import OverBudget, UnmetNeed
from aiflow_agents.models.protocol import Want
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, Trial
from aiflow_agents.topology.thresholds import cheapest
from aiflow_agents.wire.message import Message, standing_at


class ExitCascade(Topology):
    """`thresholds`: how sure (calibrated) each exit but the last must be. None: the fewest FLOPs that keep `keep` of the last's accuracy on dev.
    `agreeing`: the same where it says what the exit before it said, which comes along with hidden states.
    `send`: hidden states, coded by `codec` (None: what the family ships for them, or float16), or the question's text, as any cascade would. `lower`
    sends keys and values of the lower layers along; else the tokens go with the states, and a receiver that differs from the draft reads them again.
    `otherwise`: where two members turn out to have different weights, the question goes as text, or such a team is refused.
    """

    thresholds: tuple[float, ...] | None = None
    agreeing: tuple[float, ...] | None = None
    keep: Annotated[float, Field(ge=0, le=1)] = 0.99
    send: Literal["hidden", "text"] = "hidden"
    codec: str | None = None
    lower: bool = False
    otherwise: Literal["text", "refuse"] = "refuse"
    decodes, needs = "bounded", Needs(members=2, capabilities=frozenset({"logprobs", "resume"}))

    def check(self, team: Team) -> None:
        super().check(team)
        weights, exits = {agent.info.weights_hash for agent in team}, {(agent.info.weights_hash, agent.exit) for agent in team}
        if len(exits) < len(team) or len(weights) > 1 and self.otherwise == "refuse":
            raise UnmetNeed(f"topology 'exit-cascade' needs different exits of one family (`exit:` in the team file); team '{team.name}' has others")

    def fit(self, trial: Trial) -> Self:
        """From what each exit says alone; where a lossy codec then keeps less, ask for more, up to a point."""
        if self.thresholds is not None:
            return self
        exits = trial.team.by_depth()
        marks = np.array([trial.marks[agent.name] for agent in exits])  # [exits, questions]
        sure = np.array([[p or 0.0 for p in trial.confidence[agent.name]] for agent in exits[:-1]])
        flops, agrees = np.array([trial.flops[agent.name] for agent in exits]), np.zeros(sure.shape, bool)
        if self.send == "hidden":
            flops[1:] *= [1 - (a.exit or 0) / b.info.shape.layers for a, b in pairwise(exits)]  # the layers below were run before
            said = np.array([trial.answers[agent.name] for agent in exits[:-1]], dtype=object)
            agrees[1:] = said[1:] == said[:-1]
        for more in (0.0, 0.0025, 0.005, 0.0075, 0.01):
            both = cheapest(marks, sure, flops, min(self.keep + more, 1.0), agrees)
            fitted = self.model_copy(update={"thresholds": both[0], "agreeing": both[1]})
            if self.send == "text" or trial.accuracy(fitted)[0] >= self.keep * marks[-1].mean():
                break
        return fitted

    async def run(self, task: Task, team: Team) -> Message:
        exits, said = team.by_depth(), None
        for i, agent in enumerate(exits):
            keeps = self.send == "hidden" and agent is not exits[-1] and agent.exit is not None
            want = Want(agent.exit or 0, self.codec or agent.codec(agent.exit or 0), self.lower) if keeps else None
            before = said.as_("hidden") if said is not None and self.send == "hidden" else None
            try:
                said = await agent.ask(task.question, want=want, resume=before, otherwise=self.otherwise)
            except OverBudget:  # the next exit cannot be paid for
                if said is None:
                    raise
                break
            here = await before.to(agent.node) if before else None  # where it was brought already
            with standing_at(agent.node):  # the one who answered decides, where it is
                thresholds = (self.agreeing if here and here.answer == said.answer else None) or self.thresholds or (0.8,) * len(exits)
                if agent is exits[-1] or (said.confidence or 0.0) >= thresholds[i]:
                    break
        return said
