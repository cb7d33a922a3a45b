"""Who hears whom: a directed graph over the members, by name or as a list of edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import networkx as nx

from aiflow_agents.errors import UnknownName, UserError

NAMED = ("complete", "ring", "path", "star", "none")


def hears(graph: str, members: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """For every member, those it hears, in the members' order.

    `graph` is complete, ring, path, star (all hear the first, who hears all), none, or edges with commas between: `a-b` both ways, `a>b` from a to b.
    Raises UserError or UnknownName.
    """
    return _hears(graph, tuple(members))


@lru_cache(maxsize=64)  # every task of a run asks the same
def _hears(graph: str, members: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    edges: nx.DiGraph = nx.DiGraph()
    edges.add_nodes_from(members)
    if graph in NAMED:
        count = len(members)
        shape = {"complete": nx.complete_graph, "ring": nx.cycle_graph, "path": nx.path_graph}.get(graph)
        pairs = shape(count).edges if shape else [(0, i) for i in range(1, count)] if graph == "star" else []
        for a, b in pairs:
            if a != b:
                edges.add_edge(members[a], members[b])
                edges.add_edge(members[b], members[a])
    else:
        for part in graph.split(","):
            arrow = ">" if ">" in part else "-"
            ends = [end.strip() for end in part.split(arrow)]
            if len(ends) != 2:
                raise UserError(f"graph '{graph}': expected one of {', '.join(NAMED)}, or edges like a-b,b>c")
            for end in ends:
                if end not in members:
                    raise UnknownName("member", end, members)
            edges.add_edge(ends[0], ends[1])
            if arrow == "-":
                edges.add_edge(ends[1], ends[0])
    order = {member: index for index, member in enumerate(members)}
    return MappingProxyType({member: tuple(sorted(edges.predecessors(member), key=order.__getitem__)) for member in members})
