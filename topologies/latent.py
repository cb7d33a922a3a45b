"""One member thinks without words, another of its family speaks: its last hidden state is its next input (LatentMAS, arXiv:2511.20639).

    thinker: question . . . .  --hidden states, keys and values of question and thoughts--> speaker: the answer --> home

A model must be trained for such inputs to make anything of them.
"""

from typing import Literal

from pydantic import NonNegativeInt

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import Want
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, another
from aiflow_agents.wire.message import Message


class Latent(Topology):
    """`thinker` (default: the first member) takes `steps` latent steps behind the question and sends the inputs of `layer` (default: its exit), with
    keys and values of the layers below; `speaker` (default: the last member) goes on from there. 0 steps are a feature-relay.

    `placebo`: zeros, or noise of the same norm, in place of all that is sent; `other`: what was thought of another question, one of the dev split.
    """

    thinker: str | None = None
    speaker: str | None = None
    steps: NonNegativeInt = 4
    layer: NonNegativeInt | None = None
    codec: str = "float16"
    placebo: Literal["", "zeros", "noise", "other"] = ""
    others: tuple[str, ...] = ()
    needs = Needs(members=2, capabilities=frozenset({"resume"}), one_family=True)

    def check(self, team: Team) -> None:
        super().check(team)
        for name in (self.thinker, self.speaker):
            if name:
                team[name]  # raises UnknownName
        for agent in self.both(team):
            if agent.exit is not None and self.depth(team) > agent.exit:
                raise UnmetNeed(f"topology 'latent' sends inputs of layer {self.depth(team)}, which exit {agent.exit} of {agent.name} does not reach")

    def both(self, team: Team) -> tuple[Agent, Agent]:
        return team[self.thinker] if self.thinker else next(iter(team)), team[self.speaker] if self.speaker else list(team)[-1]

    def depth(self, team: Team) -> int:
        return self.layer if self.layer is not None else self.both(team)[0].exit or 0

    async def run(self, task: Task, team: Team) -> Message:
        thinker, speaker = self.both(team)
        placebo = "" if self.placebo == "other" else self.placebo
        question = another(task.question, self.others) if self.placebo == "other" else task.question
        want = Want(self.depth(team), self.codec, lower=True, placebo=placebo, steps=self.steps)
        thought = await thinker.ask(question, want=want, max_tokens=0)
        return await speaker.ask(task.question, resume=thought.as_("hidden"))
