from __future__ import annotations

import json
from typing import Any

import pytest

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.topology.load import load_topology

SUMS = [f"{i}+{3 * i}=" for i in range(40)]
SORTS = [f"sort {word}" for word in ("dacb", "hgef", "zyxw", "klmj", "qrop", "uvst") * 7][:40]


@pytest.fixture
def team(crew: Any) -> Any:
    return crew(ann=("phone", "a sum", 0.9), tim=("tower", "a word", 0.9), kim=("tower", "nothing", 0.9))


@pytest.fixture
def fitted(team: Any, trial: Any) -> Any:
    questions = SUMS + SORTS
    correct = {"ann": [True] * 40 + [False] * 40, "tim": [False] * 40 + [True] * 40, "kim": [False] * 80}
    return load_topology("router").fit(trial(team, questions=questions, correct=correct))


@pytest.mark.parametrize(("question", "name", "answer"), [("97+98=", "ann", "a sum"), ("sort nbmv", "tim", "a word")])
def test_each_question_goes_to_the_one_who_knows_its_kind(team: Any, fitted: Any, watch: Any, question: str, name: str, answer: str) -> None:
    assert question not in SUMS + SORTS
    seen = watch(fitted, team, question)
    assert seen.calls == [(name, ())] and seen.result.answer == answer
    assert [(message, to) for message, _, to in seen.moves] == ([] if name == "ann" else [("q0", "tower"), ("tim.1", "phone")])


def test_what_it_has_learned_is_told_without_its_weights(fitted: Any) -> None:
    told = fitted.learned()
    assert told["members"] == ["ann", "tim", "kim"] and told["weights"] == [fitted.weights.shape[0], 3] and len(json.dumps(told)) < 200
    assert load_topology("router").learned() == {"members": [], "weights": None}


def test_it_must_be_fitted_first(team: Any, watch: Any) -> None:
    seen = watch(load_topology("router"), team)
    assert seen.calls == [] and seen.result.error == "UnmetNeed: topology 'router' must be fitted on a dev split first: use `aiflow eval`"


def test_one_member_needs_no_router(team: Any) -> None:
    with pytest.raises(UnmetNeed, match="'router' needs at least 2 members"):
        load_topology("router").check(team.only("ann"))
