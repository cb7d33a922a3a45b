"""One answer, token by token: where the lead is unsure of its next token, the others say what they would say, and the mean of all speaks.

    lead: 2 9 ?  --tokens so far--> others
          2 9 6  <--k likeliest next tokens, with their log-probabilities--

Members must have one tokenizer. Asking only where the lead is unsure is what SAFE does (arXiv:2510.15346): mixing all tokens costs more and can hurt.
"""

from typing import Literal, Self
from zlib import crc32

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import GREEDY, Top
from aiflow_agents.net.together import gather
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology, Trial
from aiflow_agents.wire.message import Message, bring, standing_at
from aiflow_agents.wire.payload import Logits

GATES = (0.5, 0.7, 0.9, 0.97, 1.0)


class LogitEnsemble(Topology):
    """`lead` (default: the best member on dev, without one the first) asks the others where its own next token is no likelier than `gate`: 1 at every
    token, 0 never, None the gate that is best on dev, of equals the cheapest.

    `weights`: by member; {} for equal ones, None for those or the log-odds of being right on dev, whichever is better there. `mean` is taken of
    probabilities or of logits. `top` tokens travel, coded by `codec`; what is left of a member's probability counts as spread evenly over all others.

    `placebo`: the others send noise (the right numbers for tokens drawn at random), uniform distributions, or what they say to another question.
    """

    lead: str | None = None
    gate: NonNegativeFloat | None = None
    weights: dict[str, NonNegativeFloat] | None = None
    mean: Literal["probabilities", "logits"] = "probabilities"
    top: PositiveInt = 8
    codec: Literal["float16", "bfloat16", "float32"] = "float16"
    placebo: Literal["", "noise", "uniform", "other"] = ""
    others: tuple[str, ...] = ()
    needs = Needs(members=2, capabilities=frozenset({"logits"}))

    def check(self, team: Team) -> None:
        super().check(team)
        first = next(iter(team))
        for agent in team:
            if agent.info.tokenizer_hash != first.info.tokenizer_hash:
                raise UnmetNeed(f"topology 'logit-ensemble' needs members with one tokenizer; that of {agent.name} is not that of {first.name}")
        team.only(*filter(None, (self.lead, *(self.weights or ()))))  # raises UnknownName

    @property
    def control(self) -> bool:
        return bool(self.placebo)

    def fit(self, trial: Trial) -> Self:
        others = self.others or tuple(trial.questions[:50]) if self.placebo == "other" else ()
        fitted = self.model_copy(update={"lead": self.lead or trial.best_member, "others": others})

        def best(name: str, values: list[object]) -> Self:
            """Of equally good ones the cheapest, then the first."""
            candidates = [fitted.model_copy(update={name: value}) for value in values]
            results = [trial.accuracy(candidate) for candidate in candidates] if len(candidates) > 1 else [(0.0, 0.0)]
            return candidates[max(range(len(candidates)), key=lambda i: (results[i][0], -results[i][1], -i))]

        if self.gate is None:
            fitted = best("gate", list(GATES))
        if self.weights is None:
            right = {name: (sum(correct) + 1) / (len(correct) + 2) for name, correct in trial.correct.items()}
            fitted = best("weights", [{}, {name: max(float(np.log(p / (1 - p))), 0.01) for name, p in right.items()}])
        return fitted

    async def run(self, task: Task, team: Team) -> Message:
        lead = team[self.lead] if self.lead else next(iter(team))
        others = [agent for agent in team if agent is not lead]
        question = task.question
        if self.placebo == "other":
            if not self.others:
                raise UnmetNeed("topology 'logit-ensemble' with placebo=other takes its other questions from a dev split: use `aiflow eval`")
            question = self.others[crc32(question.encode()) % len(self.others)]
        mine = Top(self.top, 0.9 if self.gate is None else self.gate, "float32")  # stays where it is
        theirs = Top(self.top, 1.0, self.codec, "" if self.placebo == "other" else self.placebo)
        begin: Message | None = None
        while True:
            draft = await lead.ask(task.question, sampling=GREEDY, begin=begin, top=mine)
            with standing_at(lead.node):
                own = draft.logits
            if own is None:
                return draft
            so_far = draft.as_("tokens")
            told = await gather(one.ask(question, sampling=GREEDY, begin=so_far, top=theirs, max_tokens=lead.max_tokens) for one in others)
            here = await bring([message.as_("logits") for message in told], lead.node)
            with standing_at(lead.node):
                said = {lead.name: own} | {one.name: logits for one, message in zip(others, here, strict=True) if (logits := message.logits)}
                begin = draft.then(*self.choose(said))

    def choose(self, said: dict[str, Logits]) -> tuple[int, float]:
        """The likeliest token of the mean, and its log-probability there."""
        weight = np.array([self.weights.get(name, 0.0) if self.weights else 1.0 for name in said])
        logprobs = np.stack([_all(logits) for logits in said.values()])  # [members, vocab]
        if not weight.any():
            weight[0] = 1.0  # nobody who counts is left: the lead decides
        weight = weight[:, None] / weight.sum()
        mixed = (weight * logprobs).sum(0) if self.mean == "logits" else np.log((weight * np.exp(logprobs)).sum(0))
        token = int(mixed.argmax())
        return token, float(mixed[token] - np.logaddexp.reduce(mixed))


def _all(logits: Logits) -> np.ndarray:
    """Log-probabilities of all tokens, [vocab]: those that came, and what they leave spread evenly over the rest."""
    assert logits.indices is not None
    came = logits.values[0].astype(np.float64)
    left = max(1.0 - np.exp(came).sum(), 1e-9) / max(logits.vocab - len(came), 1)
    found = np.full(logits.vocab, np.log(left))
    found[logits.indices[0]] = came
    return found
