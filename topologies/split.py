"""One model on two nodes: the first layers on the one, the others on the other, for the prompt and then for every token.

    phone  layers 0..k-1   --states of new positions-->   cloud  layers k..n
                           <--------the next token-------
"""

from pydantic import PositiveInt

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import GREEDY, Want
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Fidelity, Needs, Topology
from aiflow_agents.wire.message import Message, standing_at


class Split(Topology):
    """`lower` runs the layers below `layer` (default: its own exit, or half), `upper` those above: two members of one family, by default its first
    and its last.
    `codec`: what of the states travels; float32 is exact, and the question itself never leaves the lower's node.
    """

    lower: str | None = None
    upper: str | None = None
    layer: PositiveInt | None = None
    codec: str = "float16"
    needs = Needs(members=2, capabilities=frozenset({"verify"}), one_family=True)

    def ends(self, team: Team) -> tuple[Agent, Agent, int]:
        """Who runs the lower layers, who the upper ones, and where they are cut."""
        exits = team.by_depth()
        lower, upper = team[self.lower] if self.lower else exits[0], team[self.upper] if self.upper else exits[-1]
        return lower, upper, self.layer or lower.exit or upper.info.shape.layers // 2

    def check(self, team: Team) -> None:
        super().check(team)
        lower, upper, layer = self.ends(team)
        most = min(lower.info.shape.layers, upper.info.shape.layers) - 1  # the last one of an exit is its own
        if lower is upper or layer > most:
            raise UnmetNeed(f"topology 'split' cuts between two members, at a layer from 1 to {most} of {lower.name} and {upper.name}; found {layer}")

    def fidelity(self, team: Team) -> Fidelity:
        return "exact" if self.codec == self.ends(team)[1].info.dtype else "lossy"

    async def run(self, task: Task, team: Team) -> Message:
        lower, upper, layer = self.ends(team)
        said = settled = states = None
        while True:
            with standing_at(lower.node):
                known = -1 if said is None else len(said.tokens) - 1  # the upper layers have the states before the last token
            made = await lower.draft(task.question, 0, after=said, want=Want(layer, self.codec, since=known), states=states, sampling=GREEDY)
            states = made.as_("states", since=0 if said is None else known + 1)
            settled = await upper.check(task.question, states, after=settled)
            with standing_at(upper.node):
                since = len(settled.tokens) - 1
            said = await settled.as_("tokens", since=since).to(lower.node)
            told = lower.read(said)
            if lower.node == team.home:
                await team.tell(told)
            with standing_at(lower.node):
                if said.ended:
                    return told
