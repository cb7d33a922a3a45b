from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.topology.load import load_topology


def family_of(stage: Any) -> Any:
    """Three exits of one model, in no order."""
    team = stage.team(trunk="tower", leaf="phone", bough="tower")
    info = replace(team["leaf"].info, capabilities=frozenset({"logprobs", "resume"}))
    exits = {"trunk": None, "leaf": 1, "bough": 3}
    infos = {e: replace(info, shape=replace(info.shape, layers=8 if e is None else e + 1)) for e in exits.values()}
    return replace(team, agents={name: replace(team[name], exit=e, info=infos[e], folder="one") for name, e in exits.items()})


def test_members_must_be_different_exits_of_one_family(stage: Any) -> None:
    team, cascade = family_of(stage), load_topology("exit-cascade")
    cascade.check(team)
    twice = replace(team, agents=team.agents | {"bough": replace(team["bough"], exit=1)})
    other = replace(team, agents=team.agents | {"bough": replace(team["bough"], info=replace(team["bough"].info, weights_hash="other"))})
    for wrong in (twice, other):
        with pytest.raises(UnmetNeed, match="different exits of one family"):
            cascade.check(wrong)
    with pytest.raises(UnmetNeed, match="members with resume; ann has logprobs"):
        cascade.check(stage.team(ann="phone", tim="tower"))


def test_it_learns_the_cheapest_thresholds_that_keep_enough(stage: Any, trial: Any) -> None:
    """Exits that know when they know: what they pass on is what they would get wrong, and what the next one costs is what it has not run yet."""
    team, draw = family_of(stage), np.random.default_rng(1)
    right = {"leaf": draw.random(400) < 0.6, "bough": draw.random(400) < 0.8, "trunk": np.ones(400, bool)}
    confidence = {name: np.where(marks, 0.9, 0.2).tolist() for name, marks in right.items()}
    facts = {"marks": {n: m.astype(float).tolist() for n, m in right.items()}, "confidence": confidence, "flops": {"leaf": 2.0, "bough": 4.0, "trunk": 8.0}}
    said = {n: [["wrong " + n, "yes"][int(mark)] for mark in m] for n, m in right.items()}
    asked = {"questions": ["?"] * 400, "answers": said, "correct": {n: m.tolist() for n, m in right.items()}, **facts}
    fitted = load_topology("exit-cascade").fit(trial(team, **asked))
    for threshold in fitted.thresholds:
        assert 0.2 < threshold <= 0.9
    unsure = {name: [0.5] * 400 for name in confidence}  # who never knows whether he knows passes all on, or nothing
    fitted = load_topology("exit-cascade").fit(trial(team, **{**asked, "confidence": unsure}))
    assert fitted.thresholds[1] > 0.5 < fitted.thresholds[0]
    assert load_topology("exit-cascade", {"keep": 0.1}).fit(trial(team, **{**asked, "confidence": unsure})).thresholds[0] <= 0.5
    given = load_topology("exit-cascade", {"thresholds": (0.5, 0.5)})
    assert given.fit(trial(team, **asked)) == given


def test_as_text_it_is_a_plain_cascade_in_the_order_of_the_exits(stage: Any, watch: Any) -> None:
    team = family_of(stage)
    stage.say["one"] = lambda request: (f"exit {request.exit}", {1: 0.5, 3: 0.7, None: 0.9}[request.exit])
    for thresholds, answer, asked in (((0.4, 0.4), "exit 1", [1]), ((0.6, 0.6), "exit 3", [1, 3]), ((0.6, 0.8), "exit None", [1, 3, None])):
        seen = watch(load_topology("exit-cascade", {"send": "text", "thresholds": thresholds}), team)
        assert seen.result.answer == answer and [request.exit for request in seen.requests] == asked
        assert all(request.parcel is None and request.want is None for request in seen.requests)
