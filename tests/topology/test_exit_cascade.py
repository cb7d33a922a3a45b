from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.topology.load import load_topology


def family_of(stage: Any) -> Any:
    """Three exits of one model, in no order."""
    team = stage.team(trunk="tower", leaf="phone", bough="tower")
    info = replace(team["leaf"].info, capabilities=frozenset({"logprobs", "resume"}))
    exits = {"trunk": None, "leaf": 1, "bough": 3}
    return replace(team, agents={name: replace(team[name], exit=e, info=info, folder="one") for name, e in exits.items()})


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
    """Accuracy and FLOPs grow with both thresholds; the whole model alone has 0.80."""

    def judge(topology: Any) -> tuple[float, float]:
        a, b = topology.thresholds
        return 0.6 + 0.1 * min(a, 1) + 0.1 * min(b, 1), 1 + 5 * a + 2 * b

    team = family_of(stage)
    fitted = load_topology("exit-cascade", {"keep": 0.94}).fit(trial(team, judge=judge))
    accuracy, flops = judge(fitted)
    grid = [(a, b) for a in load_grid() for b in load_grid()]
    enough = [judge(fitted.model_copy(update={"thresholds": pair})) for pair in grid]
    assert accuracy >= 0.94 * 0.8 and flops == min(cost for score, cost in enough if score >= 0.94 * 0.8)
    given = load_topology("exit-cascade", {"thresholds": (0.5, 0.5)})
    assert given.fit(trial(team, judge=judge)) == given


def load_grid() -> tuple[float, ...]:
    import sys

    return sys.modules[type(load_topology("exit-cascade")).__module__].GRID


def test_as_text_it_is_a_plain_cascade_in_the_order_of_the_exits(stage: Any, watch: Any) -> None:
    team = family_of(stage)
    stage.say["one"] = lambda request: (f"exit {request.exit}", {1: 0.5, 3: 0.7, None: 0.9}[request.exit])
    for thresholds, answer, asked in (((0.4, 0.4), "exit 1", [1]), ((0.6, 0.6), "exit 3", [1, 3]), ((0.6, 0.8), "exit None", [1, 3, None])):
        seen = watch(load_topology("exit-cascade", {"send": "text", "thresholds": thresholds}), team)
        assert seen.result.answer == answer and [request.exit for request in seen.requests] == asked
        assert all(request.parcel is None and request.want is None for request in seen.requests)
