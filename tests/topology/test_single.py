from __future__ import annotations

from typing import Any

import pytest

from aiflow_agents.errors import UnknownName
from aiflow_agents.topology.load import load_topology


def test_one_member_is_asked_and_its_answer_comes_home(crew: Any, watch: Any) -> None:
    team = crew(ann=("phone", "a", 0.9), tim=("tower", "b", 0.5))
    near, far = watch(load_topology("single"), team), watch(load_topology("single", {"member": "tim"}), team)
    assert (near.calls, near.result.answer, near.moves) == ([("ann", ())], "a", [])
    assert (far.calls, far.result.answer) == ([("tim", ())], "b")
    assert far.moves == [("q0", "phone", "tower"), ("tim.1", "tower", "phone")]


def test_the_best_member_on_dev_answers_unless_one_is_named(crew: Any, trial: Any) -> None:
    made = trial(crew(ann=("phone", "a", 0.9), tim=("tower", "b", 0.5)), correct={"ann": [True, False], "tim": [True, True]})
    assert load_topology("single").fit(made).learned() == {"member": "tim"}
    assert load_topology("single", {"member": "ann"}).fit(made).learned() == {"member": "ann"}


def test_a_member_who_is_not_there_is_refused_before_the_run(crew: Any) -> None:
    team = crew(ann=("phone", "a", 0.9))
    load_topology("single", {"member": "ann"}).check(team)
    with pytest.raises(UnknownName, match="no member of team 'test' named 'anna'; did you mean ann"):
        load_topology("single", {"member": "anna"}).check(team)
