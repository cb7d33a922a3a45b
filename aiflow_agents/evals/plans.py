"""The plans that there are to answer with a family on a network: where its exits sit, and how they work together.

    one node alone       exit, rank, node                       single, and stream where it is not home
    split                two nodes, the cut, the codec           split
    draft and verify     two or three exits, places, length      draft-verify, of tokens or of hidden states

A plan is a team and a topology with its parameters, as they stand in files, so whatever runs those can run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import Any, Literal

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.models.family.config import DecoderConfig
from aiflow_agents.models.family.info import model_info
from aiflow_agents.models.family.rank import linears
from aiflow_agents.net.network import TIERS, Network
from aiflow_agents.runtime.team import MAX_TOKENS, Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology

LENGTHS = (2, 4, 8, None)  # tokens of a draft; None: chosen while it goes on
CODECS = ("float32", "float16")  # of hidden states, beside what the family ships; the first is exact
KEEPS = (0.8, 0.6, 0.4)  # of a decomposed family, beside all of it
CUTS = 8  # layers at most at which a model is cut
Mark = Literal["exact", "lossy"]


@dataclass(frozen=True)
class Plan:
    """`members` are those of a team file. Plans with equal `says` give equal answers, and `whole` is the same without loss: an exit and a rank.

    `mark`: exact, its answers are those of its last exit alone; lossy, hidden states are coded with loss on their way.
    """

    name: str
    topology: str
    parameters: Mapping[str, Any]
    members: Mapping[str, Mapping[str, Any]]
    mark: Mark
    says: tuple[object, ...]
    whole: tuple[int, float | None] = field(default=(0, None))

    def team(self, network: Network, max_tokens: int = MAX_TOKENS) -> Team:
        return Team.of(self.members, name="plan", network=network, max_tokens=max_tokens)

    def pattern(self) -> Topology:
        return load_topology(self.topology, self.parameters)


@dataclass(frozen=True)
class Ground:
    """What plans are made of. `model`: what a team file calls the family; `places`: by tier, the node that computes there; `costs`: by exit, the
    shape as which it is priced ({}: its own)."""

    folder: Path
    model: str
    network: Network
    places: Mapping[str, str]
    exits: tuple[int, ...]
    keeps: tuple[float, ...]  # () where the family has one size
    shipped: Mapping[int, tuple[str, ...]]  # by layer, codecs that need no tokens
    costs: Mapping[int, str]

    @classmethod
    def of(cls, folder: Path, network: Network, costs_as: Mapping[str, str] | None = None, *, model: str = "") -> Ground:
        """`costs_as` names a shape for each tier: the first exit is priced as the device's, the last as the cloud's, those between as the edge's.

        Raises UserError for a model that is no family.
        """
        config, info = DecoderConfig.read(folder), model_info(folder)
        if len(config.exits) < 2:
            raise UserError(f"{folder.name} has one exit, so there is nothing to choose: `aiflow family grow` adds exits")
        for tier in costs_as or {}:
            if tier not in TIERS:
                raise UnknownName("tier", tier, TIERS)
        codecs = {k: tuple(c.name for c in info.codecs if f"hidden.{k}" in c.spaces and not c.needs_tokens) for k in range(1, config.layers)}
        home = network.node(network.home)
        places: dict[str, str] = {tier: nodes[0] for tier in TIERS if (nodes := network.tier(tier))}
        places[home.tier] = home.name
        sizes = dict(zip(config.exits, ("device", *["edge"] * (len(config.exits) - 2), "cloud"), strict=True))
        costs = {exit: costs_as[tier] for exit, tier in sizes.items() if costs_as and tier in costs_as}
        keeps = KEEPS if linears(folder) else ()
        places = {tier: places[tier] for tier in TIERS if tier in places}
        return cls(folder, model or str(folder), network, places, config.exits, keeps, codecs, costs)

    def member(self, tier: str, exit: int, keep: float | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {"model": self.model, "tier": tier, "node": self.places[tier], "exit": exit}
        return found | ({"keep": keep} if keep else {}) | ({"costs_as": self.costs[exit]} if exit in self.costs else {})

    def fits(self, plan: Plan) -> bool:
        """Whether every node holds the weights of those that sit on it; exits of one family share theirs, models of other sizes do not."""
        needed: dict[str, list[float]] = {}
        for agent in plan.team(self.network):
            needed.setdefault(agent.node, []).append((agent.shape or agent.info.shape).weight_bytes)
        together = sum if self.costs else max
        return all(together(nbytes) <= self.network.node(node).memory_bytes for node, nbytes in needed.items())


def plans(ground: Ground) -> list[Plan]:
    """All of them, those with hidden states left out where times are of other sizes: nobody knows what theirs would weigh."""
    found = [*_alone(ground), *_drafting(ground)]
    return found if ground.costs else [*found, *_split(ground), *_with_states(ground)]


def _alone(ground: Ground) -> Iterator[Plan]:
    for tier, node in ground.places.items():
        for exit in ground.exits:
            for keep in (None, *ground.keeps):
                who, rank = {"alone": ground.member(tier, exit, keep)}, f" keep {keep:g}" if keep else ""
                same: dict[str, Any] = {"members": who, "mark": "exact", "says": (exit, keep), "whole": (exit, keep)}
                yield Plan(f"{node}: exit {exit}{rank}", "single", {"member": "alone"}, **same)
                if node != ground.network.home:
                    yield Plan(f"{node}: exit {exit}{rank}, streamed", "stream", {"member": "alone"}, **same)


def _chains(ground: Ground) -> Iterator[list[tuple[str, int]]]:
    """Who drafts for whom: (tier, exit), deeper and deeper, and never towards home."""
    for count in (2, 3):
        for exits in combinations(ground.exits, count):
            for tiers in combinations_with_replacement(ground.places, count) if count == 2 else combinations(ground.places, count):
                yield list(zip(tiers, exits, strict=True))


def _drafting(ground: Ground) -> Iterator[Plan]:
    for chain in _chains(ground):
        for ahead in LENGTHS:
            yield _drafted(ground, chain, {"ahead": ahead}, "exact", f"ahead {ahead or 'on-line'}")


def _with_states(ground: Ground) -> Iterator[Plan]:
    """Drafts whose hidden states go along, to another node."""
    for chain in _chains(ground):
        if chain[0][0] != chain[1][0]:
            for codec in _codecs(ground, chain[0][1]):
                yield _drafted(ground, chain, {"ahead": None, "codec": codec}, _mark(codec), f"states {codec}")


def _drafted(ground: Ground, chain: Sequence[tuple[str, int]], parameters: Mapping[str, Any], mark: Mark, how: str) -> Plan:
    names = ("draft", "decide") if len(chain) == 2 else ("draft", "check", "decide")
    members = {name: ground.member(tier, exit) for name, (tier, exit) in zip(names, chain, strict=True)}
    way = " > ".join(f"{ground.places[tier]} {exit}" for tier, exit in chain)
    last, codec = chain[-1][1], parameters.get("codec")
    says = (last, None) if mark == "exact" else (last, None, "states", codec, *(exit for _, exit in chain))
    given = {key: value for key, value in parameters.items() if value is not None}  # who drafts and who decides follows from their depth
    return Plan(f"draft {way}, {how}", "draft-verify", given, members, mark, says, (last, None))


def _split(ground: Ground) -> Iterator[Plan]:
    for exit in ground.exits:
        for layer in _cuts(ground, exit):
            for codec in _codecs(ground, layer):
                for lower, upper in combinations(ground.places, 2):
                    below = next(e for e in ground.exits if e >= layer)  # what its node has to hold
                    members = {"lower": ground.member(lower, below), "upper": ground.member(upper, exit)}
                    given = {"lower": "lower", "upper": "upper", "layer": layer, "codec": codec}
                    name = f"split {ground.places[lower]} | {ground.places[upper]} at {layer}, exit {exit}, {codec}"
                    mark = _mark(codec)
                    says = (exit, None) if mark == "exact" else (exit, None, "split", layer, codec)
                    yield Plan(name, "split", given, members, mark, says, (exit, None))


def _mark(codec: str) -> Mark:
    return "exact" if codec == CODECS[0] else "lossy"


def _cuts(ground: Ground, exit: int) -> list[int]:
    """Layers at which to cut: where exits leave, and of the others as many as there is room for."""
    if exit <= CUTS:
        return list(range(1, exit + 1))
    return sorted({*(e for e in ground.exits if e <= exit), *(round(exit * i / CUTS) for i in range(1, CUTS + 1))})


def _codecs(ground: Ground, layer: int) -> tuple[str, ...]:
    return (*CODECS, *ground.shipped.get(layer, ()))
