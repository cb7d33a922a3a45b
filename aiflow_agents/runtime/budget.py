"""Budgets: hard limits on what one task may spend, held in mid-run.

    ask, send --> Meter: is there enough left? --yes--> it is made, and is paid for
                                  `-----------no---> OverBudget, and nothing of that kind is made any more

- **Never more than the limit.** A transfer that would exceed it (its bytes on every link of its way, what has to be sent again included) does not
  set out. A call whose prompt would exceed it is not made. How long an answer will be nobody knows before, so that one is cut at the last token that
  the budget allows: the node has worked that far, and nothing was said. Calls draw on what is left in the order in which they were made.
- **What was refused once stays refused**: no further call is then made (tokens, FLOPs), or no further transfer (bytes), even a smaller one; and
  nobody is asked anything new. What was being asked goes on, and what was said may still travel. So the calls that are made under a larger limit are
  those that were made under a smaller one, and more.
- **Then the task ends.** `OverBudget` leaves the topology, unless it reacts: a vote may be held over the drafts that are there. The answer is the
  last one that has arrived at home (of an agent that was asked the task's own question); where there is none, it is empty. When the seconds are over
  the topology is cancelled wherever it stands, and what arrives later does not count.

A limit that is not reached changes nothing: neither what is asked of models, nor what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, nextafter
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from aiflow_agents.errors import OverBudget

ROUNDING = 1e-12  # sums of FLOPs differ so much with the order of the terms; it is no spending
Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Budget(BaseModel):
    """What one task may spend at most; None is no limit.

    `tokens` read and made, of all calls together; `flops` of all calls; `bytes` on all links (`Usage.wire_bytes`); `seconds` of simulated time, from
    home to home.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tokens: Count | None = None
    flops: Limit | None = None
    bytes: Count | None = None
    seconds: Limit | None = None

    @model_serializer(mode="plain")
    def limits(self) -> dict[str, Any]:
        """The limits that there are."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}

    def __and__(self, other: Budget | None) -> Budget:
        """Both at once: of each limit the smaller one."""
        both = [self.limits(), other.limits() if other else {}]
        return Budget(**{name: min(one[name] for one in both if name in one) for name in {*both[0], *both[1]}})

    def __bool__(self) -> bool:
        return bool(self.limits())

    def __str__(self) -> str:
        return ", ".join(said(name, value) for name, value in self.limits().items()) or "no limit"


def spent(name: str, usage: Mapping[str, Any]) -> float:
    """What of one limit a task has spent, by its `Usage` as plain data."""
    if name == "tokens":
        return float(usage["tokens_in"] + usage["tokens_out"])
    return float(usage[{"bytes": "wire_bytes", "seconds": "latency_s"}.get(name, name)])


def said(name: str, value: float) -> str:
    """A limit in words: 500 bytes, 2e+07 FLOPs."""
    return f"{value:,} {name}" if isinstance(value, int) else f"{value:g} {'FLOPs' if name == 'flops' else name}"


class Meter:
    """What is left of one task's budget. What is made is drawn at once, and what a cancelled call did not use comes back.

    `over` says what was refused first, in words; "" while nothing was.
    """

    __slots__ = ("budget", "tokens", "flops", "nbytes", "over", "_calls", "_moves")

    def __init__(self, budget: Budget):
        self.budget = budget
        self.tokens: float = inf if budget.tokens is None else budget.tokens
        self.flops: float = inf if budget.flops is None else budget.flops * (1 + ROUNDING)
        self.nbytes: float = inf if budget.bytes is None else budget.bytes
        self.over = ""
        self._calls = self._moves = ""  # why no more of them are made

    @property
    def end_s(self) -> float | None:
        """When the topology is cancelled: just behind the last instant that counts."""
        return None if self.budget.seconds is None else nextafter(self.budget.seconds, inf)

    def in_time(self, now: float) -> bool:
        return self.budget.seconds is None or now <= self.budget.seconds

    def move(self, nbytes: Callable[[], int], what: str) -> None:
        """Draw the bytes of a transfer. Raises OverBudget, and nothing is drawn."""
        if self._moves:
            raise OverBudget(self._moves)
        if self.nbytes == inf:
            return
        wanted = nbytes()
        if wanted > self.nbytes:
            self._moves = self._refuse("bytes", f"{self.nbytes:,} are left, {what} takes {wanted:,}")
            raise OverBudget(self._moves)
        self.nbytes -= wanted

    def may_ask(self) -> None:
        """Raises OverBudget when nobody is asked anything new any more."""
        if self.over:
            raise OverBudget(self.over)

    def may_call(self) -> None:
        """Raises OverBudget when no more calls are made."""
        if self._calls:
            raise OverBudget(self._calls)

    def call(self, who: str, tokens: int, flops: float, steps: int, step_flops: float, more: int) -> int:
        """Draw a call: `tokens` and `flops` up to its first token, then up to `steps` passes of `step_flops` each, which make `more` tokens.

        Gives how many of the passes it may take; where these are fewer, the call is cut there and no other follows. Raises OverBudget where not even
        the first token can be had, and nothing is drawn.
        """
        self.may_call()
        short = "tokens" if tokens > self.tokens else "flops" if flops > self.flops else ""
        if short:
            left, wanted = (self.tokens, tokens) if short == "tokens" else (self.flops, flops)
            self._calls = self._refuse(short, f"{left:,.0f} are left, a call of {who} takes {wanted:,.0f} to its first token")
            raise OverBudget(self._calls)
        by_tokens = steps if tokens + more <= self.tokens else int(self.tokens) - tokens
        by_flops = steps if flops + steps * step_flops <= self.flops else int((self.flops - flops) / step_flops)
        taken = min(steps, by_tokens, by_flops)
        if taken < steps:
            self._calls = self._refuse("tokens" if taken == by_tokens else "flops", f"a call of {who} was cut in mid-answer")
        self.tokens -= tokens + min(taken, more)
        self.flops -= flops + taken * step_flops
        return taken

    def give_back(self, tokens: int, flops: float) -> None:
        """What a cancelled call had drawn and did not use."""
        self.tokens += tokens
        self.flops += flops

    def time_is_up(self) -> OverBudget:
        """To be said when the seconds are over."""
        return OverBudget(self._refuse("seconds", "the time is up"))

    def _refuse(self, name: str, why: str) -> str:
        refusal = f"{said(name, getattr(self.budget, name))}: {why}"
        self.over = self.over or refusal
        return refusal
