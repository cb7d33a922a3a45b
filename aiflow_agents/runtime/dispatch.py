r"""The hand-over under a real clock: calls gather while the hosts are busy, and go to them as one batch of one model.

    task --call--\                        a host is free: the model that has waited longest,
    task --call----> what waits, by model ------------------------------------------------> host, in a thread
    task --call--/                        and all of its calls

Equal calls in one batch are computed once. A call that is withdrawn before it has set out is never made. Models behind an HTTP endpoint wait
elsewhere and not for a host: their calls set out one by one, as many at a time as the endpoint takes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.models.backends import behind
from aiflow_agents.models.protocol import CallError, Model, Reply, Request, Told
from aiflow_agents.runtime.handover import Call
from aiflow_agents.runtime.hosts import Answers, LiveHosts, load_model
from aiflow_agents.runtime.placement import unseat

BATCH = 256  # calls that set out together at most: what a host takes in one piece
Note = Callable[[int, int], None]
Hear = Callable[[int, tuple[int, ...], str], None]


class Asked:
    """One call of one task. `answer` is done when its reply has come; `holding`, if anything, is the payload that came with it.

    `hear` is told the tokens of an answer while it is made: how many there were before, these ones, or their text.
    """

    __slots__ = ("call", "answer", "hear", "away", "alone", "holding")

    def __init__(self, call: Call, answer: asyncio.Future[Reply | CallError], hear: Hear | None = None):
        self.call, self.answer, self.hear = call, answer, hear
        self.away = False  # has set out
        self.alone = False  # the batch that it was in has failed: it goes by itself
        self.holding: Holding | None = None

    def withdraw(self) -> bool:
        """Nobody waits for it any more. False where it has set out already."""
        if not self.away:
            self.answer.cancel()
        return not self.away


class Holding:
    """A payload that several tasks may need: the hosts keep it until the last of them has let go."""

    __slots__ = ("digest", "users", "hosts")

    def __init__(self, digest: str, users: int, hosts: LiveHosts):
        self.digest, self.users, self.hosts = digest, users, hosts

    def let_go(self) -> None:
        self.users -= 1
        if not self.users:
            self.hosts.forget([self.digest])


class Dispatcher:
    """Answers calls of any number of tasks, all of them on one event loop, which goes on while the hosts work.

    `note(calls, executed)` is told of every batch: how many calls it has, and how many of these differ.
    """

    def __init__(self, hosts: LiveHosts, note: Note = lambda calls, executed: None):
        self.hosts, self.note = hosts, note
        self._here = _Lane(self._compute, self._deliver, hosts.at_once, BATCH)
        self._lanes: dict[str, _Lane] = {}  # of the models that are no folder

    def submit(self, call: Call, hear: Hear | None = None) -> Asked:
        """Put a call in line. Its answer fails with what a host raises, as with a `UserError` where its model cannot be loaded."""
        asked = Asked(call, asyncio.get_running_loop().create_future(), hear)
        self._lane(call.model).put(asked)
        return asked

    async def warm(self, models: Iterable[str]) -> None:
        """Let the hosts load these models, as far as they are theirs."""
        ours = [model for model in dict.fromkeys(models) if self._lane(model) is self._here]
        await asyncio.get_running_loop().run_in_executor(None, self.hosts.warm, ours)

    @property
    def waiting(self) -> int:
        """Calls that have not set out."""
        return sum(lane.waiting for lane in self._all())

    async def close(self) -> None:
        """Cancel what waits, and wait for what is under way."""
        for lane in self._all():
            await lane.close()

    def _all(self) -> set[_Lane]:
        return {self._here, *self._lanes.values()}

    def _lane(self, model: str) -> _Lane:
        key = unseat(model)[1]
        if not key.startswith("{"):
            return self._here
        if model not in self._lanes:
            found, lane = behind(key), self._here
            if found.kind == "http":
                lane = _Lane(_Remote(), self._deliver, int(found.options.get("at_once", 16)), 1)
            self._lanes[model] = lane
        return self._lanes[model]

    def _compute(self, model: str, requests: Sequence[Request], told: Told | None) -> Answers:
        if told is None:
            return self.hosts.generate({model: requests})[model]
        return self.hosts.generate({model: requests}, told=lambda _, *what: told(*what))[model]

    def _deliver(self, sharing: Sequence[Sequence[Asked]], answers: Answers) -> None:
        """Give every distinct call's answer to all who share it."""
        self.note(sum(map(len, sharing)), len(sharing))
        for those, answer in zip(sharing, answers, strict=True):
            parcel = answer.parcel if isinstance(answer, Reply) else None
            holding = None if parcel is None else Holding(parcel.digest, len(those), self.hosts)
            for asked in those:
                asked.holding = holding
                if not asked.answer.done():
                    asked.answer.set_result(answer)


class _Lane:
    """One line before `slots` workers, each of which takes up to `most` calls to one model."""

    def __init__(
        self,
        compute: Callable[[str, Sequence[Request], Told | None], Answers],
        deliver: Callable[[Sequence[Sequence[Asked]], Answers], None],
        slots: int,
        most: int,
    ):
        self._compute, self._deliver, self._free, self._most = compute, deliver, slots, most
        self._lines: dict[str, deque[Asked]] = {}  # by model, the one whose turn it is first
        self._pool = ThreadPoolExecutor(slots, "hosts")
        self._batches: set[asyncio.Task[None]] = set()
        self._woken = False

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, asked: Asked) -> None:
        self._lines.setdefault(asked.call.model, deque()).append(asked)
        if self._free and not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._send)  # and not now: what is asked at the same instant goes along

    async def close(self) -> None:
        for line in self._lines.values():
            for asked in line:
                asked.answer.cancel()
        self._lines.clear()
        if self._batches:
            await asyncio.wait(self._batches)
        self._pool.shutdown(wait=False)

    def _send(self) -> None:
        self._woken = False
        while self._free and (batch := self._next()):
            self._free -= 1
            under_way = asyncio.ensure_future(self._away(batch))
            self._batches.add(under_way)
            under_way.add_done_callback(self._batches.discard)

    def _next(self) -> list[Asked]:
        """All calls to the model whose turn it is, as far as they go together. What is left of them waits for its next turn."""
        batch: list[Asked] = []
        while self._lines and not batch:
            model = next(iter(self._lines))
            line = self._lines.pop(model)
            while line and len(batch) < self._most and not (batch and (line[0].alone or batch[0].alone)):
                asked = line.popleft()
                if not asked.answer.done():
                    asked.away = True
                    batch.append(asked)
            if line:
                self._lines[model] = line
        return batch

    async def _away(self, batch: list[Asked]) -> None:
        sharing: dict[Call, list[Asked]] = {}
        for asked in batch:
            sharing.setdefault(asked.call, []).append(asked)
        requests, told = [call.request for call in sharing], _told(list(sharing.values()))
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._pool, self._compute, batch[0].call.model, requests, told)
            self._deliver(list(sharing.values()), answers)
        except Exception as error:
            self._failed(batch, error)
        self._free += 1
        self._send()

    def _failed(self, batch: Sequence[Asked], error: Exception) -> None:
        """One call may have broken the whole batch: then each goes again, by itself. What nobody can mend by that is told to all."""
        again = len(batch) > 1 and not isinstance(error, UserError)
        for asked in batch:
            if asked.answer.done():
                continue
            if again:
                asked.away, asked.alone = False, True
                self._lines.setdefault(asked.call.model, deque()).append(asked)
            else:
                asked.answer.set_exception(error)


def _told(sharing: Sequence[Sequence[Asked]]) -> Told | None:
    """Takes what a host says in its thread to the loop, to all who share a call and hear; None where nobody does."""
    listening = [[asked for asked in those if asked.hear is not None] for those in sharing]
    loop = asyncio.get_running_loop()

    def tell(i: int, at: int, token_ids: tuple[int, ...], text: str) -> None:
        for asked in listening[i]:
            loop.call_soon_threadsafe(asked.hear, at, token_ids, text)  # type: ignore[arg-type]

    return tell if any(listening) else None


class _Remote:
    """A model that computes elsewhere; loaded when first asked, and asked from several threads."""

    def __init__(self) -> None:
        self._model: Model | None = None
        self._lock = threading.Lock()

    def __call__(self, model: str, requests: Sequence[Request], told: Told | None) -> Answers:
        with self._lock:
            self._model = self._model or load_model(unseat(model)[1])
        more: dict[str, Any] = {"told": told} if told is not None and getattr(self._model, "streams", False) else {}
        return self._model.generate(requests, **more)
