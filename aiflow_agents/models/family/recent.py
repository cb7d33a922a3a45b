r"""What was read before is not read again: a few sessions of a family, for calls that come one by one and go on from each other.

    draft 1   prompt                     d1 d2 d3        a session is kept: keys, values and hidden states of prompt d1 d2
    draft 2   prompt d1 d2 d3            d4 d5           d3 is fed, and nothing else
    check     prompt d1 | d2 x y                         cut back to where they part, then x y are fed

A request that goes on from nothing is a new question, and is read from its beginning whoever asked it before, so what a question takes does not
depend on the last one. Only for lone requests under a real clock. What a session says may differ in the last bit from what a batch says, so where
answers must not depend on what else is asked, as in an evaluation, the engine reads everything anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from aiflow_agents.models.family.session import Session
from aiflow_agents.models.protocol import CallError, Reply, Request, Told, common

if TYPE_CHECKING:
    from aiflow_agents.models.family.model import FamilyModel

SESSIONS = 8  # that are kept, the ones used last
_Key = tuple[float | None, int | None]  # rank and exit: one that sits elsewhere has not what another one has read


class Recent:
    """A family's model that keeps its last sequences. Everything but lone greedy drafts and checks goes to the model as it is.

    `read` counts the positions that it read, `kept` those that it had not to read again.
    """

    def __init__(self, model: FamilyModel, sessions: int = SESSIONS):
        self.model, self.info, self.most, self.streams = model, model.info, sessions, model.streams
        self.read = self.kept = 0
        self._kept: list[tuple[_Key, list[int], Session]] = []  # whose, what was fed, and its session; the one used last comes last

    @classmethod
    def of(cls, model: Any, sessions: int = SESSIONS) -> Any:
        """This model, keeping sessions if it is a family's."""
        from aiflow_agents.models.family.model import FamilyModel

        return cls(model, sessions) if isinstance(model, FamilyModel) and model.eyes is None else model

    def generate(self, requests: Sequence[Request]) -> list[Reply | CallError]:
        return self.exchange(requests, {})[0]

    def exchange(
        self, requests: Sequence[Request], parcels: Mapping[str, bytes], told: Told | None = None
    ) -> tuple[list[Reply | CallError], dict[str, bytes]]:
        """As `FamilyModel.exchange`."""
        if len(requests) == 1 and _goes_on(requests[0]):
            reply = self._lone(requests[0], told)
            if reply is not None:
                return [reply], {}
        return self.model.exchange(requests, parcels, told)

    @torch.inference_mode()
    def _lone(self, request: Request, told: Told | None) -> Reply | CallError | None:
        """One draft or check; None where there is nothing to say, which the model says better."""
        model = self.model.sized(request.keep)
        prompt = model._prompt(request)
        if isinstance(prompt, CallError):
            return prompt
        begin, room = request.begin, min(request.max_tokens, self.info.max_context - len(prompt)) - len(request.begin)
        if room <= 0 or begin and begin[-1] in model.engine.eos_ids:
            return None
        known = [*prompt, *begin]
        if request.check is not None:
            return self._check(model, request, prompt, known, room)
        return self._speak(model, request, prompt, known, room, told)

    def _check(self, model: FamilyModel, request: Request, prompt: list[int], known: list[int], room: int) -> Reply:
        from aiflow_agents.models.family.verify import Claim, judged

        claim = Claim(tuple(known), (request.check or ())[:room], room)
        fed = [*known, *claim.tokens]
        session = self._reached(model, request, fed, len(known) - 1)
        logits = session.logits(exit=request.exit, last=len(claim.tokens) + 1)[0]
        verdict, blocks = judged(claim, logits, model.engine.eos_ids), len(model.engine.decoder.config.path(request.exit))
        return model._verdict(request, claim, len(prompt), verdict, blocks)

    def _speak(self, model: FamilyModel, request: Request, prompt: list[int], known: list[int], room: int, told: Told | None) -> Reply:
        from aiflow_agents.models.family.engine import Generated

        session = self._reached(model, request, known, len(known) - 1)
        fed, tokens, logprobs, finish = self._kept[-1][1], list[int](), list[float](), "length"
        while True:
            logits = session.logits(exit=request.exit, last=1)[0, -1]
            token = int(logits.argmax())
            tokens.append(token)
            logprobs.append(float(torch.log_softmax(logits, -1)[token]))
            if token in model.engine.eos_ids:
                finish = "stop"
                break
            if told is not None:
                told(0, len(tokens) - 1, (token,), "")
            if len(tokens) == room:
                break
            session.append(torch.tensor([[token]]))
            fed.append(token)
        return model._reply(prompt, replace(request, top=None), Generated(tuple(tokens), tuple(logprobs), finish))

    def _reached(self, model: FamilyModel, request: Request, wanted: list[int], most: int) -> Session:
        """A session that has been fed `wanted`, of which at most the first `most` positions are taken over, and which is now the one used last.

        What lies behind `most` has to be fed, as something is to be said about it.
        """
        key = request.keep, request.exit
        like = [(common(fed, wanted), i) for i, (whose, fed, _) in enumerate(self._kept) if whose == key and request.begin]
        shared, place = max(like, default=(0, -1))
        shared = min(shared, most)
        if shared:
            session = self._kept.pop(place)[2]
            session.truncate(shared)
        else:
            session = Session(model.engine.decoder)
        session.append(torch.tensor([wanted[shared:]]))
        self.read, self.kept = self.read + len(wanted) - shared, self.kept + shared
        self._kept.append((key, list(wanted), session))
        del self._kept[: -self.most]
        return session


def _goes_on(request: Request) -> bool:
    """Whether it is greedy and of tokens alone."""
    beside = request.want or request.parcel or request.features or request.picture or request.score or request.top or request.odds or request.stop
    return not beside and request.sampling.temperature <= 0
