"""Which nodes there are and how they are joined, read from a YAML file in which every preset number says where it comes from.

phone --up--> edge --up--> cloud        `up` is from a link's `a` to its `b`, `down` the way back
      <-down-      <-down-
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..config import load_yaml
from ..errors import NoRoute, UnknownName, Unreachable, UserError
from . import faults
from .faults import ALWAYS, Fault, Spell

Tier = Literal["device", "edge", "cloud"]
TIERS: tuple[Tier, ...] = ("device", "edge", "cloud")


@dataclass(frozen=True, slots=True)
class Node:
    """A place that computes. `flops_rate` and `bandwidth_Bps` are what a decoder really gets, not the datasheet's peak, where the file says so."""

    name: str
    tier: Tier
    flops_rate: float  # FLOP/s
    bandwidth_Bps: float  # bytes of memory read per second
    overhead_s: float = 0.0  # per step: one pass over the prompt, or one generated token
    memory_bytes: float = float("inf")
    slots: int = 1  # calls that run at once, each at the full rate
    power_w: float = 0.0  # drawn with all slots busy, beyond what it draws idle; a slot is billed its share
    call_s: float = 0.0  # per call, whatever it asks for: what serves the model (its queue, its tokenizer)
    machine: str = ""  # nodes that name the same one share its slots; by default each is one of its own
    cancels: bool = True  # whether a call ends when it is given up; else it holds its slot until it is done


@dataclass(frozen=True, slots=True)
class Radio:
    """What moving bytes one way costs: `base_w * t + j_per_byte * bytes`, and `tail_w` for the `tail_s` that it stays awake afterwards."""

    base_w: float = 0.0
    j_per_byte: float = 0.0
    tail_w: float = 0.0
    tail_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Link:
    """Joins `a` and `b`. Each way is a queue of its own; `send` is the energy of a -> b, `receive` of b -> a (the radio of `a`)."""

    a: str
    b: str
    up_bps: float  # bits per second, a -> b
    down_bps: float  # b -> a
    latency_s: float = 0.0  # one way, once the last bit is sent
    jitter_s: float = 0.0  # mean of an exponential delay on top
    loss: float = 0.0  # share of frames that must be sent again
    send: Radio = Radio()
    receive: Radio = Radio()


@dataclass(frozen=True, slots=True)
class Hop:
    """One link, one way."""

    src: str
    dst: str
    rate_bps: float
    latency_s: float
    jitter_s: float
    loss: float
    radio: Radio
    link: tuple[str, str]  # the (a, b) of its link: both ways share one radio
    open: tuple[Spell, ...] = ALWAYS  # when it is there, and so are both of its ends
    lost_s: float = math.inf  # from when on it, or one of its ends, is gone for good
    lost: tuple[str, str] = ("", "")  # why, and which of its ends has died

    def unreachable(self) -> Unreachable:
        """What is said of a message that can never cross."""
        return Unreachable(*self.lost)


@dataclass(frozen=True)
class Network:
    """The nodes and links of a file, the node where questions arise, and what goes wrong (`net.faults`).

    `figures["nodes.phone.flops_rate"]` tells where a number comes from. `links` are as they are without faults: these show in the hops of a route,
    and in `dead`, when which node is not there. Shared by all worlds and never changed; routes are remembered.
    """

    name: str
    nodes: Mapping[str, Node]
    links: tuple[Link, ...]
    home: str
    description: str = ""
    file: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    dead: Mapping[str, tuple[Spell, ...]] = field(default_factory=dict, init=False, compare=False)
    _routes: dict[tuple[str, str], tuple[Hop, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _hops: dict[str, list[Hop]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in (self.home, *(end for link in self.links for end in (link.a, link.b))):
            self.node(name)
        deaths: dict[str, list[Fault]] = {}
        strikes: dict[tuple[str, str], list[Fault]] = {}
        for fault in self.faults:
            if fault.what == "dies":
                for name in fault.nodes(self.nodes, self.home):
                    deaths.setdefault(name, []).append(fault)
            else:
                for link in fault.links(self.nodes, self.links):
                    strikes.setdefault((link.a, link.b), []).append(fault)
        object.__setattr__(self, "dead", {name: faults.spells(those) for name, those in deaths.items()})
        for link in self.links:
            for hop in _both_ways(link, strikes.get((link.a, link.b), ()), self.dead):
                self._hops.setdefault(hop.src, []).append(hop)

    @classmethod
    def load(cls, path: str | Path) -> Network:
        """Read a network's file. Raises ConfigError with file, line, key and what was expected."""
        path = Path(path)
        read = load_yaml(path, NetworkFile)
        figures: dict[str, Figure] = {}
        nodes = {name: Node(name=name, **_numbers(node, f"nodes.{name}", figures)) for name, node in read.nodes.items()}
        links = tuple(Link(**_numbers(link, f"links.{link.a}-{link.b}", figures)) for link in read.links)
        return cls(read.name or path.stem, nodes, links, read.home, read.description, str(path), figures, faults.parse(read.faults))

    def with_faults(self, *more: str | Fault) -> Network:
        """The same network, in which these go wrong too, such as `"phone-edge down 1.0 2.0"` and `"cloud dies 2.0"`: see `net.faults`.

        What is told twice is one. Raises UserError, in one line, for what cannot be read and for what strikes nothing.
        """
        return replace(self, faults=faults.parse([*self.faults, *more]))

    @cached_property
    def noisy(self) -> bool:
        """Whether chance has a hand in it: jitter or loss, its own or of a fault."""
        return any(hop.jitter_s or hop.loss for hops in self._hops.values() for hop in hops)

    def node(self, name: str) -> Node:
        """Raises UnknownName, with the nearest names."""
        try:
            return self.nodes[name]
        except KeyError:
            raise UnknownName("node", name, self.nodes) from None

    def tier(self, tier: str) -> list[str]:
        """The names of a tier's nodes, in the order of the file. Raises UnknownName for a tier that does not exist."""
        if tier not in TIERS:
            raise UnknownName("tier", tier, TIERS)
        return [name for name, node in self.nodes.items() if node.tier == tier]

    def route(self, src: str, dst: str) -> tuple[Hop, ...]:
        """The links from `src` to `dst`: least latency, then fewest hops, then the order of the file. Empty when they are one node.

        Raises UnknownName, and NoRoute when no links lead there.
        """
        try:
            return self._routes[src, dst]
        except KeyError:
            found = self._shortest(self.node(src).name, self.node(dst).name)
            self._routes[src, dst] = found
            return found

    def latency_s(self, src: str, dst: str) -> float:
        """One way, for a message without length."""
        return sum(hop.latency_s for hop in self.route(src, dst))

    def _shortest(self, src: str, dst: str) -> tuple[Hop, ...]:
        """Dijkstra over (latency, hops)."""
        heap: list[tuple[float, int, int, str, tuple[Hop, ...]]] = [(0.0, 0, 0, src, ())]
        done: set[str] = set()
        pushed = 0
        while heap:
            latency_s, hops, _, here, way = heapq.heappop(heap)
            if here == dst:
                return way
            if here in done:
                continue
            done.add(here)
            for hop in self._hops.get(here, ()):
                if hop.dst not in done:
                    pushed += 1
                    heapq.heappush(heap, (latency_s + hop.latency_s, hops + 1, pushed, hop.dst, (*way, hop)))
        where = f"network '{self.name}'" + (f" ({self.file})" if self.file else "")
        raise NoRoute(f"no route from '{src}' to '{dst}' in {where}; join them with an entry under `links`")


def _both_ways(link: Link, struck: Iterable[Fault], dead: Mapping[str, tuple[Spell, ...]]) -> tuple[Hop, Hop]:
    """A link each way, as faults leave it."""
    down = faults.spells(fault for fault in struck if fault.what == "down")
    kept = math.prod(1 - fault.value for fault in struck if fault.what == "loss")
    ends = [(end, dead.get(end, ())) for end in (link.a, link.b)]
    losses = [(faults.for_good(spells), f"{end} died after {faults.for_good(spells):g} s, for good", end) for end, spells in ends]
    losses.append((faults.for_good(down), f"the link {link.a}-{link.b} went away after {faults.for_good(down):g} s, for good", ""))
    lost_s, *lost = min(losses, key=lambda loss: loss[0])
    up = Hop(
        link.a,
        link.b,
        link.up_bps,
        link.latency_s,
        link.jitter_s + sum(fault.value for fault in struck if fault.what == "jitter"),
        link.loss + (1 - link.loss) * (1 - kept),  # so that one without a fault keeps its last bit
        link.send,
        (link.a, link.b),
        faults.between(faults.merged([*down, *(spell for _, spells in ends for spell in spells)])),
        lost_s,
        (lost[0], lost[1]),
    )
    return up, replace(up, src=link.b, dst=link.a, rate_bps=link.down_bps, radio=link.receive)


# --- the file ---


def _fault(text: str, info: ValidationInfo) -> str:
    try:
        fault = Fault.parse(text)
        if all(known in info.data for known in ("nodes", "home", "links")):  # else something else is wrong, and is said instead
            fault.check(info.data["nodes"], info.data["links"], info.data["home"])
    except UserError as error:
        raise ValueError(str(error)) from None
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Figure(_Strict):
    """A number and where it comes from. A plain number in a file counts as `confidence: unstated`."""

    value: float = Field(allow_inf_nan=False)
    source: str = ""
    date: str = ""
    confidence: Literal["high", "medium", "low", "unstated"] = "unstated"
    derived: str = Field(default="", description="how the value follows from its source")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        if isinstance(given, bool) or not isinstance(given, int | float):
            return given
        return {"value": given}


class Positive(Figure):
    value: float = Field(gt=0, allow_inf_nan=False)


class NotNegative(Figure):
    value: float = Field(ge=0, allow_inf_nan=False)


class Count(Figure):
    value: int = Field(ge=1)  # type: ignore[assignment]


class Share(Figure):
    value: float = Field(ge=0, lt=1, allow_inf_nan=False)


class RadioFile(_Strict):
    base_w: NotNegative | None = None
    j_per_byte: NotNegative | None = None
    tail_w: NotNegative | None = None
    tail_s: NotNegative | None = None


class NodeFile(_Strict):
    description: str = ""
    tier: Tier
    flops_rate: Positive = Field(description="FLOP/s")
    bandwidth_Bps: Positive = Field(description="bytes of memory per second")
    overhead_s: NotNegative | None = None
    memory_bytes: Positive | None = None
    slots: Count | None = None
    call_s: NotNegative | None = None
    machine: str = ""
    cancels: bool = True
    power_w: NotNegative | None = None


class LinkFile(_Strict):
    description: str = ""
    a: str = Field(description="a node's name")
    b: str = Field(description="a node's name")
    up_bps: Positive = Field(description="bits per second from a to b")
    down_bps: Positive = Field(description="bits per second from b to a")
    latency_s: NotNegative = Field(description="one way, in seconds")
    jitter_s: NotNegative | None = None
    loss: Share | None = None
    send: RadioFile | None = None
    receive: RadioFile | None = None


class NetworkFile(_Strict):
    """What stands in topologies/networks/*.yaml."""

    name: str = ""
    description: str = ""
    nodes: dict[str, NodeFile] = Field(min_length=1)
    home: str = Field(description="the node where questions arise and answers must arrive")
    links: list[LinkFile] = []
    faults: list[Annotated[str, AfterValidator(_fault)]] = []

    @field_validator("home")
    @classmethod
    def _home_is_a_node(cls, home: str, info: ValidationInfo) -> str:
        _must_be_node(home, info)
        return home

    @field_validator("links")
    @classmethod
    def _links_join_nodes(cls, links: list[LinkFile], info: ValidationInfo) -> list[LinkFile]:
        seen: set[frozenset[str]] = set()
        for link in links:
            for end in (link.a, link.b):
                _must_be_node(end, info)
            pair = frozenset((link.a, link.b))
            if len(pair) == 1:
                raise ValueError(f"a link from '{link.a}' to itself; expected two different nodes")
            if pair in seen:
                raise ValueError(f"two links between '{link.a}' and '{link.b}'; expected one, with its up_bps and down_bps")
            seen.add(pair)
        return links


def _must_be_node(name: str, info: ValidationInfo) -> None:
    known: Iterable[str] | None = info.data.get("nodes")
    if known is not None and name not in known:  # None: the nodes are wrong themselves, and that is said instead
        raise ValueError(str(UnknownName("node", name, known)))


def _numbers(part: BaseModel, where: str, figures: dict[str, Figure]) -> dict[str, Any]:
    """The fields of a part of the file as plain values; the figures behind them are filed under their place."""
    values: dict[str, Any] = {}
    for key in type(part).model_fields:
        value = getattr(part, key)
        if value is None or key == "description":
            continue
        if isinstance(value, RadioFile):
            values[key] = Radio(**_numbers(value, f"{where}.{key}", figures))
        elif isinstance(value, Figure):
            figures[f"{where}.{key}"] = value
            values[key] = value.value
        else:
            values[key] = value
    return values
