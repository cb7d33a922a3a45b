"""One member only encodes, another one answers from its hidden states: the question's text never leaves the first one's node.

    device: layers 0..k --hidden states, keys and values of the layers below--> edge: layers k.. and the answer --> home
"""

from typing import Literal
from zlib import crc32

from pydantic import NonNegativeInt

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import Want
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology
from aiflow_agents.wire.message import Message


class FeatureRelay(Topology):
    """`encoder` (default: the first member) runs the layers below `layer` (default: its exit), `answerer` (default: the last member) the rest.

    `codec`: of the states; None: what the family ships for states that travel without their token ids, or float16.
    `placebo`: zeros, or noise of the same norm, in place of what was encoded; `other`: what was encoded of another question, one of the dev split.
    """

    encoder: str | None = None
    answerer: str | None = None
    layer: NonNegativeInt | None = None
    codec: str | None = None
    placebo: Literal["", "zeros", "noise", "other"] = ""
    others: tuple[str, ...] = ()
    decodes = "lossy"
    needs = Needs(members=2, capabilities=frozenset({"resume"}), one_family=True)

    def check(self, team: Team) -> None:
        super().check(team)
        for name in (self.encoder, self.answerer):
            if name:
                team[name]  # raises UnknownName

    async def run(self, task: Task, team: Team) -> Message:
        first = team[self.encoder] if self.encoder else next(iter(team))
        last = team[self.answerer] if self.answerer else list(team)[-1]
        layer = self.layer if self.layer is not None else first.exit or 0
        want = Want(layer, self.codec or first.codec(layer, tokens=False), lower=True, placebo="" if self.placebo == "other" else self.placebo)
        question = task.question
        if self.placebo == "other":
            if not self.others:
                raise UnmetNeed("topology 'feature-relay' with placebo=other takes its other questions from a dev split: use `aiflow eval`")
            question = self.others[crc32(question.encode()) % len(self.others)]
        encoded = await first.ask(question, want=want, max_tokens=0)
        return await last.ask(task.question, resume=encoded.as_("hidden"))
