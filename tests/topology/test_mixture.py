from __future__ import annotations

from typing import Any

import pytest

from aiflow_agents.errors import UnknownName, UnmetNeed, UserError
from aiflow_agents.runtime.task import Task
from aiflow_agents.topology.load import load_topology


@pytest.fixture
def team(hearers: Any) -> Any:
    return hearers(ann="phone", bob="phone", tim="tower")


def test_each_layer_hears_the_whole_layer_before_and_the_aggregator_answers(team: Any, watch: Any) -> None:
    seen = watch(load_topology("mixture", {"layers": 2}), team)
    first, second = (tuple(f"{name}:{name}{heard}" for name in ("ann", "bob", "tim")) for heard in (0, 3))
    assert sorted(seen.calls[:-1]) == sorted((name, heard) for name in ("ann", "bob", "tim") for heard in ((), first))
    assert seen.calls[-1] == ("tim", second)
    assert seen.result.answer == "tim3" and seen.result.usage.calls == 7


@pytest.mark.parametrize(
    ("parameters", "given", "answers"),
    [
        ({}, {}, "tim"),
        ({}, {"bob": "server"}, "bob"),
        ({}, {"bob": "server", "ann": "aggregator"}, "ann"),
        ({"aggregator": "bob"}, {"ann": "aggregator"}, "bob"),
    ],
)
def test_the_aggregator_is_named_or_has_the_role_or_is_the_last(team: Any, watch: Any, roles: Any, parameters: Any, given: Any, answers: str) -> None:
    seen = watch(load_topology("mixture", parameters), roles(team, **given))
    assert seen.calls[-1][0] == answers and seen.result.answer == f"{answers}3"


def test_what_it_needs_is_checked_before_the_run(team: Any) -> None:
    with pytest.raises(UnknownName, match="named 'tom'; did you mean tim"):
        load_topology("mixture", {"aggregator": "tom"}).check(team)
    with pytest.raises(UnmetNeed, match="'mixture' needs at least 2 members"):
        load_topology("mixture").check(team.only("ann"))
    with pytest.raises(UserError, match="parameter layers: .*greater than 0"):
        load_topology("mixture", {"layers": 0})


def test_with_a_vote_the_aggregator_has_so_many_voices_beside_the_drafts(stage: Any) -> None:
    def sure(first: str, p: float) -> Any:
        return lambda request: ("new", 0.6) if len(request.messages) > 1 else (first, p)

    team = stage.team(ann=("phone", sure("old", 0.7)), bob=("phone", sure("old", 0.5)), tim=("tower", sure("old", 0.4)))
    answers = {}
    for trust in (None, 1.0, 4.0):
        topology = load_topology("mixture", {"vote": True, "trust": trust})
        answers[trust] = stage.do(team, lambda team, topology=topology: topology.run(Task("t", "q", ""), team)).answer
    assert answers == {None: "new", 1.0: "old", 4.0: "new"}  # 1 - 0.3 * 0.5 * 0.6 = 0.91 against 0.6 and 1 - 0.4 ** 4 = 0.97
