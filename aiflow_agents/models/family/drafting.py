"""A family drafts for itself: a shallow exit speaks ahead, the deeper one checks what it said in one pass (LayerSkip, arXiv:2404.16710).

    exit 1   t1 t2 t3 t4            its own tokens, one pass of few blocks each
    exit 7   ok ok ok t4'           one pass of the blocks in between over all of them, from the hidden states that exit 1 has left
                                    t4 is thrown away, t4' is the deeper exit's own, and so a check makes one token more than it keeps

Greedy, and exact: the tokens are those of the deeper exit alone (several positions in one pass may differ from one in the last bit). No block runs
twice over a position that stays: `models.family.session` keeps the input of every exit's layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.session import Session
from aiflow_agents.models.protocol import common

FIRST, LEAST, MOST = 8, 2, 16  # tokens of a draft


@dataclass(frozen=True)
class Drafted:
    """`token_ids` with the end token that was made. Of `drafted` tokens `accepted` were what the deeper exit says too, in `checks` passes."""

    token_ids: tuple[int, ...]
    drafted: int
    accepted: int
    checks: int

    @property
    def acceptance_rate(self) -> float:
        return self.accepted / self.drafted if self.drafted else 0.0


def speculate(
    session: Session, max_tokens: int, *, draft: int, exit: int | None = None, length: int | None = None, stop: Sequence[int] = ()
) -> Drafted:
    """Up to `max_tokens` greedy tokens of `exit` (None: the whole model), drafted by exit `draft`. The prompt must have been fed or resumed.

    `length`: tokens of a draft, which also ends with a token of `stop`; None follows what was accepted: twice as many after a draft that was kept
    whole, else one more than was kept of it; 2 to 16.
    Raises UserError for several rows, an unknown exit, or a draft that is no shallower than what checks it.
    """
    last = session.decoder.config.exits[-1] if exit is None else exit
    if session.rows != 1:
        raise UserError(f"drafting is for one sequence; this session has {session.rows} rows")
    session.decoder.config.path(draft), session.decoder.config.path(last)  # unknown exits are refused by name
    if draft >= last:
        raise UserError(f"exit {draft} cannot draft for exit {last}, which is no deeper")
    made: list[int] = []
    drafted = accepted = checks = 0
    ahead = length or FIRST
    while len(made) < max_tokens and not (made and made[-1] in stop):
        start, tokens = session.positions, list[int]()
        for _ in range(min(ahead, max_tokens - len(made) - 1)):
            tokens.append(int(session.logits(exit=draft, last=1)[0, -1].argmax()))
            session.append(_column(tokens[-1]))
            if tokens[-1] in stop:
                break
        # what the deeper exit says behind the last known token and behind each drafted one: [drafted + 1]
        own = session.logits(exit=exit, last=len(tokens) + 1)[0].argmax(-1).tolist()
        kept = common(own, tokens)
        ended = bool(kept) and tokens[kept - 1] in stop
        session.truncate(start + kept)
        made += tokens[:kept]
        if not ended:
            made.append(own[kept])
            session.append(_column(own[kept]))
        drafted, accepted, checks = drafted + len(tokens), accepted + kept, checks + 1
        if length is None:
            ahead = min(max(2 * kept if kept == len(tokens) else kept + 1, LEAST), MOST)
    return Drafted(tuple(made), drafted, accepted, checks)


def _column(token: int) -> Tensor:
    return torch.tensor([[token]])
