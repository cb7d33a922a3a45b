"""The virtual clock: an asyncio event loop in which every task lives in a world with a time of its own.

    world a  --timer----timer--?            ?  an unanswered call: this world stands still
    world b  ------timer--?                 when nobody can move, all calls are handed over at once,
    world c  --timer--?                     the answers come back, and the worlds go on, each from its own time

Code inside is plain asyncio: `sleep`, `timeout`, `wait` mean simulated seconds of the current world, which is found through a ContextVar. One idle
step moves every world that can move to its own next timer, so thousands of worlds stay in step and a round of calls is one batch.

How it is built: a selector of ours goes to the base constructor, so asyncio itself says when nothing is ready (it asks to wait for ever);
`time` and `call_at` are overridden. No private attribute of asyncio is touched.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import itertools
import math
import selectors
import threading
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from typing import Any, NoReturn, TypeVar

from ..errors import Deadlock
from .world import WORLD, Alarm, Entry, External, Timer, World

T = TypeVar("T")
_RESCUES = 10  # a task that goes on waiting for ever after so many Deadlocks ends the run
Handover = Callable[[list[External]], None]


class _IdleSelector(selectors.BaseSelector):
    """Never waits. asyncio asks for `timeout=None` exactly when nothing is ready and, `call_at` being ours, when it knows of no timer."""

    def __init__(self) -> None:
        self.real = selectors.DefaultSelector()  # holds asyncio's own wake-up socket
        self.idle: Callable[[], None] = lambda: None
        self.interrupted = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        if timeout is None:
            self.idle()
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self.real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self.real.modify(fileobj, events, data)

    def get_map(self) -> Any:
        return self.real.get_map()

    def close(self) -> None:
        self.real.close()


def _nobody(calls: list[External]) -> None:
    raise RuntimeError(f"{len(calls)} calls wait for an answer and this loop was made without a handover")


class WorldLoop(asyncio.SelectorEventLoop):
    """The event loop of virtual time.

    `handover(calls)` is called, synchronously, when no world can move and calls wait. It is given every unanswered call, those of an earlier
    hand-over included (an `External` keeps its identity), and must answer at least one. What it raises leaves `run`.

    Code outside of any world (the driver's main coroutine) runs in a root world, whose timers work like any other's.
    """

    def __init__(self, handover: Handover = _nobody):
        self._selector_of_worlds = _IdleSelector()
        self._root = World("root")
        self._runnable: list[World] = []  # worlds with timers that were not waiting for an answer when they got them
        self._waiting: dict[External, None] = {}  # in the order of the calls
        self._spawned: dict[asyncio.Task[Any], tuple[World, Coroutine[Any, Any, Any]]] = {}
        self._doomed: dict[asyncio.Task[Any], tuple[int, Deadlock]] = {}
        self._sequence = itertools.count()
        self._handover = handover
        self._leaving = False
        super().__init__(self._selector_of_worlds)
        self._selector_of_worlds.idle = self._idle

    # --- what asyncio asks for ---

    def time(self) -> float:
        """Seconds of the current world."""
        return (WORLD.get() or self._root).now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back when the current world's time is `when`. A time in the past fires at the next idle step; `inf` never does."""
        world = WORLD.get() or self._root
        timer: Timer | Alarm
        if callback is _wake:  # needs no context, and nobody but `sleep_until` gets to see its timer
            timer, run = Alarm(world), callback
        else:
            if context is None:
                context = contextvars.copy_context()
            timer, run = Timer(when, callback, args, self, context), context.run
            timer.world, args = world, (callback, *args)
        if when < math.inf:
            heappush(world.timers, (when, next(self._sequence), timer, run, args))
            if not world.listed and not world.unanswered:  # `_list`, written out: this is the hot path
                world.listed = True
                self._runnable.append(world)
        elif when != when:
            raise ValueError("a timer at NaN seconds")
        else:
            timer.world = None
        return timer  # type: ignore[return-value]

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> NoReturn:  # type: ignore[override]
        """Refused: a thread knows nothing of virtual time."""
        raise RuntimeError(
            f"run_in_executor({getattr(func, '__qualname__', func)!s}) inside virtual time: a thread takes real time, which no world can see; "
            "external work goes through loop.external() and is done by hosts"
        )

    # --- what the runtime asks for ---

    def spawn(self, world: World, coro: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine inside `world`. Whatever it starts in turn lives in that world too."""
        context = contextvars.copy_context()
        context.run(WORLD.set, world)
        task = self.create_task(self._guarded(coro), name=name or world.name, context=context)
        self._spawned[task] = (world, coro)
        task.add_done_callback(self._forget)
        return task

    def external(self, payload: Any) -> asyncio.Future[Any]:
        """Call something outside of simulated time. The current world stands still until it is answered, or the future cancelled."""
        world = WORLD.get() or self._root
        future = self.create_future()
        self._waiting[External(world, payload, future, self._answered)] = None
        world.unanswered += 1
        return future

    def end_of_instant(self) -> asyncio.Future[None]:
        """Done when the current world has nothing left to do before its time moves on."""
        world = WORLD.get() or self._root
        future = self.create_future()
        world.settling.append(future)
        self._list(world)
        return future

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt out of the loop as soon as it looks up. May be called from another thread."""
        self._selector_of_worlds.interrupted = True

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` outside of any world, then cancel what is left and close the loop. Raises Deadlock if nobody but `main` is left, and stuck."""
        context = contextvars.copy_context()
        context.run(WORLD.set, None)
        try:
            return self.run_until_complete(self.create_task(main, name="main", context=context))
        finally:
            self._leave()

    # --- the idle step ---

    def _idle(self) -> None:
        """Nothing is ready. Move the worlds that can move; else hand over the calls; else say that this is the end."""
        if self._advance():
            return
        if self._waiting:
            calls = list(self._waiting)
            if self._leaving:
                for call in calls:
                    call.future.cancel()
            dropped = [call for call in calls if call.future.done()]
            for call in dropped:
                self._answered(call)
            if dropped:  # the worlds that waited for these may be able to move
                return
            self._handover(calls)
            if not any(call.future.done() for call in calls):
                raise RuntimeError(f"the handover answered none of {len(calls)} calls")
        else:
            self._nothing_can_happen()

    def _advance(self) -> bool:
        """Set every world that can move to its next timer, and fire all that are due then. False if no world could move."""
        due: list[Entry] = []
        woken = False
        worlds, self._runnable = self._runnable, []
        for world in worlds:
            timers = world.timers
            while timers and timers[0][2].cancelled():
                heappop(timers)
                world.cancelled -= 1
            if world.unanswered or not (timers or world.settling):
                world.listed = False
                continue
            if world.settling and not (timers and timers[0][0] <= world.now):
                for future in world.settling:
                    _wake(future)
                world.settling.clear()
                self._runnable.append(world)
                woken = True
                continue
            if timers[0][0] > world.now:  # else it was set for the past
                world.now = timers[0][0]
            now = world.now
            while timers and timers[0][0] <= now:
                entry = heappop(timers)
                if entry[2].cancelled():
                    world.cancelled -= 1
                else:
                    entry[2].world = None
                    due.append(entry)
            if timers or world.settling:
                self._runnable.append(world)
            else:
                world.listed = False
        self._fire(due)
        return woken or bool(due)

    def _fire(self, due: list[Entry]) -> None:
        for _, _, timer, run, args in due:
            if timer.cancelled():  # by a timer before it, at the same instant
                continue
            try:
                run(*args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # as asyncio does with a callback that raises: say so and go on
                self.call_exception_handler({"message": f"Exception in timer callback {args[0]!r}", "exception": error, "handle": timer})

    def _answered(self, call: External) -> None:
        """This call keeps its world from moving no longer. One that was cancelled gets here when nobody else can move, from `_idle`."""
        del self._waiting[call]
        world = call.world
        world.unanswered -= 1
        if world.timers or world.settling:
            self._list(world)

    def _list(self, world: World) -> None:
        if not world.listed and not world.unanswered:
            world.listed = True
            self._runnable.append(world)

    # --- the end ---

    async def _guarded(self, coro: Coroutine[Any, Any, T]) -> T:
        """A stuck task is woken by a cancel, the only way in that asyncio offers, and leaves with Deadlock instead."""
        try:
            return await coro
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task in self._doomed:
                raise self._doomed[task][1] from None
            raise

    def _forget(self, task: asyncio.Task[Any]) -> None:
        _, coro = self._spawned.pop(task)
        coro.close()  # was cancelled before it began, else this does nothing
        self._doomed.pop(task, None)

    def _nothing_can_happen(self) -> None:
        """No timers, no calls: every task of a world that is not done waits for ever, and so does `main` if there is none of them."""
        stuck: dict[World, list[asyncio.Task[Any]]] = {}
        for task, (world, _) in self._spawned.items():
            stuck.setdefault(world, []).append(task)
        if self._leaving or not stuck:
            raise Deadlock(f"nothing can ever happen: {', '.join(sorted(_where(task) for task in asyncio.all_tasks(self)))}")
        for world, tasks in stuck.items():
            said = f"nothing can ever happen in world '{world.name}' after {world.now:g} s: {', '.join(_where(task) for task in tasks)}"
            for task in tasks:
                rescues = self._doomed[task][0] + 1 if task in self._doomed else 0
                self._doomed[task] = (rescues, Deadlock(said))
                if rescues > _RESCUES:
                    raise self._doomed[task][1]
                task.cancel()

    def _leave(self) -> None:
        """Cancel what is left, let it clean up in virtual time, close. Nothing is handed over any more."""
        self._leaving = True
        listed = set(self._runnable)
        for world in {self._root, *(world for world, _ in self._spawned.values())}:
            world.listed = world in listed  # a Ctrl-C in the middle of an idle step may have lost some
            self._list(world)
        try:
            tasks = asyncio.all_tasks(self)
            for task in tasks:
                task.cancel()
            with contextlib.suppress(Deadlock):  # a task that will not end is left where it is
                if tasks:
                    self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
                self.run_until_complete(self.shutdown_asyncgens())
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) and not isinstance(error, Deadlock):
                    self.call_exception_handler({"message": "an unfinished task failed while it was cancelled", "exception": error, "task": task})
        finally:
            self.close()


def _where(task: asyncio.Task[Any]) -> str:
    """`task 'name' at file.py:12 in ask`: the innermost line that waits and is not asyncio's own."""
    inner: Any = task.get_coro()
    frame = getattr(inner, "cr_frame", None)
    while (inner := getattr(inner, "cr_await", None)) is not None and (within := getattr(inner, "cr_frame", None)) is not None:
        frame = within if within.f_globals.get("__package__") != "asyncio" else frame
    place = f" at {frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""
    return f"task '{task.get_name()}'{place}"


def run(main: Coroutine[Any, Any, T], handover: Handover = _nobody) -> T:
    """Run `main` on a WorldLoop of its own and give its result; what is left unfinished is cancelled.

    In a thread that already runs an event loop (a notebook) the loop gets a thread of its own and this one waits for it.
    Raises what `main` or `handover` raises, KeyboardInterrupt among it, and Deadlock.
    """
    loop = WorldLoop(handover)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return loop.run(main)
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            outcome.set_result(loop.run(main))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="virtual-clock", daemon=True)
    try:
        thread.start()
        return outcome.result()
    except KeyboardInterrupt:  # Ctrl-C reaches the thread that waits: pass it on, and give the other time to clean up
        loop.interrupt()
        if thread.is_alive():
            thread.join(timeout=5.0)
        raise


async def sleep_until(when: float) -> None:
    """Sleep until the loop's time is exactly `when` (`asyncio.sleep(when - now)` would round). One timer."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    timer = loop.call_at(when, _wake, woken)
    try:
        await woken
    except BaseException:
        timer.cancel()
        raise


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def settle() -> None:
    """Return when this world has nothing left to do at this instant: calls made now are answered, timers due now have fired.

    Two results of one instant can then be put in an order that does not depend on how the machinery found them. Under a real clock: one pass of
    the loop.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, WorldLoop):
        await loop.end_of_instant()
    else:
        await asyncio.sleep(0)
