"""What goes wrong, and when: links that go away, nodes that die, more loss, more jitter. Seconds count from when the question arose.

    phone-edge down 1.0 2.0     the link is away from second 1 on, both ways, for 2 s; without the last number for good
    cloud dies 2.0              the node is dead from second 2 on, for good; `cloud dies 2.0 1.5`: for 1.5 s
    phone-edge loss 0.05        of the frames that got through so far, 5 % are lost
    edge-cloud jitter 0.02      messages are 0.02 s later in the mean, on top of what the link has itself

A link is named by its ends, in either order. An end, and what dies, is a node, or a tier for all its nodes; `any` is every node, and as a link every
link. A node's name comes before a tier's.

What is on the air when a link goes away is sent again when it is back, and billed again; whole frames that had arrived are not. Routes stay what they
are. A node's links are away while it is dead, and what runs on it then, or is asked of it, fails; what it had read it has to read again. Who waits
for it hears of its death at once. The home never dies: nobody would be there to ask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, get_args

from ..errors import UserError

What = Literal["down", "dies", "loss", "jitter"]
Spell = tuple[float, float]  # from when until when, without that instant; until may be inf
ANY = "any"
FOR_GOOD = math.inf
ALWAYS: tuple[Spell, ...] = ((0.0, math.inf),)
_FORMS: dict[str, str] = {
    "down": "LINK down FROM [FOR], such as 'phone-edge down 1.0 2.0'",
    "dies": "NODE dies AT [FOR], such as 'cloud dies 2.0'",
    "loss": "LINK loss SHARE, such as 'phone-edge loss 0.05'",
    "jitter": "LINK jitter SECONDS, such as 'edge-cloud jitter 0.02'",
}


class HasTier(Protocol):
    """A node, as far as faults need to know it."""

    @property
    def tier(self) -> str: ...


class HasEnds(Protocol):
    """A link, as far as faults need to know it."""

    @property
    def a(self) -> str: ...
    @property
    def b(self) -> str: ...


L = TypeVar("L", bound=HasEnds)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong at `where`. `value`: from which second on (`lasts`: how long), or the share of frames lost, or seconds of jitter."""

    where: str
    what: What
    value: float
    lasts: float = FOR_GOOD

    @classmethod
    def parse(cls, text: str) -> Fault:
        """`phone-edge down 1.0 2.0`. Raises UserError, in one line that says what was expected."""
        where, what, *numbers = words if len(words := text.split()) >= 2 else ("", "")
        if what not in get_args(What):
            near = f"'{what}' is none of {', '.join(get_args(What))}; " if what else ""
            raise UserError(f"fault '{text}': {near}expected WHERE WHAT NUMBER, such as 'phone-edge down 1.0 2.0' or 'cloud dies 2.0'")
        lasting = what in ("down", "dies")
        values = [_number(word) for word in numbers]
        if not 1 <= len(values) <= 1 + lasting or any(value is None or value < 0 for value in values) or lasting and values[1:] == [0.0]:
            wanted = "seconds from 0 on, and for how many of them" if lasting else "a number from 0 on"
            raise UserError(f"fault '{text}': expected {_FORMS[what]}: {wanted}")
        if what == "loss" and not values[0] < 1:  # type: ignore[operator]
            raise UserError(f"fault '{text}': {values[0]:g} is no share of what is sent; expected {_FORMS[what]}: less than 1")
        return cls(where, what, *values)  # type: ignore[arg-type]

    @property
    def spell(self) -> Spell:
        """From when until when a link is away, or a node dead."""
        return self.value, self.value + self.lasts

    def nodes(self, nodes: Mapping[str, HasTier], home: str) -> list[str]:
        """The names of those that die. Raises UserError where there are none, or the home is among them."""
        found = [name for name, node in nodes.items() if _means(self.where, name, nodes)]
        if not found:
            raise UserError(f"fault '{self}': no node or tier '{self.where}'; expected {_one_of([*nodes, *_tiers(nodes)])}")
        if home in found:
            which = f"'{home}' is the home" if self.where == home else f"'{self.where}' includes the home, '{home}'"
            raise UserError(f"fault '{self}': {which}, where the question arises and its answer must arrive; name other nodes")
        return found

    def links(self, nodes: Mapping[str, HasTier], links: Sequence[L]) -> list[L]:
        """The links that are struck. Raises UserError where there are none."""
        parts = self.where.split("-")
        ends = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]  # a name may have a hyphen too
        if self.where == ANY:
            ends.append((ANY, ANY))

        def joins(link: HasEnds, one: str, other: str) -> bool:
            return _means(one, link.a, nodes) and _means(other, link.b, nodes)

        found = [link for link in links if any(joins(link, one, other) or joins(link, other, one) for one, other in ends)]
        if not found:
            there = [*(f"{link.a}-{link.b}" for link in links), "two tiers such as edge-cloud", ANY]
            raise UserError(f"fault '{self}': no link '{self.where}'; expected {_one_of(there)}")
        return found

    def check(self, nodes: Mapping[str, HasTier], links: Sequence[HasEnds], home: str) -> None:
        """Raises UserError where this strikes nothing."""
        if self.what == "dies":
            self.nodes(nodes, home)
        else:
            self.links(nodes, links)

    def __str__(self) -> str:
        """The text that it is read from."""
        return f"{self.where} {self.what} {float(self.value)!r}" + ("" if self.lasts == FOR_GOOD else f" {float(self.lasts)!r}")


def parse(faults: Iterable[str | Fault]) -> tuple[Fault, ...]:
    """Faults, each as it is or as a text; what is told twice is one. Raises UserError."""
    if isinstance(faults, str):
        raise UserError(f"faults are a list of texts, not one text: give [{faults!r}]")
    return tuple(dict.fromkeys(fault if isinstance(fault, Fault) else Fault.parse(fault) for fault in faults))


def spells(faults: Iterable[Fault]) -> tuple[Spell, ...]:
    """When at least one of these lasts: in order, apart from each other."""
    return merged([fault.spell for fault in faults])


def merged(given: Iterable[Spell]) -> tuple[Spell, ...]:
    """The same time in spells that are in order and apart from each other."""
    found: list[Spell] = []
    for begins, ends in sorted(given):
        if found and begins <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], ends)
        else:
            found.append((begins, ends))
    return tuple(found)


def between(away: Sequence[Spell]) -> tuple[Spell, ...]:
    """The time outside of spells that are in order and apart."""
    edges = [0.0, *(second for spell in away for second in spell), math.inf]
    return tuple((begins, ends) for begins, ends in zip(edges[::2], edges[1::2], strict=True) if begins < ends)


def at(dead: Sequence[Spell], now: float) -> Spell | None:
    """The spell that this instant is in."""
    return next((spell for spell in dead if spell[0] <= now < spell[1]), None)


def after(dead: Sequence[Spell], now: float) -> float:
    """When the next spell begins; inf where none does."""
    return next((begins for begins, _ in dead if begins > now), math.inf)


def for_good(dead: Sequence[Spell]) -> float:
    """When the spell begins that never ends; inf where there is none."""
    return dead[-1][0] if dead and dead[-1][1] == FOR_GOOD else math.inf


def _means(where: str, node: str, nodes: Mapping[str, HasTier]) -> bool:
    """Whether a node is what a fault names."""
    return where == node or where not in nodes and where in (ANY, nodes[node].tier)


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _tiers(nodes: Mapping[str, HasTier]) -> list[str]:
    return [tier for tier in dict.fromkeys(node.tier for node in nodes.values()) if tier not in nodes]


def _one_of(names: Sequence[str], most: int = 8) -> str:
    shown = [*names[:most], "..."] if len(names) > most else list(names)
    return f"one of {', '.join(shown)}"
