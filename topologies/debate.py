"""Everyone answers; then, `rounds` times, everyone hears the others and answers again (Du et al., arXiv:2305.14325), or rates what they said.

    a <--> b
     \\    /
      \\  /      decide at home
       c
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Literal, TypeVar

from pydantic import NonNegativeInt, PositiveInt

from aiflow_agents.errors import OverBudget, UnmetNeed
from aiflow_agents.net.together import quorate
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, another, heard_by
from aiflow_agents.topology.decisions import Decision, arrived, weighted
from aiflow_agents.topology.graphs import hears
from aiflow_agents.wire.message import Message

T = TypeVar("T")


class Debate(Topology):
    """`graph` says who hears whom: complete, ring, path, star, or edges such as `ash-elm,elm>fir`.

    `reply`: with `ratings` nobody answers again. Everyone says instead how likely it holds each answer that it heard, which ends the debate; `pooled`
    is the decision made for that. As a `placebo` they say how likely it is as the answer to another question. With a `quorum` who fails is absent.
    """

    rounds: NonNegativeInt = 1
    graph: str = "complete"
    reply: Literal["answers", "ratings"] = "answers"
    decide: Decision = weighted
    quorum: PositiveInt | None = None
    placebo: Literal["", "other"] = ""
    others: tuple[str, ...] = ()
    needs = Needs(members=2)

    def check(self, team: Team) -> None:
        super().check(team)
        hears(self.graph, list(team.agents))
        if self.reply == "ratings" and (mute := [agent.name for agent in team if "score" not in agent.info.capabilities]):
            raise UnmetNeed(f"topology 'debate' with ratings needs members who can say how likely an answer is; {mute[0]} cannot")
        if self.placebo and self.reply != "ratings":
            raise UnmetNeed("topology 'debate': the placebo is one of ratings; give it reply=ratings")

    async def run(self, task: Task, team: Team) -> Message:
        audience = hears(self.graph, list(team.agents))
        drafts = {said.author: said for said in await team.ask(task.question, partial=True, quorum=self.quorum)}
        question = another(task.question, self.others) if self.placebo else task.question  # of ratings
        ratings: list[list[Message]] = []
        for _ in range(self.rounds):
            heard = {name: [drafts[other] for other in audience[name] if other in drafts] for name in team.agents}
            try:
                if self.reply == "ratings":
                    known = {name: [*said, *filter(None, [drafts.get(name)])] for name, said in heard.items()}
                    ratings = await self._each(team, known, lambda agent, those: agent.rate(question, those))
                    break
                replies = await self._each(team, heard, lambda agent, those: agent.ask(task.question, heard=those))
            except OverBudget:  # a round that not all can pay for decides nothing
                break
            drafts = {said.author: said for said in replies}
        said = await arrived([*drafts.values(), *chain.from_iterable(ratings)], team.home, self.quorum)
        return await self.decide(said, at=team.home)

    async def _each(self, team: Team, heard: Mapping[str, Sequence[Message]], ask: Callable[[Agent, Sequence[Message]], Awaitable[T]]) -> list[T]:
        """What everybody says of what it has heard; with a quorum, of what can still be heard."""

        def one(agent: Agent) -> Awaitable[T]:
            those = heard[agent.name]
            return ask(agent, those) if self.quorum is None else heard_by(agent.name, those, lambda left: ask(agent, left))

        return await quorate((one(agent) for agent in team), self.quorum)
