"""Hosts in Ray: one actor a core, anywhere or on the Ray nodes of a tier.

A model's batch is cut into pieces that go to whichever host is free. A host that dies is replaced and its piece is done again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from aiflow_agents.errors import AIFlowError
from aiflow_agents.models.protocol import Model, Reply, Request
from aiflow_agents.runtime.hosts import Answers, Batches, Bundle, Origins, Shelf, ToldOf
from aiflow_agents.runtime.placement import NOWHERE, Ground, Seat, anywhere, check, ground, unseat

if TYPE_CHECKING:
    from aiflow_agents.runtime.team import Team

PIECE = 256  # requests in one piece: large enough for the engine, small enough to share out
LOOK_S, PATIENCE_S = 1.0, 30.0  # until work goes elsewhere, as the Ray nodes of its tier are gone, or no host starts on them
GIVE_UP_S = 300.0
EVERYWHERE = str({})  # the key of the room whose ground asks for nothing
STARTS = 5  # failed ones in a row, of one host


class StoredShelf(Shelf):
    """A host in Ray, whose payloads lie in the object store of its own node and belong to it: who drives it has references and nothing else.

    (What a call returns belongs to the caller, and comes along with the reply when it has less than 100 kB.)
    """

    def answer(self, model: str, requests: Sequence[Request], held: Sequence[Any]) -> tuple[Answers, Any]:
        """Answers, and a reference to the payloads that came with them, if any did. `held` are references to those that the requests go on from.

        Raises Ray's ObjectLostError when the host that made one of them is gone.
        """
        import ray

        answers, made = self.generate(model, requests, *map(_unpacked, ray.get(list(held))))
        return answers, ray.put(_packed(made)) if made else None


    def answering(self, model: str, requests: Sequence[Request], held: Sequence[Any]) -> Iterator[list[tuple[Any, ...]] | tuple[Answers, Any]]:
        """As `answer`, in steps: lists of what a `Told` would be told, as soon as there is anything; and in the end what `answer` gives."""
        import ray

        bundles, said = [_unpacked(packed) for packed in ray.get(list(held))], SimpleQueue[tuple[Any, ...] | None]()
        with ThreadPoolExecutor(1, "answers") as pool:
            making = pool.submit(self.generate, model, requests, *bundles, told=lambda *what: said.put(what))
            making.add_done_callback(lambda _: said.put(None))
            more = True
            while more:
                batch = [said.get()]
                while not said.empty():
                    batch.append(said.get())
                more = batch[-1] is not None
                if told := [what for what in batch if what is not None]:
                    yield told
            answers, made = making.result()
        yield answers, ray.put(_packed(made)) if made else None


def _packed(bundle: Bundle) -> tuple[dict[str, int], Any]:
    """Lengths by digest, and all bytes in one array: Ray reads and writes arrays in place, and would copy `bytes` into its pickle."""
    import numpy as np

    return {digest: len(coded) for digest, coded in bundle.items()}, np.frombuffer(b"".join(bundle.values()), np.uint8)


def _unpacked(packed: tuple[dict[str, int], Any]) -> Bundle:
    lengths, data = packed
    ends = accumulate(lengths.values())
    return {digest: data[end - length : end].tobytes() for (digest, length), end in zip(lengths.items(), ends, strict=True)}


class RayHosts:
    """One Ray actor a core (or `count`), or with `host_gpus` as many as get that share of a GPU. A Ray that was running before is never shut down.

    A model whose key says where (`placement.seated`) is loaded by hosts on Ray nodes of that tier, any other by all. A host that dies is replaced by
    one in the same place, or anywhere, which `note` is told, where none is left of its tier.
    """

    def __init__(
        self,
        count: int | None = None,
        address: str | None = None,
        load: Callable[[str], Model] | None = None,
        *,
        host_gpus: float = 0.0,
        note: Callable[[str], None] = lambda line: None,
    ):
        import ray

        self._ray, self._load, self._count, self._host_gpus, self._note = ray, load, count, host_gpus, note
        self._started = not ray.is_initialized()
        if self._started:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it would announce its default at every start
            here: dict[str, Any] = {} if address else {"num_cpus": count or _cores(), "include_dashboard": False}
            ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **here)
        self._actor_class = ray.remote(num_cpus=1, max_restarts=0)(StoredShelf)
        self._origins = Origins()
        self._bundles: dict[str, Any] = {}  # digest -> reference to the bundle that holds it
        self._rooms: dict[str, _Room] = {}  # by the options of their ground
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self.restarts = 0
        if not address:
            self.room(NOWHERE)  # they start while the driver prepares its questions

    def check(self, teams: Sequence[Team]) -> None:
        """Raises UserError where a member of these has no place in this cluster."""
        check(teams, self._ray.nodes())

    def room(self, seat: Seat) -> _Room:
        """The hosts of a seat, made when they are first asked for; other ones, where no living Ray node is of its tier."""
        if seat == NOWHERE and (room := self._rooms.get(EVERYWHERE)):  # without asking Ray each time
            return room
        place = ground(seat, self._ray.nodes())
        if place is None:
            return self.elsewhere(f"no Ray node of the tier '{seat.tier}' is left; its work goes on elsewhere")
        return self._room(place, seat)

    def _room(self, place: Ground, seat: Seat) -> _Room:
        key = str(place.options)
        with self._lock:
            if key not in self._rooms:
                room = _Room(seat, place, [])
                for index in range(self._count or place.hosts(self._host_gpus)):
                    room.hosts.append(_Host(f"{place.name} {index}", room))
                    self._start(room.hosts[-1])
                self._rooms[key] = room
            return self._rooms[key]

    def elsewhere(self, why: str) -> _Room:
        """Hosts that run, as they may hold every core that there is; or else new ones anywhere. Says why, once."""
        if why not in self._said:
            self._said.add(why)
            self._note(why)
        working = [room for room in self._rooms.values() if any(host.pid for host in room.hosts)]
        return max(working, key=lambda room: len(room.hosts)) if working else self._room(anywhere(self._ray.nodes()), NOWHERE)

    def lost(self, room: _Room) -> bool:
        """Whether the Ray nodes that a room's hosts need are gone."""
        return ground(room.seat, self._ray.nodes()) is None

    def _start(self, host: _Host) -> None:
        """Start a host, or another one in its place."""
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
        name = f"aiflow {host.name}" + (f", start {host.starts + 1}" if host.starts else "")
        options = {**host.room.ground.options, **({"num_gpus": self._host_gpus} if self._host_gpus else {})}
        host.actor = self._actor_class.options(name=name, runtime_env=environment, **options).remote(self._load)
        host.ready, host.pid, host.since = host.actor.__ray_call__.remote(lambda _: os.getpid()), 0, time.monotonic()
        host.starts += 1

    def replace(self, host: _Host, actor: Any) -> None:
        """An actor that is out of reach, by another; unless another thread has seen it before."""
        with self._lock:
            if host.actor is actor:
                self.restarts += 1
                self._ray.kill(actor)  # one that is only out of reach would keep its core
                self._start(host)

    def generate(self, batches: Batches, told: ToldOf | None = None) -> dict[str, Answers]:
        """Raises AIFlowError when one piece has killed three hosts, and what a host raises. Ctrl-C is noticed within half a second."""
        self._restore([request for requests in batches.values() for request in requests])
        return _Round(self, batches, told).answers()

    def _restore(self, requests: Sequence[Request]) -> None:
        self._origins.restore(requests, self._bundles, self.generate)

    def know(self, model: str, request: Request, reply: Reply) -> None:
        self._origins.note(model, [request], [reply])

    @property
    def at_once(self) -> int:
        return len(self._hosts()) or anywhere(self._ray.nodes()).hosts(self._host_gpus)

    def warm(self, models: Sequence[str]) -> None:
        keys = [unseat(model) for model in models]
        self._ray.get([host.actor.generate.remote(key, []) for seat, key in keys for host in self.room(seat).hosts])

    def forget(self, digests: Iterable[str]) -> None:
        for digest in digests:
            if self._origins.forget(digest):
                self._bundles.pop(digest, None)

    def processes(self) -> list[int]:
        """Process ids of the hosts, for those who want to watch or kill one; those that start are waited for."""
        return self._ray.get([host.ready for host in self._hosts()])

    def _hosts(self) -> list[_Host]:
        return [host for room in self._rooms.values() for host in room.hosts]

    def close(self) -> None:
        for host in self._hosts():
            self._ray.kill(host.actor)
        self._rooms.clear()
        if self._started:
            self._ray.shutdown()


@dataclass(eq=False)
class _Room:
    """Hosts that can stand for one another: they are on the same ground, that of `seat`."""

    seat: Seat
    ground: Ground
    hosts: list[_Host]


@dataclass(eq=False)
class _Host:
    """One actor after another."""

    name: str
    room: _Room
    actor: Any = None
    ready: Any = None  # the reference to its process id
    pid: int = 0  # as soon as it runs
    busy: int = 0  # pieces that it has, of all who ask
    since: float = 0.0
    starts: int = 0
    failed: int = 0  # starts in a row of which nothing came


class _Piece(NamedTuple):
    """Requests `start` to `stop` of a model's batch."""

    model: str
    start: int
    stop: int


class _Round:
    """One call of `generate`: the pieces that wait in each room, and the hosts that work at one or start (None)."""

    def __init__(self, hosts: RayHosts, batches: Batches, told: ToldOf | None = None):
        self.of, self.batches, self.told, self.ray = hosts, batches, told, hosts._ray
        self.found: dict[str, list[Any]] = {model: [None] * len(requests) for model, requests in batches.items()}
        self.waiting: dict[_Room, deque[_Piece]] = {}
        self.idle: dict[_Room, deque[_Host]] = {}
        self.flying: dict[Any, tuple[_Host, Any, _Piece | None]] = {}
        self.deaths: Counter[_Piece] = Counter()
        for model, requests in batches.items():
            self._cut(model, len(requests), hosts.room(unseat(model)[0]))

    def answers(self) -> dict[str, Answers]:
        try:
            self._run()
        finally:
            for host, _, piece in self.flying.values():
                host.busy -= piece is not None
        return self.found

    def _run(self) -> None:
        while any(self.waiting.values()) or any(piece for _, _, piece in self.flying.values()):
            for room, pieces in self.waiting.items():
                while pieces and self.idle[room]:
                    self._send(self.idle[room].popleft(), pieces.popleft())
            done, _ = self.ray.wait(list(self.flying), timeout=0.5)
            for reference in done:
                self._take(reference, *self.flying.pop(reference))
            for room in list(self.waiting):
                self._relieve(room)

    def _cut(self, model: str, requests: int, room: _Room) -> None:
        if room not in self.waiting:
            self.waiting[room], self.idle[room] = deque(), deque()
            for host in sorted(room.hosts, key=lambda host: host.busy):
                self._await(host)
        free = sum(host.busy == 0 for host in room.hosts)  # where all have work, what waits is not cut: one host computes it in fewer steps
        size = _piece(requests, free or 1)
        self.waiting[room].extend(_Piece(model, start, min(start + size, requests)) for start in range(0, requests, size))

    def _await(self, host: _Host) -> None:
        if host.pid:
            self.idle[host.room].append(host)
        else:
            self.flying[host.ready] = host, host.actor, None

    def _send(self, host: _Host, piece: _Piece) -> None:
        part = self._part(piece)
        # the bundles go from host to host: what comes here is answers and references
        needed = dict.fromkeys(self.of._bundles[parcel.digest] for request in part for parcel in request.parcels)
        actor = host.actor
        ask = actor.answer if self.told is None else actor.answering.options(num_returns="streaming")
        self.flying[ask.remote(unseat(piece.model)[1], part, list(needed))] = host, actor, piece
        host.busy += 1

    def _part(self, piece: _Piece) -> list[Request]:
        return list(self.batches[piece.model][piece.start : piece.stop])

    def _take(self, reference: Any, host: _Host, actor: Any, piece: _Piece | None) -> None:
        """What a host has made, or that it runs; where it died, another one starts in its place."""
        streams = piece is not None and self.told is not None
        host.busy -= piece is not None
        try:
            made = self.ray.get(next(reference) if streams else reference)
            if streams and isinstance(made, list):  # and not yet all
                self._tell(piece, made)
                self.flying[reference] = host, actor, piece
                host.busy += 1
                return
        except self.ray.exceptions.ObjectLostError:  # a bundle went with the host that held it
            assert piece is not None
            for request in self._part(piece):
                for parcel in request.parcels:
                    self.of._bundles.pop(parcel.digest, None)
            self.of._restore(self._part(piece))
            self.waiting[host.room].appendleft(piece)
        except self.ray.exceptions.RayActorError as error:
            self._died(host, actor, piece, error)
        except self.ray.exceptions.RayTaskError as error:
            # ours are one line to the user; Ray would put the host's traceback into it
            raise (error.cause if isinstance(error.cause, AIFlowError) else error.as_instanceof_cause()) from None
        else:
            if piece is not None:
                self._keep(piece, *made)
            elif host.actor is actor:
                host.pid, host.failed = made, 0
        self._await(host)

    def _tell(self, piece: _Piece | None, told: Sequence[tuple[Any, ...]]) -> None:
        assert piece is not None and self.told is not None
        for i, *what in told:
            self.told(piece.model, piece.start + i, *what)

    def _keep(self, piece: _Piece, made: Answers, bundle: Any) -> None:
        self.found[piece.model][piece.start : piece.stop] = made
        self.of._origins.note(piece.model, self._part(piece), made)
        self.of._bundles.update({reply.parcel.digest: bundle for reply in made if isinstance(reply, Reply) and reply.parcel is not None})

    def _died(self, host: _Host, actor: Any, piece: _Piece | None, error: Exception) -> None:
        if piece is not None:
            self.waiting[host.room].appendleft(piece)
            self.deaths[piece] += 1
            if self.deaths[piece] == 3:
                raise AIFlowError(f"three hosts died over the same {piece.stop - piece.start} calls to {unseat(piece.model)[1]}: {error}") from error
        else:
            host.failed += 1
            if host.failed == STARTS:
                raise AIFlowError(f"host {host.name} did not start, {STARTS} times: {error}") from error
        self.of.replace(host, actor)

    def _relieve(self, room: _Room) -> None:
        """Where all hosts of a room have been starting for long, as its Ray nodes are gone or full, its pieces go elsewhere."""
        if not self.waiting[room] or any(host.pid for host in room.hosts):
            return
        waited_s = time.monotonic() - max(host.since for host in room.hosts)
        if waited_s > (LOOK_S if room.seat != NOWHERE and self.of.lost(room) else PATIENCE_S if room.ground.options else GIVE_UP_S):
            if not room.ground.options:
                raise AIFlowError(f"no host could start for {waited_s:.0f} s: the Ray cluster has no free core; `ray status` says who holds them")
            pieces, self.waiting[room] = self.waiting[room], deque()
            other = self.of.elsewhere(f"no host can start on a Ray node of '{room.ground.name}'; its work goes on elsewhere")
            self._cut("", 0, other)
            self.waiting[other].extend(pieces)


def _piece(requests: int, hosts: int) -> int:
    """Small batches are not worth cutting; large ones go in pieces of `PIECE`; between them every host gets its share."""
    return PIECE if requests >= PIECE * hosts else max(32, -(-requests // hosts))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
