"""Who hears whom, against networkx."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.topology.graphs import NAMED, hears

names = st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=8, unique=True)
ORACLE = {
    "complete": nx.complete_graph,
    "ring": lambda count: nx.cycle_graph(count) if count > 1 else nx.empty_graph(1),
    "path": nx.path_graph,
    "star": lambda count: nx.star_graph(count - 1),
    "none": nx.empty_graph,
}


@given(names, st.sampled_from(NAMED))
def test_a_named_graph_is_that_of_networkx(members: list[str], graph: str) -> None:
    expected = nx.relabel_nodes(ORACLE[graph](len(members)), dict(enumerate(members)))
    heard = hears(graph, members)
    assert list(heard) == members
    for member in members:
        assert set(heard[member]) == set(expected.neighbors(member)) and len(heard[member]) == len(set(heard[member]))


@given(names, st.data())
def test_edges_are_those_written_both_ways_or_one(members: list[str], data: st.DataObject) -> None:
    edge = st.tuples(st.sampled_from(members), st.sampled_from("->"), st.sampled_from(members))
    edges = data.draw(st.lists(edge, min_size=1, max_size=12))
    expected = nx.DiGraph()
    expected.add_nodes_from(members)
    for a, arrow, b in edges:
        expected.add_edge(a, b)
        if arrow == "-":
            expected.add_edge(b, a)
    heard = hears(" , ".join(f"{a} {arrow} {b}" for a, arrow, b in edges), members)
    for member in members:  # in the members' order, whatever that of the edges
        assert heard[member] == tuple(name for name in members if expected.has_edge(name, member))


def test_complete_and_ring_are_not_the_same_and_cycles_are_kept() -> None:
    assert hears("complete", "abcd")["a"] == ("b", "c", "d") and hears("ring", "abcd")["a"] == ("b", "d")
    assert dict(hears("a>b,b>c,c>a", "abc")) == {"a": ("c",), "b": ("a",), "c": ("b",)}


@pytest.mark.parametrize("graph", ["", "rings", "a-b-c", "a,b", "a-b,", "a>b>c"])
def test_what_is_no_graph_says_what_is_expected(graph: str) -> None:
    with pytest.raises(UserError, match=f"graph '{graph}': expected one of complete, ring, path, star, none, or edges like a-b,b>c"):
        hears(graph, "abc")


def test_an_unknown_member_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match="no member named 'anna'; did you mean ann"):
        hears("bob-anna", ["ann", "bob"])


def test_what_all_tasks_share_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        hears("complete", "abc")["a"] = ()  # type: ignore[index]
