"""A coordinator that does not know asks members who may: one thing at a time, until it can answer.

What it says is `name?what`, or its answer, which may stand behind its working: `36+41=77`.

    question -> coordinator --name?what--> member
                    ^                        |
                    `--------- says ---------'     ... answer --> home

Whom it asks what, whom it asks again and whom it believes is the coordinator's own decision; this file only carries messages.
"""

from typing import Literal

from pydantic import PositiveInt

from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, another
from aiflow_agents.wire.message import Message, standing_at


class Inquiry(Topology):
    """The member with role `coordinator` may ask `rounds` times; what it says then is the answer, whatever it is.

    `placebo`: silent: members are asked and say nothing; other: it hears what they say when it inquires about another question, of the dev split.
    """

    rounds: PositiveInt = 12
    placebo: Literal["", "silent", "other"] = ""
    others: tuple[str, ...] = ()
    needs = Needs(members=2, roles=("coordinator",))

    async def run(self, task: Task, team: Team) -> Message:
        chair = team.role("coordinator")
        assert chair is not None
        heard: list[Message] = []
        elsewhere: list[Message] = []  # the same about the other question
        for _ in range(self.rounds):
            turn = await chair.ask(task.question, heard=heard, dialogue=True)
            asked = self.asked(turn, chair, team)
            if asked is None:
                return self.answer(turn, chair)
            said = None if self.placebo == "other" else await asked[0].ask(asked[1])
            if self.placebo == "silent" and said is not None:
                with standing_at(said.node):
                    said = said.part("")
            if self.placebo == "other":
                theirs = await chair.ask(another(task.question, self.others), heard=elsewhere, dialogue=True)
                if (aside := self.asked(theirs, chair, team)) is not None:
                    elsewhere += [theirs, await aside[0].ask(aside[1])]
                said = elsewhere[-1] if elsewhere else theirs
            heard += [turn, said]
        return self.answer(await chair.ask(task.question, heard=heard, dialogue=True), chair)

    def most_calls(self) -> int:
        return (4 if self.placebo == "other" else 2) * self.rounds + 1

    def asked(self, turn: Message, chair: Agent, team: Team) -> tuple[Agent, Message] | None:
        """Whom the coordinator asks, and what; None where it does not ask a member but answers."""
        with standing_at(chair.node):
            name, mark, what = turn.text.partition("?")
            return (team[name], turn.part(what)) if mark and name in team.agents and name != chair.name else None

    def answer(self, turn: Message, chair: Agent) -> Message:
        """What of its last turn goes home: what stands behind the last `=`."""
        with standing_at(chair.node):
            return turn.part(turn.text.rpartition("=")[2])
