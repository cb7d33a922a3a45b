from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.models.protocol import Sampling
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.frame import encode_text

LOAD = "self-consistency"


def test_one_member_draws_several_answers_and_hears_none(hearers: Any, watch: Any) -> None:
    seen = watch(load_topology(LOAD, {"member": "tim", "samples": 4}), hearers(ann="phone", tim="tower"))
    assert seen.calls == [("tim", ())] * 4 and seen.result.usage.calls == 4
    assert {request.sampling for request in seen.requests} == {Sampling(0.7)} and len({request.seed for request in seen.requests}) == 4


def test_its_samples_are_the_first_ones_of_more(hearers: Any, watch: Any) -> None:
    """So five samples cost nothing where ten have been drawn, and more samples are never other samples."""
    team = hearers(ann="phone")
    few, many = (watch(load_topology(LOAD, {"samples": samples}), team).requests for samples in (2, 5))
    assert few == many[:2]


def test_the_vote_is_taken_where_the_member_is_and_the_winner_alone_travels(stage: Any, watch: Any) -> None:
    answers = iter(["  yes  ", "no", "  yes  "])
    seen = watch(load_topology(LOAD, {"samples": 3}), stage.team(tim=("tower", lambda request: next(answers))))
    assert seen.result.answer == "yes" and seen.moves == [("q0", "phone", "tower"), ("tim.1", "tower", "phone")]
    said = encode_text("q0", "user", "q", None), encode_text("tim.1", "tim", "yes", 0.5)  # without the blanks around it
    assert seen.result.usage.wire_bytes == sum(map(len, said))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=7))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_most_frequent_answer_wins(stage: Any, answers: list[str]) -> None:
    draws = iter(answers)
    team = stage.team(ann=("phone", lambda request: next(draws)))
    (result,) = stage.run(load_topology(LOAD, {"samples": len(answers)}), team)
    counts = Counter(answers)
    assert counts[result.answer] == max(counts.values())


def test_member_and_temperature_are_the_best_on_dev_unless_given(hearers: Any, trial: Any) -> None:
    made = trial(hearers(ann="phone", tim="tower"), correct={"ann": [False], "tim": [True]})
    made.judge = lambda topology: (0.9 if topology.temperature == 0.5 else 0.6, 1.0)
    fitted: Any = load_topology(LOAD, {"samples": 3}).fit(made)
    assert (fitted.member, fitted.temperature, fitted.samples) == ("tim", 0.5, 3)
    assert [(tried.member, tried.temperature) for tried in made.tried] == [("tim", t) for t in (0.3, 0.5, 0.7, 1.0)]
    given: Any = load_topology(LOAD, {"member": "ann", "temperature": 0.9}).fit(made)
    assert (given.member, given.temperature, len(made.tried)) == ("ann", 0.9, 4)


def test_the_temperature_is_used(hearers: Any, watch: Any) -> None:
    seen = watch(load_topology(LOAD, {"temperature": 0.25, "samples": 2}), hearers(ann="phone"))
    assert {request.sampling for request in seen.requests} == {Sampling(0.25)}


def test_what_makes_no_sense_is_refused_before_the_run(hearers: Any) -> None:
    for parameters, words in (({"samples": 0}, "samples: .*greater than 0"), ({"temperature": -1}, "temperature: .*greater than or equal to 0")):
        with pytest.raises(UserError, match=words):
            load_topology(LOAD, parameters)
    with pytest.raises(UnknownName, match="named 'tom'; did you mean tim"):
        load_topology(LOAD, {"member": "tom"}).check(hearers(ann="phone", tim="tower"))
