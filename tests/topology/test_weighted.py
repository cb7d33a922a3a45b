from __future__ import annotations

from typing import Any

import pytest

from aiflow_agents.errors import UnmetNeed, UserError
from aiflow_agents.models.confidence import Calibration
from aiflow_agents.topology.load import load_topology


def test_one_who_is_sure_outweighs_two_who_guess(crew: Any, watch: Any) -> None:
    team = crew(ann=("phone", "a", 0.9), bob=("phone", "b", 0.4), tim=("tower", "b", 0.3))
    seen = watch(load_topology("weighted"), team)
    assert seen.calls == [("ann", ()), ("bob", ()), ("tim", ())]
    assert seen.result.answer == "a"  # wrong with 0.1 against 0.6 * 0.7
    assert watch(load_topology("majority"), team).result.answer == "b"


def test_calibrated_confidence_is_what_counts(crew: Any, watch: Any) -> None:
    team = crew(ann=("phone", "a", 0.9), bob=("phone", "b", 0.6))
    assert watch(load_topology("weighted"), team).result.answer == "a"
    assert watch(load_topology("weighted"), team.calibrated({"ann": Calibration(1.0, -4.0)})).result.answer == "b"


def test_it_may_believe_the_surest_alone(crew: Any, watch: Any) -> None:
    team = crew(ann=("phone", "a", 0.8), bob=("phone", "b", 0.7), tim=("tower", "b", 0.7))
    assert watch(load_topology("weighted"), team).result.answer == "b"  # wrong with 0.2 against 0.09
    assert watch(load_topology("weighted", {"decide": "most-confident"}), team).result.answer == "a"


def test_members_without_confidence_are_refused_before_the_run(crew: Any, dumb: Any) -> None:
    team = dumb(crew(ann=("phone", "a", 0.9), bob=("phone", "b", None)), "bob")
    with pytest.raises(UnmetNeed, match="topology 'weighted' needs members with logprobs; bob has none"):
        load_topology("weighted").check(team)
    with pytest.raises(UnmetNeed, match="at least 2 members"):
        load_topology("weighted").check(team.only("ann"))


def test_an_unknown_decision_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="topology 'weighted', parameter decide: .*no decision named 'weigthed'; did you mean weighted"):
        load_topology("weighted", {"decide": "weigthed"})
