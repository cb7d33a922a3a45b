r"""Teams under a real clock: any number of questions at once on an ordinary event loop, each counting seconds from when it arose.

    live.ask --> topology.run, as in simulation --> calls: `runtime.dispatch`; a call takes what it takes
                                               \--> messages: at once; with `pace` after the delays of the simulated links, or through
                                                    throttled sockets of this machine (`runtime.loopback`)

Bytes and joules are priced by the network file as in simulation, and so are FLOPs; seconds are the wall clock's. Two things are otherwise:
a topology that waits for what can never happen waits until its budget's seconds are over, and a model is not interrupted: a call that is cancelled
before it has set out is never made, a later one is made, and billed. So is one whose node dies over it.

Faults (`net.faults`) happen at seconds of the network's pace, from when each question arose. Without `pace` a network that has any is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any, Self

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import CallError, Reply, Shape, Turn
from aiflow_agents.net import faults
from aiflow_agents.net.fabric import died
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.delivery import Portion, Stream
from aiflow_agents.runtime.dispatch import Asked, Dispatcher, Note
from aiflow_agents.runtime.handover import Call
from aiflow_agents.runtime.hooks import Hooks, Run, Teller
from aiflow_agents.runtime.hosts import InlineHosts, LiveHosts
from aiflow_agents.runtime.ledger import Ledger
from aiflow_agents.runtime.loopback import Loopback, LoopbackFabric
from aiflow_agents.runtime.run import Job, Result, Runs, Stage, perform
from aiflow_agents.runtime.scene import Scene, Session
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.runtime.trace import Listener
from aiflow_agents.wire.message import Message


@dataclass(frozen=True)
class Answered:
    """What came of one question. `said` is the message that came home and `reply` what its author's model replied, None where there is none; `error`
    is what the topology raised. `unfinished` calls were still under way, and are not in the bill."""

    result: Result
    ledger: Ledger
    said: Message | None = field(default=None, repr=False)
    reply: Reply | None = field(default=None, repr=False)
    error: BaseException | None = None
    unfinished: int = 0


class Live:
    """A team that answers now.

        async with Live(Team.load("specialists")) as live:
            print(await live.ask(load_topology("debate"), "84*7="))

    To be used from one event loop. `hosts` (InlineHosts by default) are closed by whoever opened them. Between questions nothing is remembered but
    who has met whom. `note` as in `Dispatcher`; `hooks` are told of every question, and of one run from the first to `close` (`runtime.hooks`).
    """

    def __init__(
        self, team: Team, hosts: LiveHosts | None = None, *, pace: bool | Loopback = False, seed: int = 0, budget: Budget | None = None,
        note: Note = lambda calls, executed: None, hooks: Iterable[object] = (),
    ):  # fmt: skip
        self.team, self.pace, self.seed, self.budget = team, pace, seed, budget
        self._keeps_pace(team)
        self.hooks = Hooks(hooks)
        self._teller = Teller(self.hooks, Run(team, seed=seed)) if self.hooks else None
        if self._teller:
            self.hooks.tell("on_run_start", self._teller.run)
        self.dispatcher = Dispatcher(hosts or InlineHosts(), note)
        self._sessions: dict[str, Session] = {}  # by network: a hello says all that matters of a speaker, so teams share them
        self._leaving: set[asyncio.Task[None]] = set()

    async def ask(self, topology: Runs, question: str, **options: Any) -> Result:
        """One question. Options as in `answer`. Returns when all that it cost is known."""
        return (await self.answer(topology, question, **options)).result

    async def answer(
        self,
        topology: Runs,
        question: str,
        *,
        team: Team | None = None,
        before: Sequence[Turn] = (),
        seed: int | None = None,
        budget: Budget | None = None,
        listener: Listener | None = None,
        whole_bill: bool = True,
        traced: bool = True,
        reader: Callable[[Portion], None] | None = None,
    ) -> Answered:
        """One question, with all that is known of its answer.

        `team` may be another one than this object's, on the same hosts; `before` is the conversation that led to the question. Without `whole_bill`
        the answer does not wait for calls that the topology has given up. `traced`: the result brings its spans. `reader` is told of portions of the
        answer as they are at home. Cancelling this cancels the question.

        Raises UserError where the topology does not fit the team; what goes wrong later is an error of the result.
        """
        team = team or self.team
        self._keeps_pace(team)
        if isinstance(topology, str):
            raise UserError(f"a team runs a topology, not its name: give load_topology({topology!r})")
        check = getattr(topology, "check", None)
        if check:
            check(team)
        job = Job(type(topology).__name__, topology, Task("question", question, before=tuple(before)), team, traced=traced, reader=reader)
        limits = budget & self.budget if budget and self.budget else budget or self.budget
        session = self._sessions.setdefault(team.network.name, {})
        teller = self._teller
        stage = _LiveStage(job, self.seed if seed is None else seed, listener, session, limits, self._scene, teller)
        scene: LiveScene = stage.scene  # type: ignore[assignment]
        scene.whole_bill = whole_bill
        results: list[Result] = []
        try:
            done = teller.ending(results.append) if teller else results.append
            await asyncio.ensure_future(perform(stage, done))  # a task of its own, whose context it may change
        finally:
            if teller:
                teller.forget(job)
            if scene.working:
                leaving = asyncio.ensure_future(self._leave(scene))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)
            else:
                scene.leave()
        reply = scene.replies.get(stage.said.id) if stage.said else None
        return Answered(results[0], scene.ledger, stage.said, reply, stage.error, scene.unfinished)

    def _keeps_pace(self, team: Team) -> None:
        if team.network.faults and not self.pace:
            raise UserError(
                f"network '{team.network.name}' has faults, such as '{team.network.faults[0]}', which happen at the network's own pace: "
                "under the real clock give `pace` (`--pace`), or a network without them"
            )

    async def warm(self, *teams: Team) -> None:
        """Load what these teams ask of the hosts, by default this one's: else the first question waits for it. Raises UserError."""
        await self.dispatcher.warm(agent.folder for team in teams or (self.team,) for agent in team)

    async def close(self) -> None:
        """Cancel what has not set out, and wait for the rest."""
        await self.dispatcher.close()
        if self._leaving:
            await asyncio.wait(self._leaving)
        if self._teller:
            self.hooks.tell("on_run_end", self._teller.run, None)
            self._teller = None
            await asyncio.get_running_loop().run_in_executor(None, self.hooks.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _scene(self, *args: Any, **options: Any) -> LiveScene:
        return LiveScene(self.dispatcher, self.pace, *args, **options)

    async def _leave(self, scene: LiveScene) -> None:
        """When nothing that costs goes on any more, the hosts may forget what this task's models have made."""
        await scene.all_done()
        scene.leave()


class LiveClock:
    """Seconds since one question arose. What is to be called later is called at once, unless the pace of the network is to be kept."""

    def __init__(self, pace: bool):
        self.loop = asyncio.get_running_loop()
        self.began, self.pace = self.loop.time(), pace

    def time(self) -> float:
        return self.loop.time() - self.began

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> object:
        return self.loop.call_at(self.began + when, callback, *args) if self.pace else self.loop.call_soon(callback, *args)


class LiveScene(Scene):
    """The scene of one task under a real clock."""

    __slots__ = ("clock", "dispatcher", "replies", "whole_bill", "unfinished", "_made_here", "_late")

    def __init__(self, dispatcher: Dispatcher, pace: bool | Loopback, *args: Any, **options: Any):
        self.clock = LiveClock(pace is not False)
        super().__init__(*args, **options, clock=self.clock)
        if isinstance(pace, Loopback):
            self.fabric = LoopbackFabric(pace, self.network, seed=self.fabric.seed, clock=self.clock)
        self.dispatcher = dispatcher
        self.replies: dict[str, Reply] = {}  # by message
        self.whole_bill, self.unfinished = True, 0
        self._made_here: list[Asked] = []  # calls that may have left a payload with the hosts
        self._late: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        return self.clock.time()

    def made(self, id: str, reply: Reply) -> None:
        self.replies[id] = reply

    async def over(self) -> None:
        if self.whole_bill:
            await self.all_done()
        self.unfinished = self._working

    async def all_done(self) -> None:
        await super().over()

    @property
    def working(self) -> bool:
        """Whether anything that costs still goes on."""
        return self._working > 0

    def leave(self) -> None:
        """This task is over, and so is its need of what its calls have left with the hosts."""
        for asked in self._made_here:
            if asked.holding is not None:
                asked.holding.let_go()
        self._made_here.clear()
        for pair in self.met:
            self._session[pair] = None

    async def _answer(self, member: str, node: str, shape: Shape, call: Call, stream: Stream | None) -> Reply | CallError:
        asked = self.dispatcher.submit(call, None if stream is None else stream.heard)
        self._made_here.append(asked)
        dies_s = faults.after(self.network.dead.get(node, ()), self.now())
        deadline = asyncio.timeout(dies_s - self.now() if dies_s < inf else None)
        try:
            async with deadline:
                return await asyncio.shield(asked.answer)
        except (asyncio.CancelledError, TimeoutError) as why:
            dead = deadline.expired()
            if isinstance(why, TimeoutError) and not dead:  # its own answer
                raise
            if not asked.withdraw():
                late = asyncio.ensure_future(self._billed(asked, member, node, shape))
                self._late.add(late)
                late.add_done_callback(self._late.discard)
                self.__enter__()  # until it is billed
            if dead:
                raise died(node, dies_s) from None
            raise

    async def _billed(self, asked: Asked, member: str, node: str, shape: Shape) -> None:
        """A call that nobody waits for any more, and that cannot be called back, is paid for when it is done."""
        try:
            with suppress(Exception):  # it failed, or the budget does not reach: whom to tell?
                reply = await asked.answer
                if isinstance(reply, Reply):
                    await self.compute(member, node, shape, asked.call.request, reply)
        finally:
            self.__exit__()

    async def _spend(self, node: str, seconds: float, book: Callable[[float], None], begun: Callable[[], None] | None) -> None:
        book(seconds)  # the work is done: it took what it took, and is billed as the network file says


class _LiveStage(Stage):
    """Keeps what came home and what went wrong, beside the words of it."""

    said: Message | None = None
    error: BaseException | None = None

    def result(self, message: Message, latency_s: float) -> Result:
        self.said = message
        return super().result(message, latency_s)

    def failed(self, error: BaseException, latency_s: float) -> Result:
        self.error = error
        return super().failed(error, latency_s)
