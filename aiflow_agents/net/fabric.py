"""The nodes and links of one world in use: who waits for whom, how long, and for how many joules.

A message is stored and forwarded: on each hop it waits its turn, is sent at the link's rate, then travels for the link's latency.

    turn   |--waits--|==sent: bytes * 8 / rate==|--latency, jitter, resends--|> next hop
    link   ==before==|==========mine============|==next one===

A link that goes away (`net.faults`) takes with it what is on the air. When it is back, that is sent again before anything else, and billed again:

    turn   |==sent==X            |==what had not arrived==|--latency, jitter, resends--|> next hop
    link   =========X            |=========mine===========|==next one===

Time is the running loop's, virtual seconds of the current world on a `WorldLoop`, unless another `Clock` is given. One timer per hop and one per job
on a node; no tasks.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ..errors import Unreachable
from . import faults
from .clock import sleep_until
from .network import Hop, Network

Book = Callable[[Hop, float, int], None]  # told of each link that takes a message: (hop, joules, bytes)
Lost = Callable[[Unreachable], object]
FRAME_BYTES = 1500  # what is lost and sent again at once: an Ethernet frame
_MASK = (1 << 64) - 1


class Clock(Protocol):
    """What a network needs of time: seconds of one world, and to be called when a message has crossed a link. Every event loop is one."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> object: ...


Onward = tuple[Clock, Sequence[Hop], int, int, int, Callable[[], object], Book | None, Lost | None]  # what `Fabric._forward` takes


class _Radio:
    __slots__ = ("awake_until",)

    def __init__(self) -> None:
        self.awake_until = 0.0


class _Way:
    """One direction of a link. `free_at`: in each spell in which it is there, when it has sent what it was given so far."""

    __slots__ = ("free_at", "last_arrival", "radio")

    def __init__(self, hop: Hop, radio: _Radio):
        self.free_at = [opens for opens, _ in hop.open]
        self.last_arrival = 0.0
        self.radio = radio


class _Station:
    """A node's slots and the line before them."""

    __slots__ = ("free", "line")

    def __init__(self, slots: int):
        self.free = slots
        self.line: deque[asyncio.Future[None]] = deque()

    def release(self) -> None:
        """The slot goes to the next one in line, who may have left it."""
        while self.line:
            turn = self.line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


class Fabric:
    """A network as one world uses it. `seed` decides jitter and loss, together with the number of the message in this world."""

    __slots__ = ("network", "seed", "_clock", "_key", "_sent", "_ways", "_radios", "_stations")

    def __init__(self, network: Network, *, seed: int = 0, clock: Clock | None = None):
        self.network = network
        self._clock = clock  # None: the running loop
        self.seed = seed
        self._key = _mix(_mix(seed & _MASK) ^ 1)
        self._sent = 0
        self._ways: dict[tuple[str, str], _Way] = {}
        self._radios: dict[tuple[str, str], _Radio] = {}
        self._stations: dict[str, _Station] = {}

    def send(
        self,
        src: str,
        dst: str,
        nbytes: int,
        arrived: Callable[[], object],
        *,
        book: Callable[[Hop, float, int], None] | None = None,
        lost: Callable[[Unreachable], object] | None = None,
    ) -> None:
        """Send `nbytes` from one node to another, and call `arrived()` when the last of them is there. It goes all the way, whoever waits for it.

        `book(hop, energy_j, sent_bytes)` is called as each link takes the message. On one node nothing moves or costs, and `arrived` is called
        before this returns. `lost(error)` is called instead when a node or a link on its way is gone for good before it has arrived.

        Raises NoRoute, UnknownName, and Unreachable where one is gone for good already.
        """
        if nbytes < 0:
            raise ValueError(f"a message of {nbytes} bytes")
        clock: Clock = self._clock or asyncio.get_running_loop()
        route = self._route(src, dst, clock)
        self._sent += bool(route)
        self._forward(clock, route, 0, nbytes, self._sent, arrived, book, lost)

    def weighs(self, src: str, dst: str, nbytes: int) -> int:
        """The bytes that `nbytes` sent now would put on all links of their way together, what has to be sent again included: at most, where a link
        goes away while they may be on it. Raises as `send` does."""
        clock: Clock = self._clock or asyncio.get_running_loop()
        most, now = 0, clock.time()
        for position, hop in enumerate(self._route(src, dst, clock)):
            again, late_s = self._luck(hop, nbytes, self._sent + 1, position)
            in_flight = math.ceil((hop.latency_s + late_s) * hop.rate_bps / 8) + FRAME_BYTES
            cuts = sum(closes > now for _, closes in hop.open[:-1])
            most += nbytes + again + cuts * min(nbytes + again, in_flight)
        return most

    def _route(self, src: str, dst: str, clock: Clock) -> Sequence[Hop]:
        """The way that a message goes which sets out now."""
        route = self.network.route(src, dst)
        for hop in route:
            if hop.lost_s < math.inf and hop.lost_s <= clock.time():
                raise hop.unreachable()
        return route

    def _forward(
        self,
        clock: Clock,
        route: Sequence[Hop],
        position: int,
        nbytes: int,
        number: int,
        arrived: Callable[[], object],
        book: Book | None,
        lost: Lost | None,
    ) -> None:
        """The message is where hop `position` of its route begins."""
        if position == len(route):
            arrived()
            return
        hop, now = route[position], clock.time()
        arrival, energy_j, sent_bytes = self._take(hop, nbytes, now, number, position)
        if book is not None:
            book(hop, energy_j, sent_bytes)
        if arrival < math.inf:
            self._cross(hop, arrival, sent_bytes, (clock, route, position + 1, nbytes, number, arrived, book, lost))
        elif lost is not None:
            clock.call_at(max(now, hop.lost_s), lost, hop.unreachable())

    def _cross(self, hop: Hop, arrival: float, sent_bytes: int, onward: Onward) -> None:
        """Let `_forward(*onward)` be called when the message has crossed this link."""
        onward[0].call_at(arrival, self._forward, *onward)

    async def occupy(
        self, node: str, seconds: float, *, cancel_delay_s: float | None = None, book: Callable[[float], None] | None = None,
        begun: Callable[[], None] | None = None,
    ) -> float:  # fmt: skip
        """Hold one of a node's slots for `seconds`, first come first served; give the seconds waited for it.

        `begun()` is called when the slot is there; `book(used_s)` exactly once, with the seconds to be billed. A job cancelled in line leaves it and
        used 0. A running one holds its slot until the cancel reaches the node: `cancel_delay_s` later, by default the way's latency from home, but
        no longer than it would have run; to the end where the node cannot cancel. The cancelled caller does not wait for that.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a job of {seconds} seconds")
        place = self.network.node(node)
        machine = place.machine or node
        station = self._stations.get(machine)
        if station is None:
            station = self._stations[machine] = _Station(place.slots)
        loop = asyncio.get_running_loop()
        asked = began = loop.time()
        dead, dies_s = self.network.dead.get(node, ()), math.inf
        if dead:
            self.alive(node, asked, book)
            dies_s = faults.after(dead, asked)
        if station.free:
            station.free -= 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            station.line.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # the slot was given at the very instant of the cancel
                    station.release()
                if book is not None:
                    book(0.0)
                raise
            began = loop.time()
        if began >= dies_s:  # whoever held the slot died, and so does the whole line
            station.release()
            if book is not None:
                book(0.0)
            raise died(node, dies_s)
        if begun is not None:
            begun()
        try:
            if seconds:
                await sleep_until(min(began + seconds, dies_s))
        except asyncio.CancelledError:
            if not place.cancels:
                cancel_delay_s = seconds
            elif cancel_delay_s is None:
                cancel_delay_s = self.network.latency_s(self.network.home, node)
            used_s = min(seconds, loop.time() - began + cancel_delay_s, dies_s - began)
            loop.call_at(began + used_s, station.release)
            if book is not None:
                book(used_s)
            raise
        station.release()
        cut = began + seconds > dies_s
        if book is not None:
            book(dies_s - began if cut else seconds)
        if cut:
            raise died(node, dies_s)
        return began - asked

    def alive(self, node: str, now: float, book: Callable[[float], None] | None = None) -> None:
        """Raises Unreachable where a node is dead now."""
        spell = faults.at(self.network.dead.get(node, ()), now)
        if spell is not None:
            if book is not None:
                book(0.0)
            raise died(node, spell[0])

    def deaths(self, node: str, now: float) -> int:
        """How often a node has died so far."""
        return sum(begins <= now for begins, _ in self.network.dead.get(node, ()))

    def _take(self, hop: Hop, nbytes: int, now: float, number: int, position: int) -> tuple[float, float, int]:
        """A link takes a message: (time of arrival, joules, bytes sent). It arrives at inf where the link goes away for good before.

        Arrivals keep the order of sending, whatever the jitter. Tail energy is counted once per radio and second: a message that finds the
        link's radio still awake from an earlier one, either way, pays only for how much longer it stays awake. Radios begin asleep.

        Where the link goes away, whole frames that had arrived by then are not sent again; what chance has in store for the message stays the same.
        """
        way = self._ways.get((hop.src, hop.dst))
        if way is None:
            way = self._ways[hop.src, hop.dst] = _Way(hop, self._radios.setdefault(hop.link, _Radio()))
        again, late_s = self._luck(hop, nbytes, number, position)
        left, delay_s = nbytes + again, hop.latency_s + late_s
        radio, joules, sent_bytes = hop.radio, 0.0, 0
        for spell, (_, closes) in enumerate(hop.open):
            begin = max(now, way.free_at[spell])
            if begin >= closes:
                continue
            on_air, sending_s = left, left * 8 / hop.rate_bps
            cut = begin + sending_s + delay_s > closes
            if cut:
                there = int(max(0.0, closes - delay_s - begin) * hop.rate_bps / 8) // FRAME_BYTES * FRAME_BYTES
                if begin + sending_s > closes:
                    sending_s = closes - begin
                    on_air = min(left, int(sending_s * hop.rate_bps / 8))
                left = max(0, left - there)
            way.free_at[spell] = end = begin + sending_s
            sent_bytes += on_air
            joules += radio.base_w * sending_s + radio.j_per_byte * on_air
            if radio.tail_s:
                joules += radio.tail_w * max(0.0, end + radio.tail_s - max(way.radio.awake_until, end))
            way.radio.awake_until = max(way.radio.awake_until, end + radio.tail_s)
            if not cut:
                way.last_arrival = arrival = max(end + delay_s, way.last_arrival)
                return arrival, joules, sent_bytes
        return math.inf, joules, sent_bytes

    def _luck(self, hop: Hop, nbytes: int, number: int, position: int) -> tuple[int, float]:
        """(bytes sent again, seconds late) of a message on one link: they depend on the seed and on which message it is, not on when it comes."""
        if not (hop.jitter_s or hop.loss):
            return 0, 0.0
        uniform = _uniforms(self._key ^ _mix(number << 8 | position))
        late_s, again = -hop.jitter_s * math.log1p(-next(uniform)), 0
        if hop.loss:
            again, rounds = _resent(nbytes, hop.loss, uniform)
            late_s += rounds * 2 * hop.latency_s  # what is missing is asked for, and sent again
        return again, late_s


def died(node: str, at_s: float) -> Unreachable:
    """What is said of a call to a node that has died then."""
    return Unreachable(f"{node} died after {at_s:g} s", node)


def _resent(nbytes: int, loss: float, uniform: Iterator[float]) -> tuple[int, int]:
    """(bytes sent again, rounds of asking for them): each frame is lost independently with probability `loss`, again and again."""
    frame_bytes = min(FRAME_BYTES, nbytes)
    missing, again, rounds = math.ceil(nbytes / FRAME_BYTES), 0, 0
    log_kept = math.log1p(-loss)
    while missing:
        lost, frame = 0, _skip(uniform, log_kept)
        while frame < missing:
            lost += 1
            frame += 1 + _skip(uniform, log_kept)
        missing = lost
        again += lost
        rounds += lost > 0
    return again * frame_bytes, rounds


def _skip(uniform: Iterator[float], log_kept: float) -> float:
    """How many frames get through before the next one is lost: geometric, so that only losses cost a draw."""
    return math.log1p(-next(uniform)) // log_kept


def _uniforms(key: int) -> Iterator[float]:
    """Numbers in [0, 1) that depend on the key alone (SplitMix64, Steele et al. 2014): no state to keep, nothing shared between messages."""
    state = _mix(key)
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        yield (_mix(state) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
