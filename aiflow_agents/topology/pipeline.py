r"""Drafting as a pipeline of tiers: each speaks ahead of the next, which checks several tokens in one pass; the last one decides.

    phone   d1 d2 d3 d4 | d5 d6 d7 d8 | d9 ..   x  d5 d6 ..      drafts go on while a check travels; what is overturned is thrown away
                 \             \              / \
    edge          e: ok ok ok ok \    own token   ...            checks, and is what drafts for the next
                       \                 /
    cloud               t: ok ok  own ---                        what it has settled is the answer

Nobody knows more than what has come to it: a stage goes on from what it holds (`said`), learns what the stage below claims (`claimed`) and what the
one above has settled, and says only what is new. Links keep the order of what is sent, so `since` is what both ends have in common.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from aiflow_agents.errors import MemberFailed
from aiflow_agents.models.protocol import Want
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.scene import SCENE
from aiflow_agents.topology.lengths import Pace
from aiflow_agents.wire.message import Message, standing_at

Tokens = tuple[int, ...]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class Style:
    """How to draft. `ahead`: tokens of a draft, None: as acceptance and the way there advise; `window`: how many may be out unsettled; `gate`: none
    that is less likely; `codec`: hidden states go along, coded by it ("": tokens alone); `odds`: at a temperature, from how many tokens to draw."""

    ahead: int | None = None
    window: int = 32
    pipelined: bool = True
    gate: float = 0.0
    codec: str = ""
    odds: int = 16


@dataclass
class Stage:
    """One tier: what it holds, and what the stages beside it have told it."""

    agent: Agent
    said: Message | None = None  # at its node; a draft, or what it has settled
    claimed: Message | None = None  # the newest from below, at its node
    above: Message | None = None  # the newest from above, at its node
    working: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    overturned: asyncio.Event = field(default_factory=asyncio.Event)
    told_up: Tokens = ()
    told_down: Tokens = ()
    settled: int = 0  # tokens that the stage above has let stand
    states: Message | None = None  # the draft whose hidden states went up last

    def tokens(self, message: Message | None = None) -> Tokens:
        """Those of a message that is here, by default of what this stage holds."""
        message = message or self.said
        if message is None:
            return ()
        with standing_at(self.agent.node):
            return message.tokens

    @property
    def ended(self) -> bool:
        if self.said is None:
            return False
        with standing_at(self.agent.node):
            return self.said.ended


class Pipeline:
    """A question on its way through these stages, the first of which drafts and the last of which decides."""

    def __init__(self, question: str, agents: Sequence[Agent], style: Style):
        self.question, self.style, self.home = question, style, agents[0].home
        self.told: Message | None = None  # what has been settled, at home
        self.stages = [Stage(agent) for agent in agents]
        self.drafter = self.stages[0]
        self.pace = Pace(style.ahead, style.pipelined)
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._sent_home: Tokens = ()
        self._sending: set[asyncio.Task[None]] = set()
        self._sent_at: dict[str, tuple[float, int]] = {}  # of the first stage's drafts: when, and how many tokens

    async def run(self) -> Message:
        """The whole answer, as the last stage settles it, as it came to where it is delivered. Raises MemberFailed when the last stage fails."""
        workers = [asyncio.ensure_future(self._work(stage)) for stage in self.stages]
        for worker in workers:
            worker.add_done_callback(self._sent)
        try:
            return await self.answer
        finally:
            for task in (*workers, *self._sending):
                task.cancel()

    async def alone(self) -> Message:
        """The answer as the first stage ends it by itself, from what was settled at home; marked, as nobody has checked it."""
        agent = self.drafter.agent
        after = self.told.as_("tokens") if self.told is not None and self.told.node == agent.node else None
        said = await agent.draft(self.question, agent.max_tokens, after=after)
        return replace(await agent.read(said).to(self.home), mark="unverified")

    async def _work(self, stage: Stage) -> None:
        """Draft or check, until the answer is settled. A stage that fails is left out, if it is not the last."""
        try:
            while not self.answer.done():
                await (self._draft(stage) if stage is self.stages[0] and len(self.stages) > 1 else self._check(stage))
        except MemberFailed:
            if stage is self.stages[-1]:
                raise
            self._leave(stage)

    def _leave(self, stage: Stage) -> None:
        """The stages on both sides go on without it. Neither knows what the other has of what went through it."""
        place = self.stages.index(stage)
        self.stages.remove(stage)
        for other in self.stages[max(place - 1, 0) : place + 1]:
            other.told_up, other.told_down, other.states, other.claimed = (), (), None, None
            other.news.set()

    async def _draft(self, stage: Stage) -> None:
        """Say some tokens more and send them up, unless enough of them are out."""
        before, out = stage.tokens(), len(stage.tokens()) - stage.settled
        if stage.ended or out >= self.style.window or out and not self.style.pipelined:
            await _wait(stage.news)
            return
        count = min(self.pace.ahead(), self.style.window - out)
        stage.overturned.clear()
        stage.working = True
        want = Want(stage.agent.exit or 0, self.style.codec, since=_valid(stage)) if self.style.codec else None
        drafting = asyncio.ensure_future(self._drafted(stage, count, want))
        turned = asyncio.ensure_future(stage.overturned.wait())
        try:
            await asyncio.wait((drafting, turned), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stage.working = False
            turned.cancel()
            if not drafting.done():
                drafting.cancel()
        if stage.overturned.is_set():
            with suppress(asyncio.CancelledError, MemberFailed):
                await drafting
            return
        said = drafting.result()
        made = len(stage.tokens(said))
        self.pace.drafted(said.usage.latency_s, made - len(before))
        if self._hold(stage, said):
            self._sent_at[said.id] = SCENE.get().now(), made
            self._send_up(stage)

    def _hold(self, stage: Stage, said: Message) -> bool:
        """Hold what was said, unless the stage above has meanwhile said otherwise, or more."""
        if stage.above is not None:
            above = stage.tokens(stage.above)
            if common(above, stage.tokens(said)) < len(above):
                stage.said = stage.above
                return False
        stage.said = said
        return True

    async def _drafted(self, stage: Stage, count: int, want: Want | None) -> Message:
        """Some tokens more; one at least, however unsure."""
        how = {"after": stage.said, "want": want, "states": stage.states, "odds": self.style.odds}
        said = await stage.agent.draft(self.question, count, gate=self.style.gate, **how)  # type: ignore[arg-type]
        if len(stage.tokens(said)) > len(stage.tokens()):
            return said
        return await stage.agent.draft(self.question, 1, **how)  # type: ignore[arg-type]

    async def _check(self, stage: Stage) -> None:
        """Check what is claimed, if that is more than what this stage holds; at the beginning it speaks by itself."""
        mine, alone = stage.tokens(), stage is self.stages[0]
        claimed = stage.claimed
        if claimed is not None and (len(stage.tokens(claimed)) <= len(mine) or stage.tokens(claimed)[: len(mine)] != mine):
            claimed = None
        speaks = alone or stage.said is None and not self.style.codec  # with nothing claimed
        if stage.ended or claimed is None and not speaks:
            await _wait(stage.news)
            return
        stage.working = True
        try:
            said = await stage.agent.check(self.question, claimed, after=stage.said)
        finally:
            stage.working = False
        if not self._hold(stage, said):
            return
        if stage is self.stages[-1]:
            self._settle(stage, said)
        else:
            self._send_up(stage)
            self._send_down(stage, said)

    def _settle(self, stage: Stage, said: Message) -> None:
        """What the last stage has said is the answer so far: it goes down stage by stage, and home."""
        self._send_down(stage, said)
        if all(one.agent.node != self.home for one in self.stages):
            self._spawn(self._home(said))
        elif stage.agent.node == self.home:
            self._at_home(stage, said)

    def _at_home(self, stage: Stage, said: Message) -> None:
        """What is settled has come home, where this stage reads it."""
        with standing_at(self.home):
            if self.told is None or len(said.tokens) > len(self.told.tokens):
                self.told = stage.agent.read(said)
                SCENE.get().tell(self.told)
            if said.ended and self.told is not None and not self.answer.done():
                self.answer.set_result(self.told)

    async def _home(self, said: Message) -> None:
        """No stage is at home: what is settled goes there by itself."""
        stage = self.stages[-1]
        tokens = stage.tokens(said)
        known, self._sent_home = common(tokens, self._sent_home), tokens
        self._at_home(stage, await said.as_("tokens", since=known).to(self.home))

    # -- what travels ------------------------------------------------------------------------------------------------------

    def _send_up(self, stage: Stage) -> None:
        upper = self.stages[self.stages.index(stage) + 1]
        tokens = stage.tokens()
        assert stage.said is not None
        since = common(tokens, stage.told_up)
        stage.told_up = tokens
        form = "states" if self.style.codec and stage is self.stages[0] else "tokens"
        parcel = stage.said.as_(form, since=since)  # type: ignore[arg-type]
        if form == "states":
            stage.states = parcel
        self._spawn(self._claim(upper, parcel))

    async def _claim(self, upper: Stage, draft: Message) -> None:
        upper.claimed = await draft.to(upper.agent.node)
        upper.news.set()

    def _send_down(self, stage: Stage, said: Message) -> None:
        place = self.stages.index(stage)
        if place:
            lower, tokens = self.stages[place - 1], stage.tokens(said)
            # what the stage below has said itself need not be told again, nor what it was told before
            known = max(common(tokens, stage.told_down), common(tokens, stage.tokens(stage.claimed)) if stage.claimed else 0)
            stage.told_down = tokens
            self._spawn(self._correct(lower, said.as_("tokens", since=known), stage is self.stages[-1]))

    async def _correct(self, lower: Stage, said: Message, final: bool) -> None:
        """What the stage above has said comes to the one below: it stands, or what was said here against it is dropped."""
        said = await said.to(lower.agent.node)
        settled, mine = lower.tokens(said), lower.tokens()
        if final and lower.agent.node == self.home:
            self._at_home(lower, said)
        if lower is self.stages[0]:
            sent_s, out = next((self._sent_at[id] for id in said.heard if id in self._sent_at), (None, 0))
            if sent_s is not None:
                self.pace.answered(SCENE.get().now() - sent_s, said.usage.latency_s)
            kept = common(settled, mine)
            self.pace.kept(min(kept, out) - min(lower.settled, out), max(out - lower.settled, 0))
        lower.above, agreed = said, common(settled, mine)
        if agreed < min(len(settled), len(mine)):
            lower.said, lower.settled = said, len(settled)
            lower.overturned.set()
        elif len(settled) > len(mine) and not lower.working:
            lower.said = said
        lower.settled = max(lower.settled, len(settled))
        lower.news.set()
        place = self.stages.index(lower) if lower in self.stages else 0
        if place:  # and further down
            self._send_down(lower, said) if not final else self._relay(lower, said)

    def _relay(self, stage: Stage, said: Message) -> None:
        lower, tokens = self.stages[self.stages.index(stage) - 1], stage.tokens(said)
        known, stage.told_down = common(tokens, stage.told_down), tokens
        self._spawn(self._correct(lower, said.as_("tokens", since=known), True))

    def _spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coro)
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        """What could not be sent fails the question, unless its stage has been left out."""
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.answer.done():
            self.answer.set_exception(error)


def _valid(stage: Stage) -> int:
    """From which token of the answer on hidden states have to be sent: the stage above has those before it."""
    return common(stage.tokens(), stage.told_up[:-1]) if stage.states is not None else -1


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
    event.clear()
