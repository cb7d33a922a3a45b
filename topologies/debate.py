"""Everyone answers; then, `rounds` times, everyone hears the others and answers again (Du et al., arXiv:2305.14325), or rates what they said.

    a <--> b
     \\    /
      \\  /      decide at home
       c
"""

from itertools import chain
from typing import Literal

from pydantic import NonNegativeInt

from aiflow_agents.errors import OverBudget, UnmetNeed
from aiflow_agents.net.together import gather
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, another
from aiflow_agents.topology.decisions import Decision, weighted
from aiflow_agents.topology.graphs import hears
from aiflow_agents.wire.message import Message


class Debate(Topology):
    """`graph` says who hears whom: complete, ring, path, star, or edges such as `ash-elm,elm>fir`.

    `reply`: with `ratings` nobody answers again. Everyone says instead how likely it holds each answer that it heard, which ends the debate; `pooled`
    is the decision made for that. As a `placebo` they say how likely it is as the answer to another question.
    """

    rounds: NonNegativeInt = 1
    graph: str = "complete"
    reply: Literal["answers", "ratings"] = "answers"
    decide: Decision = weighted
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
        drafts = {said.author: said for said in await team.ask(task.question, partial=True)}
        ratings: list[list[Message]] = []
        for _ in range(self.rounds):
            heard = {name: [drafts[other] for other in audience[name] if other in drafts] for name in team.agents}
            try:
                if self.reply == "ratings":
                    question = another(task.question, self.others) if self.placebo else task.question
                    known = {name: [*said, *filter(None, [drafts.get(name)])] for name, said in heard.items()}
                    ratings = await gather(agent.rate(question, known[agent.name]) for agent in team)
                    break
                replies = await gather(agent.ask(task.question, heard=heard[agent.name]) for agent in team)
            except OverBudget:  # a round that not all can pay for decides nothing
                break
            drafts = dict(zip(team.agents, replies, strict=True))
        return await self.decide([*drafts.values(), *chain.from_iterable(ratings)], at=team.home)
