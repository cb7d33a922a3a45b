"""What each arm did, against scipy, by hand, and as properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from aiflow_agents.evals.measures import conversation, measure, of_members, phi, read_traces
from aiflow_agents.evals.statistics import capture


def samples(right, calls=1, answer="x"):
    return [{"score": float(r), "correct": bool(r), "status": "ok", "answer": answer, "usage": {"calls": calls}} for r in right]


ANN, BOB, TEAM = [1, 1, 1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 1, 1, 0]


def found(**more):
    return measure({"ann": samples(ANN), "bob": samples(BOB), "team": samples(TEAM, calls=3)} | more, ["ann", "bob"], "ann", {})


def test_a_team_of_eight_answers_by_hand():
    team = found()["team"]
    assert team["synergy"] == {"strong": pytest.approx(0.25), "weak": pytest.approx(6 / 8 - 3.5 / 8)}
    assert team["flips"] == {"right_to_wrong": 1 / 8, "wrong_to_right": 3 / 8}
    assert team["co_failure"] == 1 / 8 and team["error_amplification"] == pytest.approx((2 / 8) / (4 / 8))
    assert (team["coordination_overhead"], team["coordination_efficiency"]) == (2, pytest.approx(0.25))
    assert team["error_correlation"] == pytest.approx(pearsonr(1 - np.array(TEAM), 1 - np.array(ANN)).statistic)
    assert team["message_density"] is None and team["traced"] == 0
    together = of_members({"ann": samples(ANN), "bob": samples(BOB)}, ["ann", "bob"])
    assert together == {"co_failure": 2 / 8, "error_correlation": pytest.approx(pearsonr(ANN, BOB).statistic)}


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=4, max_size=60))
@settings(max_examples=40, deadline=None)
def test_flips_make_the_synergy_and_capture_is_that_of_the_verdict(rows):
    ann, bob, team = np.array(rows).T
    each = measure({"ann": samples(ann), "bob": samples(bob), "team": samples(team)}, ["ann", "bob"], "ann", {})
    assert each["team"]["flips"]["wrong_to_right"] - each["team"]["flips"]["right_to_wrong"] == pytest.approx(each["team"]["synergy"]["strong"])
    assert each["ann"]["synergy"]["strong"] == 0 and each["ann"]["flips"] == {"right_to_wrong": 0, "wrong_to_right": 0}
    theirs = capture(team.astype(float), ann.astype(float), (ann | bob).astype(float), seed=0)
    assert each["team"]["capture"] == (None if theirs is None else pytest.approx(theirs[0]))
    assert each["ann"]["error_correlation"] in (None, pytest.approx(1))


def test_answers_in_which_nothing_was_found_are_counted_and_failures_are_not():
    rows = samples([0, 0, 0, 1, 0, 0, 0, 0], answer=" ")
    rows[0] |= {"status": "failed", "answer": None}
    rows[3]["answer"] = "7"
    assert found(team=rows)["team"]["extraction_failures"] == 6


def test_where_a_measure_has_no_meaning_it_is_none():
    perfect = measure({"ann": samples([1, 1]), "oracle": samples([1, 1], calls=0)}, ["ann"], "ann", {})
    assert perfect["ann"]["error_amplification"] is None and perfect["ann"]["capture"] is None and perfect["ann"]["error_correlation"] is None
    assert perfect["oracle"]["coordination_overhead"] is None and of_members({"ann": samples([1, 1])}, ["ann"])["error_correlation"] is None
    assert phi(np.array([True, False]), np.array([True, True])) is None


def test_talk_is_counted_from_spans(tmp_path: Path):
    def call(who, text, *heard):
        return {"kind": "call", "who": who, "text": text, "heard": list(heard)}

    move = {"kind": "move", "who": "ann", "text": "", "heard": []}
    debate = [call("ann", "7"), call("bob", "8 "), move, call("ann", "8", "bob.1"), call("bob", "8", "ann.1", "ann.0")]
    said = conversation([debate, [call("ann", "1")]])
    assert said == {"message_density": 3 / 5, "redundancy": 3 / 6, "traced": 2}
    assert conversation([[call("ann", "1")]])["redundancy"] is None
    lines = [{"arm": "debate", "task_id": "t", "spans": debate[:1]}, {"arm": "debate", "task_id": "t", "spans": debate}, {"arm": "vote"}]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"arm": "vo')
    assert read_traces(tmp_path / "trace.jsonl") == {"debate": [debate]} and read_traces(tmp_path / "nowhere") == {}
