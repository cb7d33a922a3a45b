"""How several answers become one. A decision takes place somewhere: what it reads is moved there first, and paid for.

`majority`, `weighted`, `pooled` and `most_confident` are decisions; any `async (drafts, *, at) -> Message` is one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import log
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from aiflow_agents.errors import OverBudget, UnknownName
from aiflow_agents.net.together import within_budget
from aiflow_agents.wire.message import Message, bring, standing_at


async def collect(drafts: Sequence[Message], at: str) -> list[Message]:
    """The answers alone, moved to `at`; where the budget does not reach for all of them, those for which it did.

    Who said nothing has no vote, unless nobody said anything.
    """
    answers = [draft.as_("answer") for draft in drafts]
    try:
        here = await bring(answers, at)
    except OverBudget:
        here = await within_budget(answer.to(at) for answer in answers)
    with standing_at(at):
        return [message for message in here if message.answer] or here


async def arrived(drafts: Sequence[Message], at: str, quorum: int | None) -> list[Message]:
    """Of these drafts' answers those that get to `at`, as long as they are at least `quorum`; without a quorum all drafts, wherever they are."""
    return list(drafts) if quorum is None else await within_budget((draft.as_("answer").to(at) for draft in drafts), quorum)


async def majority(drafts: Sequence[Message], *, at: str) -> Message:
    """The answer most members gave; of equally many, the one whose supporters are surer in sum, then the earlier one."""
    here = await collect(drafts, at)
    with standing_at(at):
        support: dict[str, tuple[int, float]] = {}
        for message in here:
            count, trust = support.get(message.answer, (0, 0.0))
            support[message.answer] = count + 1, trust + (message.confidence or 0.0)
        return _spokesman(here, lambda message: support[message.answer])


async def weighted(drafts: Sequence[Message], *, at: str, voices: Mapping[str, float] | None = None) -> Message:
    """The answer least likely to have only mistaken supporters: the largest 1 - product(1 - confidence) over those who gave it.

    Wants calibrated confidences; a member without one counts as 0.5. `voices`, by message id, is how often a draft counts where that is not once.
    """
    here = await collect(drafts, at)
    with standing_at(at):
        doubt: dict[str, float] = {}
        for message in here:
            confidence = 0.5 if message.confidence is None else message.confidence
            times = (voices or {}).get(message.id, 1.0)
            doubt[message.answer] = doubt.get(message.answer, 0.0) - times * log(max(1 - confidence, 1e-9))
        return _spokesman(here, lambda message: doubt[message.answer])


async def pooled(drafts: Sequence[Message], *, at: str) -> Message:
    """The answer that all together hold likeliest: the largest mean log-confidence of those who gave or rated it (logarithmic opinion pool: Genest
    and Zidek 1986). For drafts together with everybody's ratings of them; wants calibrated confidences, and one that is missing counts as 0.5.
    """
    here = await collect(drafts, at)
    with standing_at(at):
        held: dict[str, list[float]] = {}
        for message in here:
            held.setdefault(message.answer, []).append(log(max(0.5 if message.confidence is None else message.confidence, 1e-9)))
        return _spokesman(here, lambda message: sum(held[message.answer]) / len(held[message.answer]))


async def most_confident(drafts: Sequence[Message], *, at: str) -> Message:
    """The answer of the surest member."""
    here = await collect(drafts, at)
    with standing_at(at):
        return _spokesman(here, lambda message: message.confidence or 0.0)


def _spokesman(messages: Sequence[Message], weight: Callable[[Message], Any]) -> Message:
    """The surest of those who gave the winning answer; the earlier of equals."""
    best = max(range(len(messages)), key=lambda i: (weight(messages[i]), messages[i].confidence or 0.0, -i))
    return messages[best]


DECISIONS: dict[str, Callable[..., Awaitable[Message]]] = {
    "majority": majority, "weighted": weighted, "pooled": pooled, "most-confident": most_confident,
}  # fmt: skip


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in DECISIONS:
        raise ValueError(str(UnknownName("decision", value, DECISIONS)))
    return DECISIONS[value]


def _name(value: Any) -> str:
    return next((name for name, decision in DECISIONS.items() if decision is value), getattr(value, "__name__", str(value)))


Decision = Annotated[Callable[..., Awaitable[Message]], BeforeValidator(_named), PlainSerializer(_name)]
