"""Where each simulated node computes on a cluster: on a Ray node of its tier.

    phone (device)  ->  a Ray node labelled aiflow.node=phone, or else aiflow.tier=device, or else one with the resource aiflow.tier.device

A seat says so in the key of a member's model, which is all that travels to the hosts: to memory, prices and answers it makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from aiflow_agents.errors import UserError
from aiflow_agents.runtime.team import Team

TIER, NODE = "aiflow.tier", "aiflow.node"  # labels of Ray nodes; with `.device` behind it, the tier is a custom resource too
SLIVER = 0.001  # of a custom resource: it says where, not how much


class Seat(NamedTuple):
    """A simulated node and its tier."""

    node: str
    tier: str


NOWHERE = Seat("", "")  # of a model that may be loaded anywhere


def seated(team: Team) -> Team:
    """The same team, whose members' models are loaded on Ray nodes of their tiers."""
    agents = {}
    for agent in team:
        key = json.dumps({"at": Seat(agent.node, team.network.node(agent.node).tier), "key": agent.folder})
        agents[agent.name] = replace(agent, folder=key)
    return replace(team, agents=agents)


def unseat(key: str) -> tuple[Seat, str]:
    """(where to load, the model's own key)"""
    if key.startswith('{"at":'):
        found = json.loads(key)
        return Seat(*found["at"]), found["key"]
    return NOWHERE, key


class Ground(NamedTuple):
    """Where in a cluster hosts can be: options of a Ray actor, and what the Ray nodes that fit them have."""

    name: str
    options: Mapping[str, Any]
    cpus: float = 0.0
    gpus: float = 0.0

    def hosts(self, host_gpus: float = 0.0) -> int:
        """How many hosts fit: one a core, or as many as get their share of a GPU."""
        return max(1, int(self.gpus / host_gpus + 1e-9) if host_gpus else int(self.cpus))


def anywhere(nodes: Sequence[Mapping[str, Any]]) -> Ground:
    return _ground("host", {}, [node for node in nodes if node["Alive"]])


def ground(seat: Seat, nodes: Sequence[Mapping[str, Any]]) -> Ground | None:
    """The best that a cluster has for a seat, of `ray.nodes()`; None where no living node is of its tier."""
    if seat == NOWHERE:
        return anywhere(nodes)
    alive = [node for node in nodes if node["Alive"]]
    for label, value in ((NODE, seat.node), (TIER, seat.tier)):
        fit = [node for node in alive if node.get("Labels", {}).get(label) == value]
        if fit:
            return _ground(value, {"label_selector": {label: value}}, fit)
    resource = f"{TIER}.{seat.tier}"
    fit = [node for node in alive if node["Resources"].get(resource)]
    return _ground(seat.tier, {"resources": {resource: SLIVER}}, fit) if fit else None


def check(teams: Sequence[Team], nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError where no Ray node is of a tier that a member needs."""
    for agent in [agent for team in teams for agent in team]:
        seat, _ = unseat(agent.folder)
        if ground(seat, nodes) is None:
            raise UserError(
                f"no Ray node is of the tier '{seat.tier}', where {agent.name} computes (at {seat.node}): start one with "
                f"`ray start --labels {TIER}={seat.tier}`, or leave --place spread out"
            )


def _ground(name: str, options: Mapping[str, Any], fit: Sequence[Mapping[str, Any]]) -> Ground:
    have = [node["Resources"] for node in fit]
    return Ground(name, options, sum(one.get("CPU", 0.0) for one in have), sum(one.get("GPU", 0.0) for one in have))
