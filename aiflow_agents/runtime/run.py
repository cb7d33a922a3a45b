"""Running tasks: each in a world of its own, thousands in step, one batch per round."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from traceback import walk_tb
from typing import Protocol

from aiflow_agents.errors import AIFlowError, Deadlock, OverBudget, UserError
from aiflow_agents.net import clock
from aiflow_agents.net.clock import WorldLoop
from aiflow_agents.net.world import World
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.decoding import Decoding
from aiflow_agents.runtime.delivery import Delivery, Portion
from aiflow_agents.runtime.handover import Handover
from aiflow_agents.runtime.hooks import Hooks, Run, Teller
from aiflow_agents.runtime.hosts import Hosts, open_hosts
from aiflow_agents.runtime.ledger import Spent
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.scene import SCENE, Pair, Scene, Session
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.runtime.trace import Listener, Span
from aiflow_agents.wire.message import HERE, MOVER, Message, Usage

IN_STEP = 4096  # worlds that run together: enough for full batches, few enough for memory


class Runs(Protocol):
    """A topology, as the runtime sees it."""

    async def run(self, task: Task, team: Team) -> Message: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One task to be answered one way, by one team. `arm` is the name under which it is counted. `reader` is told what of the answer is at home."""

    arm: str
    topology: Runs
    task: Task
    team: Team
    repeat: int = 0
    traced: bool = False
    reader: Callable[[Portion], None] | None = None


@dataclass(frozen=True)
class Result:
    """What came of a job. `answer` is None, and `error` says why, when it failed. Costs are those of the whole task.

    `met`: who met whom at its cost; later tasks of the same session did not pay for that.
    `over`: which limit of its budget was met, in words; the answer is then what the topology made of what it had, or the last one that had arrived at
    home, or empty.
    `delivery`: when its tokens were at home, also those of an answer that was broken off; None where there were none. `decoding`: what they took,
    where the topology says how true it is to one member's answer (`Topology.fidelity`). `mark` as in `Message`. `members`: what each has cost.
    """

    job: Job
    answer: str | None
    confidence: float | None
    usage: Usage
    error: str | None = None
    text: str | None = None
    spans: tuple[Span, ...] = field(default=(), repr=False)
    met: tuple[Pair, ...] = ()
    over: str | None = None
    delivery: Delivery | None = None
    decoding: Decoding | None = None
    mark: str = ""
    members: Mapping[str, Spent] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        cost = self.usage
        said = self.answer if self.error is None else f"failed: {self.error}"
        said = f"{said or 'no answer'} (over budget: {self.over})" if self.over else said
        return f"{said}   [{cost.calls} calls, {cost.wire_bytes} bytes, {cost.latency_s * 1000:.1f} ms, {cost.energy_j:.3g} J]"


def run_jobs(
    jobs: Iterable[Job],
    hosts: Hosts,
    memory: Memory,
    done: Callable[[Result], None],
    *,
    seed: int = 0,
    note: Callable[[int, int], None] = lambda calls, executed: None,
    listener: Listener | None = None,
    sessions: dict[str, Session] | None = None,
    budget: Budget | None = None,
    teller: Teller | None = None,
) -> None:
    """Run all jobs and give each result to `done` as soon as it is there.

    `budget` is that of every task; a topology's own (`Topology.budget`) holds beside it. `sessions`: who has met whom so far, by arm; without, all
    jobs of an arm here are one session. `teller` tells hooks (see `runtime.hooks`).
    A topology that raises fails its own job alone. What is not an error of a topology (Ctrl-C, a full disk) gets out.
    """
    handover = Handover(hosts, memory, note)
    waiting, sessions = iter(jobs), {} if sessions is None else sessions
    done = teller.ending(done) if teller else done
    while batch := list(islice(waiting, IN_STEP)):
        with no_collections():
            clock.run(_together(batch, seed, done, listener, sessions, budget, teller), handover)


@contextmanager
def no_collections() -> Iterator[None]:
    """Thousands of worlds are alive and hardly a cycle among them: walking through them in search of garbage took half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


async def _together(
    jobs: Sequence[Job], seed: int, done: Callable[[Result], None], listener: Listener | None, sessions: dict[str, Session], budget: Budget | None,
    teller: Teller | None,
) -> None:  # fmt: skip
    loop = asyncio.get_running_loop()
    assert isinstance(loop, WorldLoop)
    running: dict[asyncio.Task[None], tuple[Stage, World]] = {}
    for job in jobs:
        stage = Stage(job, seed, listener, sessions.setdefault(job.arm, {}), budget, teller=teller)
        world = World(f"{job.arm}/{job.task.id}")
        running[loop.spawn(world, perform(stage, done))] = stage, world
    while running:
        ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        errors: list[BaseException] = []
        for task in ended:
            stage, world = running.pop(task)
            error = task.exception()
            if isinstance(error, Deadlock):  # a topology that waits for what can never happen fails like one that raises
                done(stage.failed(error, world.now))
            elif error is not None:
                errors.append(error)
        if errors:
            raise errors[0]


class Stage:
    """A job, its scene, and the spans that it leaves behind."""

    __slots__ = ("job", "scene", "spans")

    def __init__(
        self, job: Job, seed: int, listener: Listener | None, session: Session, budget: Budget | None, scene: Callable[..., Scene] = Scene,
        teller: Teller | None = None,
    ):  # fmt: skip
        self.job = job
        self.spans: list[Span] = []
        asked = teller.begin(job) if teller else None
        moved = teller.moves(asked) if teller and asked else None
        listen = _each(self.spans.append if job.traced else None, listener, moved)
        own: Budget | None = getattr(job.topology, "budget", None)
        limits = budget & own if budget and own else budget or own
        self.scene = scene(job.task, job.team.network, seed=seed, repeat=job.repeat, listener=listen, session=session, budget=limits)
        self.scene.called = teller.calls(asked) if teller and asked else None
        self.scene.told.reader = job.reader

    def result(self, message: Message, latency_s: float) -> Result:
        """To be called where the message is."""
        usage = self.scene.ledger.usage(latency_s)
        over = self.scene.meter.over if self.scene.meter else ""
        made = self._made(message.answer, message.confidence, message.text, usage, over or None)
        fidelity = getattr(self.job.topology, "fidelity", None)
        if fidelity is None or not fidelity(self.job.team):
            return replace(made, mark=message.mark) if message.mark else made
        tokens = made.delivery.tokens if made.delivery else 0
        return replace(made, mark=message.mark, decoding=Decoding.of(self.scene.ledger, self.job.team, tokens))

    def _made(self, answer: str, sure: float | None, text: str, usage: Usage, over: str | None) -> Result:
        spans, met, members = tuple(self.spans), tuple(self.scene.met), self.scene.ledger.members
        return Result(self.job, answer, sure, usage, text=text, spans=spans, met=met, over=over, delivery=self.scene.told.delivery, members=members)

    def stopped(self, latency_s: float) -> Result:
        """What there is when the budget is spent: the last answer that had arrived at home, or an empty one."""
        assert self.scene.meter is not None
        since_s, best = self.scene.best() or (0.0, None)
        usage, over = self.scene.ledger.usage(max(latency_s, since_s)), self.scene.meter.over
        answer, sure, text = ("", None, "") if best is None else (best._answer, best._confidence, best._said)
        made = self._made(answer, sure, text, usage, over)
        if best is None or made.delivery is not None:
            return made
        return replace(made, delivery=Delivery((Portion(since_s, best.usage.tokens_out, (), "", best.author),)))

    def failed(self, error: BaseException, latency_s: float) -> Result:
        usage = self.scene.ledger.usage(latency_s)
        said = f"{type(error).__name__}: {error}".strip() + _where(error, self.job.topology)
        spans, members = tuple(self.spans), self.scene.ledger.members
        return Result(self.job, None, None, usage, said, spans=spans, delivery=self.scene.told.delivery, members=members)


def _where(error: BaseException, topology: Runs) -> str:
    """The line of the topology's own file that an error went through; nothing for those that are raised on purpose, which say enough."""
    file = getattr(sys.modules.get(type(topology).__module__), "__file__", None)
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return f" ({Path(file).name}:{lines[-1]})" if file and lines and not isinstance(error, AIFlowError) else ""


def _each(*listeners: Listener | None) -> Listener | None:
    """All of these in one, if there are any."""
    wanted = [listener for listener in listeners if listener]

    def tell(span: Span) -> None:
        for listener in wanted:
            listener(span)

    return tell if len(wanted) > 1 else wanted[0] if wanted else None


async def perform(stage: Stage, done: Callable[[Result], None]) -> None:
    """Run a stage's job in a task of its own, and give `done` what came of it. Raises only what ends the run: see `run_jobs`."""
    job, scene = stage.job, stage.scene
    SCENE.set(scene)
    HERE.set(job.team.home)
    MOVER.set(scene.bring)
    message: Message | None = None
    failure: BaseException | None = None
    end_s = scene.meter.end_s if scene.meter else None
    deadline = asyncio.timeout_at(None if end_s is None else end_s + (asyncio.get_running_loop().time() - scene.now()))
    try:
        async with deadline:
            said = await job.topology.run(job.task, job.team)
            if not isinstance(said, Message):
                raise TypeError(f"{type(job.topology).__name__}.run gave {type(said).__name__}; expected a Message")
            here = await said.to(job.team.home)
            scene.told.whole(here, scene.now())  # raises where the user was told otherwise
            message = here
    except Exception as error:  # a topology's mistake is data, not the end of the run
        failure = error
    except asyncio.CancelledError as error:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # the run ends, or this task is stuck
            raise
        failure = error  # the topology has waited for something that it had cancelled itself
    meter, latency_s = scene.meter, scene.now()
    if meter is not None and not meter.in_time(latency_s):
        failure, latency_s = meter.time_is_up(), meter.budget.seconds or 0.0
    await scene.over()  # what is on its way home is paid for, and may still be the best answer
    if meter is not None and meter.over and isinstance(failure, OverBudget):
        done(stage.stopped(latency_s))
    else:
        done(stage.failed(failure, latency_s) if message is None else stage.result(message, latency_s))  # type: ignore[arg-type]


def ask(
    team: Team,
    topology: Runs,
    question: str,
    *,
    hosts: Hosts | None = None,
    memory: Memory | None = None,
    seed: int = 0,
    listener: Listener | None = None,
    budget: Budget | None = None,
    hooks: Iterable[object] | Hooks = (),
    reader: Callable[[Portion], None] | None = None,
) -> Result:
    """One question, now, for no more than `budget`. Its spans come back with the result, and go to `listener` as they end, portions of the answer to
    `reader` as they are at home.

    `hooks` are told what happens (see `runtime.hooks`); a `Hooks` can be told of many questions, and is not closed here.
    """
    if isinstance(topology, str):
        raise UserError(f"a team runs a topology, not its name: give load_topology({topology!r})")
    check = getattr(topology, "check", None)
    if check:
        check(team)
    results: list[Result] = []
    job = Job(type(topology).__name__, topology, Task("question", question), team, traced=True, reader=reader)
    hosts = hosts or open_hosts("inline", models=team.objects)
    told = hooks if isinstance(hooks, Hooks) else Hooks(hooks)
    try:
        with told.watching(Run(team, seed=seed)) as teller:
            run_jobs([job], hosts, memory or Memory(), results.append, seed=seed, listener=listener, budget=budget, teller=teller)
            if teller:
                teller.outcome = results[0]
    finally:
        if told is not hooks:
            told.close()
    return results[0]
