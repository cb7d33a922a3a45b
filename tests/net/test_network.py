"""Network files: what they hold, what is wrong in them, and the routes (networkx is the oracle)."""

from __future__ import annotations

from pathlib import Path

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import ConfigError, NoRoute, UnknownName
from aiflow_agents.net.network import Link, Network, Node, Radio

NETWORKS = Path(__file__).parents[2] / "topologies" / "networks"

SMALL = """
name: small
home: phone
nodes:
  phone: {tier: device, flops_rate: 1e12, bandwidth_Bps: 5e10}
  edge: {tier: edge, flops_rate: 1e13, bandwidth_Bps: 1e11, overhead_s: 0.001, memory_bytes: 8e9, slots: 2, power_w: 100}
links:
  - a: phone
    b: edge
    up_bps: 1e7
    down_bps: {value: 5e7, source: a test, date: 2024-05-01, confidence: low, derived: by hand}
    latency_s: 0.002
    loss: 0.01
    send: {base_w: 0.5, j_per_byte: 1e-6, tail_w: 1, tail_s: 10}
"""


def load(tmp_path, text):
    path = tmp_path / "net.yaml"
    path.write_text(text)
    return Network.load(path)


def test_a_file_becomes_nodes_links_and_figures(tmp_path):
    net = load(tmp_path, SMALL)
    assert net.nodes["phone"] == Node("phone", "device", 1e12, 5e10)
    assert net.nodes["edge"] == Node("edge", "edge", 1e13, 1e11, 0.001, 8e9, 2, 100)
    assert net.links == (Link("phone", "edge", 1e7, 5e7, 0.002, 0.0, 0.01, send=Radio(0.5, 1e-6, 1, 10)),)
    assert net.figures["links.phone-edge.down_bps"].source == "a test" and net.figures["links.phone-edge.down_bps"].date == "2024-05-01"
    assert net.figures["links.phone-edge.up_bps"].confidence == "unstated"
    assert net.figures["links.phone-edge.send.tail_s"].value == 10
    assert net.tier("edge") == ["edge"] and net.tier("cloud") == []


def test_a_hop_has_the_rate_and_the_radio_of_its_direction(tmp_path):
    net = load(tmp_path, SMALL)
    (up,), (down,) = net.route("phone", "edge"), net.route("edge", "phone")
    assert (up.src, up.dst, up.rate_bps, up.radio.base_w) == ("phone", "edge", 1e7, 0.5)
    assert (down.src, down.dst, down.rate_bps, down.radio.base_w) == ("edge", "phone", 5e7, 0)
    assert up.link == down.link and net.latency_s("phone", "edge") == 0.002


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "expected"),
    [
        ("tier: device", "tier: phone", 5, "nodes.phone.tier", "'device', 'edge' or 'cloud'"),
        ("flops_rate: 1e12", "flops: 1e12", 5, "nodes.phone.flops", "flops_rate"),
        ("up_bps: 1e7", "up_bps: 0", 10, "up_bps", "greater than 0"),
        ("up_bps: 1e7", "up_bps: fast", 10, "up_bps", "found 'fast'"),
        ("up_bps: 1e7", "up_bps: true", 10, "up_bps", "found True"),
        ("loss: 0.01", "loss: 1", 13, "loss", "less than 1"),
        ("slots: 2", "slots: 0", 6, "slots", "greater than or equal to 1"),
        ("home: phone", "home: fone", 3, "home", "did you mean phone?"),
        ("b: edge", "b: egde", 8, "links", "did you mean edge?"),
        ("b: edge", "b: phone", 8, "links", "to itself"),
        ("confidence: low", "confidence: sure", 11, "confidence", "'high', 'medium', 'low'"),
        ("    latency_s: 0.002\n", "", 8, "latency_s", "missing"),
    ],
)
def test_a_mistake_gets_its_file_line_key_and_what_was_expected(tmp_path, old, new, line, key, expected):
    assert SMALL.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SMALL.replace(old, new))
    error = caught.value
    assert str(error.file).endswith("net.yaml") and key in (error.key or "") and expected in str(error)
    assert error.line is not None and abs(error.line - line) <= 1


def test_two_links_between_the_same_nodes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="two links between 'edge' and 'phone'"):
        load(tmp_path, SMALL + "  - {a: edge, b: phone, up_bps: 1, down_bps: 1, latency_s: 0}\n")


def test_unknown_names_offer_the_nearest(tmp_path):
    net = load(tmp_path, SMALL)
    with pytest.raises(UnknownName, match="phone"):
        net.route("edge", "phon")
    with pytest.raises(UnknownName, match="device"):
        net.tier("devices")


def test_no_route_names_both_nodes_and_the_file(tmp_path):
    net = load(tmp_path, SMALL.replace("links:", "  lonely: {tier: cloud, flops_rate: 1, bandwidth_Bps: 1}\nlinks:"))
    with pytest.raises(NoRoute, match=r"'phone' to 'lonely'.*net\.yaml"):
        net.route("phone", "lonely")


# --- routes ---


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 7), st.data())
def test_routes_have_the_latency_that_networkx_finds(n, data):
    pairs = [(f"n{i}", f"n{j}") for i in range(n) for j in range(i)]
    chosen = data.draw(st.lists(st.sampled_from(pairs), unique=True))
    # multiples of 1/1024 add up exactly, so that equal ways are equal
    links = tuple(Link(a, b, 1e6, 1e6, latency_s=data.draw(st.integers(0, 30)) / 1024) for a, b in chosen)
    net = Network("random", {f"n{i}": Node(f"n{i}", "edge", 1, 1) for i in range(n)}, links, "n0")
    graph = networkx.Graph()
    graph.add_nodes_from(net.nodes)
    graph.add_weighted_edges_from((link.a, link.b, link.latency_s) for link in links)
    for src in net.nodes:
        lengths = networkx.single_source_dijkstra_path_length(graph, src)
        for dst in net.nodes:
            if dst not in lengths:
                with pytest.raises(NoRoute):
                    net.route(src, dst)
                continue
            route = net.route(src, dst)
            assert sum(hop.latency_s for hop in route) == lengths[dst]
            nodes = [src, *(hop.dst for hop in route)]
            assert nodes == [*(hop.src for hop in route), dst], "the hops join up"
            fewest = min(len(way) for way in networkx.all_shortest_paths(graph, src, dst, weight="weight"))
            assert len(nodes) == fewest
            assert net.route(src, dst) is route


# --- the shipped ones ---


@pytest.mark.parametrize("name", ["home-wifi", "metro-5g"])
def test_shipped_networks_say_where_every_number_comes_from(name):
    net = Network.load(NETWORKS / f"{name}.yaml")
    assert net.name == name and net.description and net.home == "phone"
    assert len(net.tier("device")) >= 4 and net.tier("edge") and net.tier("cloud")
    for key, figure in net.figures.items():
        assert figure.source and figure.date and figure.derived, key
        assert figure.confidence != "unstated", key
        assert figure.source != "assumed" or figure.confidence == "low", key
    for src in net.nodes:
        for dst in net.nodes:
            net.route(src, dst)
    up, *_ = net.route("phone", "cloud")
    down = net.route("cloud", "phone")[-1]
    assert up.rate_bps < down.rate_bps, "access links are asymmetric"


@pytest.mark.parametrize(
    ("name", "node", "prefill", "decode"),
    [
        ("home-wifi", "phone", 3808, 52.1),
        ("home-wifi", "pi", 133, 7.6),
        ("home-wifi", "laptop", 7835, 160.2),
        ("home-wifi", "edge", 11234, 143.4),
        ("metro-5g", "camera", 3747, 31.7),
        ("metro-5g", "jetson", 1142, 24.2),
    ],
)
def test_node_rates_give_back_the_measurement_they_were_derived_from(name, node, prefill, decode):
    """2.3e9 active parameters at 4 bits: a step of decoding and a second of prefill must come out as measured."""
    place = Network.load(NETWORKS / f"{name}.yaml").nodes[node]
    assert place.flops_rate / (2 * 2.3e9) == pytest.approx(prefill, rel=0.01)
    assert 1 / (place.overhead_s + 1.15e9 / place.bandwidth_Bps) == pytest.approx(decode, rel=0.01)
