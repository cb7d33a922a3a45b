r"""Lower tiers draft, the next one checks several tokens in one pass, the last decides: its own answer, token by token, sooner.

    phone  d1 d2 d3 d4 | d5 d6 ..    x  d5 ..     drafts go on while a check travels; what is overturned is thrown away
                 \                  /
    cloud         ok ok ok own -----              up to the first wrong token, and one of its own
"""

import asyncio
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from aiflow_agents.errors import MemberFailed, OverBudget, UnmetNeed
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Fidelity, Needs, Topology
from aiflow_agents.topology.pipeline import Pipeline, Style
from aiflow_agents.wire.message import Message


class DraftVerify(Topology):
    """`members`: who drafts, who checks, who decides; by default all, the smallest first. Greedy, the text is that of the last alone; at a
    temperature it has exactly its distribution, and drafts are drawn from the drafter's `odds` likeliest tokens, which travel along.

    `ahead` tokens are drafted at a time (None: as acceptance and the way there advise), and at most `window` are out; `gate`: none that is less
    likely. Without `pipelined` each draft waits for its check. `heat`: a temperature at which drafts are drawn, to see what weaker ones do.
    `codec`: the first drafter's hidden states go along, coded, and whoever checks them runs only the layers above ("": it reads the tokens anew,
    which is cheaper to send). Members with different tokenizers exchange text, greedily and without a codec.
    `deadline`, in seconds: what is not settled by then, or never will be as the last has failed, is the drafter's own, and marked `unverified`.
    None: wait. Without a drafter the others go on.
    """

    members: tuple[str, ...] = ()
    ahead: PositiveInt | None = None
    window: PositiveInt = 32
    pipelined: bool = True
    gate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    codec: str = ""
    odds: PositiveInt = 16
    heat: NonNegativeFloat = 0.0
    deadline: PositiveFloat | None = None
    needs = Needs(members=2, capabilities=frozenset({"verify"}))

    def check(self, team: Team) -> None:
        super().check(team)
        agents = self.tiers(team)
        if not 2 <= len(agents) <= 3 or len({agent.name for agent in agents}) < len(agents):
            raise UnmetNeed(f"topology 'draft-verify' needs two or three different members: `members` names {len(agents)}, {team} has {len(team)}")
        if len({agent.info.tokenizer_hash for agent in agents}) > 1 and (self.codec or agents[-1].sampling.temperature > 0):
            why = f"codec={self.codec}" if self.codec else f"a temperature ({agents[-1].name} has {agents[-1].sampling.temperature:g})"
            raise UnmetNeed(f"topology 'draft-verify' with {why} needs members with one tokenizer; see {team}")
        if self.codec and (len({agent.info.weights_hash for agent in agents[:2]}) > 1 or agents[0].exit is None):
            raise UnmetNeed("topology 'draft-verify' with a codec needs two exits of one family to begin with: hidden states mean nothing elsewhere")

    def fidelity(self, team: Team) -> Fidelity:
        return "exact" if self.codec in ("", self.tiers(team)[0].info.dtype) else "lossy"

    def tiers(self, team: Team) -> list[Agent]:
        """Who drafts first, who decides last."""
        if self.members or len({agent.info.weights_hash for agent in team}) == 1:
            return [team[name] for name in self.members] or team.by_depth()
        return sorted(team, key=lambda agent: (agent.shape or agent.info.shape).weight_bytes)

    async def run(self, task: Task, team: Team) -> Message:
        agents = self.tiers(team)
        style = Style(self.ahead, self.window, self.pipelined, self.gate, self.codec, self.odds, self.heat)
        pipeline = Pipeline(task.question, agents, style)
        try:
            async with asyncio.timeout(self.deadline):
                return await pipeline.run()
        except OverBudget:  # what is settled is what there is
            if pipeline.told is None:
                raise
            return pipeline.told
        except (TimeoutError, MemberFailed):
            if self.deadline is None:
                raise
            return await pipeline.alone()
