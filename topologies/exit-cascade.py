"""A family answers at its first exit that is sure; the next one goes on from the hidden states of the one before instead of starting again.

    device, exit 1 --unsure: its hidden states--> edge, exit 3 --unsure: its own--> cloud, exit 7
"""

from itertools import product
from typing import Literal, Self

from pydantic import NonNegativeFloat

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import Want
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, Trial
from aiflow_agents.wire.message import Message, standing_at

GRID = (0.0, 0.4, 0.6, 0.75, 0.85, 0.93, 1.01)


class ExitCascade(Topology):
    """`thresholds`: how sure (calibrated) each exit but the last must be. None: the fewest FLOPs that on dev keep `keep` of the last's accuracy.

    `send`: hidden states, coded by `codec` (None: what the family ships for them, or float16), or the question's text, as any cascade would. `lower`
    sends keys and values of the lower layers along; else the tokens go with the states, and a receiver that differs from the draft reads them again.
    `otherwise`: what happens where two members turn out to have different weights: the question goes as text, or such a team is refused.
    """

    thresholds: tuple[float, ...] | None = None
    keep: NonNegativeFloat = 0.99
    send: Literal["hidden", "text"] = "hidden"
    codec: str | None = None
    lower: bool = False
    otherwise: Literal["text", "refuse"] = "refuse"
    needs = Needs(members=2, capabilities=frozenset({"logprobs", "resume"}))

    def check(self, team: Team) -> None:
        super().check(team)
        weights, exits = {agent.info.weights_hash for agent in team}, {(agent.info.weights_hash, agent.exit) for agent in team}
        if len(exits) < len(team) or len(weights) > 1 and self.otherwise == "refuse":
            raise UnmetNeed(f"topology 'exit-cascade' needs members that are different exits of one family (`exit:` in the team file); see {team}")

    def fit(self, trial: Trial) -> Self:
        if self.thresholds is not None:
            return self
        deeper = [self.model_copy(update={"thresholds": t}) for t in product(GRID, repeat=len(trial.team) - 1)]
        whole = trial.accuracy(self.model_copy(update={"thresholds": (1.01,) * (len(trial.team) - 1)}))[0]
        results = [(trial.accuracy(candidate), candidate) for candidate in deeper]
        enough = [(flops, -score, i) for i, ((score, flops), _) in enumerate(results) if score >= self.keep * whole]
        return results[min(enough)[2]][1]

    async def run(self, task: Task, team: Team) -> Message:
        exits = sorted(team, key=lambda agent: -1 if agent.exit is None else agent.exit)
        exits.sort(key=lambda agent: agent.exit is None)  # the whole model comes last
        said: Message | None = None
        for i, agent in enumerate(exits):
            last = i == len(exits) - 1
            want = None if last or self.send == "text" or agent.exit is None else Want(agent.exit, self.codec or agent.codec(agent.exit), self.lower)
            before = said.as_("hidden") if said is not None and self.send == "hidden" else None
            said = await agent.ask(task.question, want=want, resume=before, otherwise=self.otherwise)
            with standing_at(agent.node):  # the one who answered decides, where it is
                sure = said.confidence or 0.0
            if last or sure >= (self.thresholds or (0.8,) * len(exits))[i]:
                return said
        raise AssertionError("a team has a last member")
