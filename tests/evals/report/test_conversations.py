"""The graph and the conversations are what the trace says."""

from __future__ import annotations

import json

import networkx
import pytest

from aiflow_agents.evals.report import conversations as module
from aiflow_agents.evals.report.conversations import Conversations, places


def rows(folder):
    return [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]


def test_bytes_on_edges_are_those_of_the_moves(run):
    folder = run[1]
    graph = networkx.MultiDiGraph()
    traced = [row for row in rows(folder) if row["arm"] == "debate"]
    for span in (span for row in traced for span in row["spans"] if span["kind"] == "move"):
        graph.add_edge(span["node"], span["to"], nbytes=span["nbytes"])
    nothing, debate = Conversations.read(folder / "trace.jsonl").graphs(["vote", "debate"])
    assert nothing is None and debate["tasks"] == len(traced) == 3
    assert {(src, dst) for src, dst, *_ in debate["edges"]} == set(graph.edges()) and len(debate["edges"]) == 4
    for src, dst, moves, nbytes in debate["edges"]:
        assert moves * 3 == graph.number_of_edges(src, dst)
        assert nbytes * 3 == pytest.approx(sum(data["nbytes"] for data in graph.get_edge_data(src, dst).values()))
    assert debate["members"] == [["cloud", "oak", 1.0], ["edge", "knot", 1.0]]


def test_spans_come_back_from_their_columns(run):
    folder = run[1]
    kept = Conversations.read(folder / "trace.jsonl").columns(["star", "debate"], [row["task_id"] for row in rows(folder)])
    assert len(kept["rows"]) == len(rows(folder)) and kept["left_out"] == 0
    original = {(row["arm"], row["task_id"]): row["spans"] for row in rows(folder)}
    tasks = [row["task_id"] for row in rows(folder)]
    for row in kept["rows"]:
        name = kept["names"].__getitem__
        for span, packed in zip(original[["star", "debate"][row["arm"]], tasks[row["task"]]], row["spans"], strict=True):
            move, who, node, start, end, message, to, heard, nbytes, confidence = packed
            assert (span["kind"] == "move", span["who"], span["node"], span["message"]) == (bool(move), name(who), name(node), name(message))
            assert (span["to"], span["nbytes"], span["confidence"]) == (name(to) if to >= 0 else "", nbytes, confidence)
            assert (start, end) == pytest.approx((span["start_s"], span["end_s"]), rel=1e-5) and [name(i) for i in heard] == span["heard"]
            assert row["texts"][message] == span["text"]


def test_a_later_row_counts_and_what_is_no_trace_is_skipped(tmp_path):
    def line(end):
        return json.dumps({"arm": "a", "task_id": "t", "spans": [{"kind": "call", "who": "w", "node": "n", "start_s": 0, "end_s": end, "message": "m"}]})

    (tmp_path / "trace.jsonl").write_text("\n".join([line(1), "7", '{"arm": "a"}', line("x"), line(2), '{"arm": "a", "ta']))
    (spans,) = Conversations.read(tmp_path / "trace.jsonl").spans.values()
    assert [span["end_s"] for span in spans] == [2.0]


def test_too_many_conversations_are_counted_and_left_out(run, monkeypatch):
    monkeypatch.setattr(module, "ALL", 900)
    kept = Conversations.read(run[1] / "trace.jsonl").columns(["star", "debate"], [row["task_id"] for row in rows(run[1])])
    assert 0 < len(kept["rows"]) < len(rows(run[1])) and len(kept["rows"]) + kept["left_out"] == len(rows(run[1]))


def test_tiers_are_those_of_the_network_or_unknown(run):
    found = Conversations.read(run[1] / "trace.jsonl")
    assert places({"network": "home-wifi"}, found) == {"home": "phone", "tiers": {"phone": "device", "edge": "edge", "cloud": "cloud"}}
    assert places({"network": "no-such"}, found) == {"home": "phone", "tiers": {"phone": "", "edge": "", "cloud": ""}}
    assert places({}, Conversations()) == {"home": None, "tiers": {}}
