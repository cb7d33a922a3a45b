r"""Drafting as a pipeline of tiers: each speaks ahead of the next, which checks several tokens in one pass; the last one decides.

    phone   d1 d2 d3 d4 | d5 d6 d7 d8 | d9 ..   x  d5 d6 ..      drafts go on while a check travels; what is overturned is thrown away
                 \             \              / \
    edge          e: ok ok ok ok \    own token   ...            checks, and is what drafts for the next
                       \                 /
    cloud               t: ok ok  own ---                        what it has settled is the answer

Nobody knows more than what has come to it: a stage goes on from what it holds (`said`), learns what the stage below claims (`claimed`) and what the
one above has settled, and says only what is new. Links keep the order of what is sent, so `since` is what both ends have in common.

At a temperature nothing that is decided may depend on when a draft came, as that may depend on what was drawn: so a place is either drafted or not,
and who checks says no token of its own where another one may be on its way for the same place. It says one where a draft was overturned.

Between tiers with different tokenizers text travels, and is what they compare: each holds tokens of its own, which it never cuts anew, so the text of
the last one is what it writes alone. A token of the one may be half of the other's: what was claimed and not contradicted is then checked again, cut
otherwise.

A stage that fails, or cannot be reached, is left out: those below it begin again from what the last one has settled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from aiflow_agents.errors import MemberFailed
from aiflow_agents.models.protocol import Sampling, Want, common
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.scene import SCENE
from aiflow_agents.topology.lengths import Pace
from aiflow_agents.wire.message import Message, standing_at

Tokens = tuple[int, ...] | str  # of different tokenizers their text, with the END of an answer
END = "\udfff"  # half a pair: no tokenizer spells it
MUTE = 8  # tokens that say nothing: a character has four bytes, and a token one at least


@dataclass(frozen=True)
class Style:
    """How to draft. `ahead`: tokens of a draft, None: as acceptance and the way there advise; `window`: how many may be out unsettled; `gate`: none
    that is less likely; `codec`: hidden states go along, coded by it ("": tokens alone); `odds`: at a temperature, from how many tokens to draw;
    `heat`: a temperature of drafts alone."""

    ahead: int | None = None
    window: int = 32
    pipelined: bool = True
    gate: float = 0.0
    codec: str = ""
    odds: int = 16
    heat: float = 0.0


@dataclass(eq=False)
class Stage:
    """One tier: what it holds, and what the stages beside it have told it."""

    agent: Agent
    said: Message | None = None  # at its node; a draft, or what it has settled
    claimed: Message | None = None  # the newest from below, at its node
    above: Message | None = None  # the newest from above, at its node
    final: Message | None = None  # the newest of the last stage, at its node
    working: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    overturned: asyncio.Event = field(default_factory=asyncio.Event)
    told_up: Tokens = ()
    told_down: Tokens = ()
    settled: int = 0  # tokens that the stage above has let stand
    states: Message | None = None  # the draft whose hidden states went up last
    words: bool = False  # whether text travels
    share: float = 1.0  # of its tokens, to a character
    silent: int = 0  # tokens at the end of what it holds that say nothing

    def tokens(self, message: Message | None = None) -> Tokens:
        """Those of a message that is here, by default of what this stage holds."""
        message = message or self.said
        if message is None:
            return "" if self.words else ()
        with standing_at(self.agent.node):
            return _units(message, self.words)

    def more(self, said: Message) -> int:
        """How many tokens it has now said more. Raises MemberFailed where there are none, or none that can be read."""
        new, before, now = said.usage.tokens_out, self.tokens(), self.tokens(said)
        if not new or self.words and said.full:
            what = "characters" if self.words else "tokens"
            raise MemberFailed(self.agent.name, f"no more fits into its context behind {len(before)} {what}", "too-long")
        if self.words:
            self.silent = 0 if len(now) > len(before) else self.silent + new
            if self.silent > MUTE:
                raise MemberFailed(self.agent.name, f"{self.silent} of its tokens are no text", "refused")
            self.share = said.made / max(len(now), 1)
        return new

    @property
    def ended(self) -> bool:
        if self.said is None:
            return False
        with standing_at(self.agent.node):
            return self.said.ended


class Pipeline:
    """A question on its way through these stages. The first one drafts; the last decides, also how long the answer is and how it is drawn."""

    def __init__(self, question: str, agents: Sequence[Agent], style: Style):
        self.question, self.style, self.home, last = question, style, agents[0].home, agents[-1]
        self.codec, self.warm = style.codec, last.sampling.temperature > 0
        self.words = len({agent.info.tokenizer_hash for agent in agents}) > 1
        alike = {"max_tokens": last.max_tokens, "stop": last.stop, "sampling": last.sampling}
        self.stages = [Stage(replace(agent, **alike), words=self.words) for agent in agents]  # type: ignore[arg-type]
        if self.words:  # how many tokens of the last one it is, and whether that stops here, nobody else knows
            for stage in self.stages[:-1]:
                stage.agent = replace(stage.agent, max_tokens=stage.agent.info.max_context, stop=())
        self.everyone = tuple(self.stages)
        self.pace = Pace(style.ahead, style.pipelined)
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.told: Message | None = None  # what has been settled, at home
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
        """The answer as the first stage that can ends it by itself, from what it knows to be settled; marked, where nobody has checked it.

        Raises MemberFailed where none can.
        """
        failed: MemberFailed | None = None
        end = self.everyone[-1].agent
        for stage in self.everyone:
            agent, last = replace(stage.agent, stop=end.stop), stage is self.everyone[-1]
            after = stage.said if last else stage.final
            try:
                settled = last or after is not None and self._ended(stage, after)
                over = after if self.words and after is not None and self._ended(stage, after) else None
                said = over or await agent.draft(self.question, end.max_tokens, after=after)
                return replace(await agent.read(said).to(self.home), mark="" if settled else "unverified")
            except MemberFailed as error:
                failed = error
        assert failed is not None
        raise failed

    async def _work(self, stage: Stage) -> None:
        """Draft or check, until the answer is settled. A stage that fails is left out, if it is not the last."""
        try:
            while not self.answer.done() and stage in self.stages:
                await (self._draft(stage) if stage is self.stages[0] and len(self.stages) > 1 else self._check(stage))
        except MemberFailed:
            if stage is self.stages[-1]:
                raise
            self._leave(stage)

    def _leave(self, stage: Stage) -> None:
        """The others go on without it. What went through it may be lost, so the one below it begins again where the last one has settled."""
        if stage not in self.stages:
            return
        place = self.stages.index(stage)
        self.stages.remove(stage)
        stage.news.set()
        upper, last = self.stages[place], self.stages[-1]
        upper.claimed, upper.told_down, self.codec = None, (), ""  # nobody else has the hidden states of what came before
        if place:
            lower = self.stages[place - 1]
            lower.said = lower.above = lower.final
            lower.told_up, lower.states, lower.settled = (), None, len(lower.tokens())
            lower.overturned.set()
            lower.news.set()
        upper.news.set()
        if last.said is not None:
            self._settle(last, last.said)

    async def _draft(self, stage: Stage) -> None:
        """Say some tokens more and send them up, unless enough of them are out."""
        out = math.ceil((len(stage.tokens()) - stage.settled) * stage.share)
        if stage.ended or out >= self.style.window or out and not self.style.pipelined:
            await _wait(stage.news)
            return
        count = min(self.pace.ahead(), self.style.window - out)
        stage.overturned.clear()
        stage.working = True
        want = Want(stage.agent.exit or 0, self.codec, since=_valid(stage)) if self.codec else None
        drafting = asyncio.ensure_future(self._drafted(stage, count, want))
        drafting.add_done_callback(lambda task: task.cancelled() or task.exception())  # also one that fails when nobody waits any more
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
        new = stage.more(said)
        if stage not in self.stages:
            return
        self.pace.drafted(said.usage.latency_s, new)
        if self._hold(stage, said):
            self._sent_at[said.id] = SCENE.get().now(), len(stage.tokens())
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
        heated = Sampling(self.style.heat) if self.style.heat else None
        odds = self.style.odds if self.warm else 0  # where the last is greedy, nobody asks what drafts were drawn from
        how = {"after": stage.said, "want": want, "states": stage.states if want else None, "odds": odds, "sampling": heated}
        said = await stage.agent.draft(self.question, count, gate=self.style.gate, **how)  # type: ignore[arg-type]
        if said.usage.tokens_out:
            return said
        return await stage.agent.draft(self.question, 1, **how)  # type: ignore[arg-type]

    async def _check(self, stage: Stage) -> None:
        """Check what is claimed, if that is more than what this stage holds; at the beginning it speaks by itself."""
        mine, alone = stage.tokens(), stage is self.stages[0]
        claimed = stage.claimed
        if claimed is not None and (len(stage.tokens(claimed)) <= len(mine) or stage.tokens(claimed)[: len(mine)] != mine):
            claimed = None
        speaks = alone or stage.said is None and not self.codec and not self.warm  # with nothing claimed
        if stage.ended or claimed is None and not speaks:
            await _wait(stage.news)
            return
        last = stage is self.stages[-1]
        own = not self.warm or claimed is None or self._ended(stage, claimed) or not self.style.pipelined and stage in self.stages[1:2]
        stage.working = True
        try:
            said = await stage.agent.check(self.question, claimed, after=stage.said, own=own, odds=0 if last else self.style.odds)
        finally:
            stage.working = False
        if not last:
            stage.more(said)
        if stage not in self.stages or not self._hold(stage, said):
            return
        if last:
            self._settle(stage, said)
        else:
            self._send_up(stage)
            self._send_down(stage, said, final=False)

    def _settle(self, stage: Stage, said: Message) -> None:
        """What the last stage has said is the answer so far: it goes down stage by stage, and home."""
        self._send_down(stage, said, final=True)
        if all(one.agent.node != self.home for one in self.stages):
            self._spawn(self._home(said))
        elif stage.agent.node == self.home:
            self._at_home(stage, said)

    def _at_home(self, stage: Stage, said: Message) -> None:
        """What is settled has come home, where this stage reads it."""
        said = said.as_("words") if self.words else said
        with standing_at(self.home):
            if self.told is None or len(_units(said, self.words)) > len(_units(self.told, self.words)):
                self.told = stage.agent.read(said)
                SCENE.get().tell(self.told)
            if said.ended and self.told is not None and not self.answer.done():
                self.answer.set_result(self.told)

    async def _home(self, said: Message) -> None:
        """No stage is at home: what is settled goes there by itself."""
        stage = self.stages[-1]
        tokens = stage.tokens(said)
        known, self._sent_home = common(tokens, self._sent_home), tokens
        self._at_home(stage, await said.as_("words" if self.words else "tokens", since=known).to(self.home))

    def _ended(self, stage: Stage, said: Message) -> bool:
        """Whether nothing follows what is here."""
        with standing_at(stage.agent.node):
            return said.ended

    # -- what travels ------------------------------------------------------------------------------------------------------

    def _send_up(self, stage: Stage) -> None:
        upper = self.stages[self.stages.index(stage) + 1]
        tokens = stage.tokens()
        assert stage.said is not None
        known = stage.tokens(stage.above) if stage.above is not None else ()  # what it has said itself it has
        since, stage.told_up = max(common(tokens, stage.told_up), common(tokens, known)), tokens
        form = "states" if self.codec and stage is self.stages[0] else "words" if self.words else "tokens"
        parcel = stage.said.as_(form, since=since)  # type: ignore[arg-type]
        if form == "states":
            stage.states = parcel
        self._spawn(self._claim(stage, upper, parcel))

    async def _claim(self, lower: Stage, upper: Stage, draft: Message) -> None:
        try:
            draft = await draft.to(upper.agent.node)
        except MemberFailed as error:
            self._parted(lower, upper, error)
        else:
            if lower in self.stages:
                upper.claimed = draft
                upper.news.set()

    def _send_down(self, stage: Stage, said: Message, *, final: bool) -> None:
        place = self.stages.index(stage)
        if place:
            lower, tokens = self.stages[place - 1], stage.tokens(said)
            # what the stage below has said itself need not be told again, nor what it was told before
            known = max(common(tokens, stage.told_down), common(tokens, stage.tokens(stage.claimed)) if stage.claimed else 0)
            stage.told_down = tokens
            self._spawn(self._correct(stage, lower, said.as_("words" if self.words else "tokens", since=known, odds=False), final))

    async def _correct(self, upper: Stage, lower: Stage, said: Message, final: bool) -> None:
        """What the stage above has said comes to the one below: it stands, or what was said here against it is dropped."""
        try:
            said = await said.to(lower.agent.node)
        except MemberFailed as error:
            self._parted(lower, upper, error)
            return
        if final and lower.agent.node == self.home:
            self._at_home(lower, said)
        if upper not in self.stages or lower not in self.stages:
            return
        settled, mine = lower.tokens(said), lower.tokens()
        lower.final = said if final else lower.final
        if lower is self.stages[0]:
            sent_s, out = next((self._sent_at[id] for id in said.heard if id in self._sent_at), (None, 0))
            if sent_s is not None:
                self.pace.answered(SCENE.get().now() - sent_s, said.usage.latency_s)
            kept = common(settled, mine)
            out = min(out, kept) if self.words and kept == len(settled) else out  # the rest was not contradicted
            stood, tried = min(kept, out) - min(lower.settled, out), max(out - lower.settled, 0)
            self.pace.kept(math.floor(stood * lower.share), math.ceil(tried * lower.share))
        lower.above, agreed = said, common(settled, mine)
        if agreed < min(len(settled), len(mine)):
            lower.said, lower.settled = said, len(settled)
            lower.overturned.set()
        elif len(settled) > len(mine) and not lower.working:
            lower.said = said
        lower.settled = max(lower.settled, len(settled))
        lower.news.set()
        self._send_down(lower, said, final=final)  # and further down

    def _parted(self, lower: Stage, upper: Stage, error: MemberFailed) -> None:
        """Nothing can go between two stages any more: without a way to the last one there is no answer from it, without the lower one there is."""
        if lower in self.stages and upper in self.stages:
            self._leave(lower)

    def _spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coro)
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        """What nobody has foreseen fails the question."""
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.answer.done():
            self.answer.set_exception(error)


def _units(message: Message, words: bool) -> Tokens:
    """What stages compare."""
    if words:
        return message.words + (END if message.ended else "")
    return message.tokens


def _valid(stage: Stage) -> int:
    """From which token of the answer on hidden states have to be sent: the stage above has those before it."""
    return common(stage.tokens(), stage.told_up[:-1]) if stage.states is not None else -1


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
    event.clear()
