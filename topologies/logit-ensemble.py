"""One answer, token by token: where the lead is unsure of its next token, the others say what they would say, and the mean of all speaks.

    lead: 2 9 ?  --tokens so far--> others
          2 9 6  <--k likeliest next tokens, with their log-probabilities--

Members must have one tokenizer. Asking only where the lead is unsure is what SAFE does (arXiv:2510.15346): mixing all tokens costs more and can hurt.
"""

from math import log
from typing import Literal, Self

from pydantic import NonNegativeFloat, PositiveInt

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import GREEDY, Top
from aiflow_agents.net.together import gather
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, Trial, another
from aiflow_agents.topology.mixing import Mean, likeliest
from aiflow_agents.wire.message import Message, bring, standing_at

GATES = (0.5, 0.7, 0.9, 0.97, 1.0)


class LogitEnsemble(Topology):
    """`lead` (default: best on dev, else the first) asks where its own next token is no likelier than `gate`: 1 always, 0 never, None: best on dev.
    `weights` by member; {}: equal ones, None: those or the log-odds of being right, whichever is better on dev. `top` tokens travel, coded.

    `placebo`: the others send noise (the right numbers for tokens drawn at random), uniform distributions, or what they say to another question.
    """

    lead: str | None = None
    gate: NonNegativeFloat | None = None
    weights: dict[str, NonNegativeFloat] | None = None
    mean: Mean = "probabilities"
    top: PositiveInt = 8
    codec: Literal["float16", "bfloat16", "float32"] = "float16"
    placebo: Literal["", "noise", "uniform", "other"] = ""
    others: tuple[str, ...] = ()
    needs = Needs(members=2, capabilities=frozenset({"logits"}))

    def check(self, team: Team) -> None:
        super().check(team)
        if len({agent.info.tokenizer_hash for agent in team}) > 1:
            raise UnmetNeed(f"topology 'logit-ensemble' needs members with one tokenizer; see {team}")
        team.only(*filter(None, (self.lead, *(self.weights or ()))))  # raises UnknownName

    def fit(self, trial: Trial) -> Self:
        fitted = super().fit(trial).model_copy(update={"lead": self.lead or trial.best_member})
        odds = {name: (sum(right) + 1) / (right.count(False) + 1) for name, right in trial.correct.items()}
        for key, values in (("gate", GATES), ("weights", ({}, {name: max(log(one), 0.01) for name, one in odds.items()}))):
            if getattr(self, key) is None:  # of equally good ones the cheapest, then the first
                tried = [fitted.model_copy(update={key: value}) for value in values]
                fitted = max(tried, key=lambda one: ((found := trial.accuracy(one))[0], -found[1]))
        return fitted

    async def run(self, task: Task, team: Team) -> Message:
        lead = team[self.lead] if self.lead else next(iter(team))
        others, begin = [agent for agent in team if agent is not lead], None
        question = another(task.question, self.others) if self.placebo == "other" else task.question
        mine = Top(self.top, 0.9 if self.gate is None else self.gate, "float32")  # stays where it is
        theirs = Top(self.top, 1.0, self.codec, "" if self.placebo == "other" else self.placebo)
        while True:
            draft = await lead.ask(task.question, sampling=GREEDY, begin=begin, top=mine)
            with standing_at(lead.node):
                if draft.logits is None:
                    return draft
            so_far, room = draft.as_("tokens"), lead.max_tokens
            told = await gather(one.ask(question, sampling=GREEDY, begin=so_far, top=theirs, max_tokens=room) for one in others)
            here = [draft, *await bring([message.as_("logits") for message in told], lead.node)]
            with standing_at(lead.node):
                said = {message.author: logits for message in here if (logits := message.logits)}  # whose context is full says nothing
                weights = [self.weights.get(name, 0.0) if self.weights else 1.0 for name in said]
                begin = draft.then(*likeliest(list(said.values()), weights, self.mean))
