from __future__ import annotations

from typing import Any

import pytest

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import CallError, Turn
from aiflow_agents.topology.load import load_topology


def sage(request: Any) -> str:
    """Asks ann, then tim, then answers with what it heard; of a question that begins with `my` it asks nobody."""
    question, heard = request.messages[0].content, request.messages[1:]
    if question.startswith("my"):
        return "mine"
    if len(heard) < 4:
        return f"{'ann' if not heard else 'tim'}?{question[-1]} {len(heard)}"
    return "+".join(turn.content for turn in heard if turn.role == "user")


@pytest.fixture
def team(stage: Any, roles: Any) -> Any:
    told = {name: (lambda request, name=name: f"{name} on {request.messages[0].content}") for name in ("ann", "tim")}
    return roles(stage.team(ann=("phone", told["ann"]), tim=("tower", told["tim"]), sage=("tower", sage)), sage="coordinator")


def test_it_asks_hears_and_asks_again(team: Any, watch: Any) -> None:
    seen = watch(load_topology("inquiry"), team, "what is x")
    assert seen.result.answer == "ann on x 0+tim on x 2" and seen.result.usage.calls == 5
    assert [(name, heard) for name, heard in seen.calls] == [
        ("sage", ()),
        ("ann", ()),
        ("sage", ("None:ann?x 0", "ann:ann on x 0")),
        ("tim", ()),
        ("sage", ("None:ann?x 0", "ann:ann on x 0", "None:tim?x 2", "tim:tim on x 2")),
    ]
    asked = [request.messages for request in seen.requests]
    assert asked[1] == (Turn("user", "x 0"),) and asked[3] == (Turn("user", "x 2"),)  # without the name of who is asked
    assert asked[4][1] == Turn("assistant", "ann?x 0")  # what it said itself is its own turn


def test_its_working_stays_where_it_is(team: Any, watch: Any, stage: Any) -> None:
    stage.say["sage"] = lambda request: ("36+41=77", 0.4)
    seen = watch(load_topology("inquiry"), team)
    assert (seen.result.answer, seen.result.text, seen.result.confidence) == ("77", "77", pytest.approx(0.4))
    stage.say["sage"] = lambda request: ("77", 0.4)
    assert seen.result.usage.wire_bytes == watch(load_topology("inquiry"), team).result.usage.wire_bytes


def test_every_message_travels_where_it_must_and_no_further(team: Any, watch: Any) -> None:
    """sage and tim share the tower: what they say to each other costs nothing; ann is asked and answers over the link."""
    assert watch(load_topology("inquiry"), team, "what is x").moves == [
        ("q0", "phone", "tower"), ("sage.1", "tower", "phone"), ("ann.2", "phone", "tower"), ("sage.5", "tower", "phone")
    ]  # fmt: skip


def test_who_does_not_ask_has_answered(team: Any, watch: Any, stage: Any) -> None:
    assert watch(load_topology("inquiry"), team, "my own").result.answer == "mine"
    for said in ("bob?x", "sage?x", "why?", "?"):  # nobody of that name, itself
        stage.say["sage"] = lambda request, said=said: said
        seen = watch(load_topology("inquiry"), team)
        assert seen.result.answer == said and len(seen.calls) == 1


def test_a_member_that_fails_fails_the_task_by_name(team: Any, stage: Any) -> None:
    stage.say["tim"] = lambda request: CallError("failed", "out of luck")
    (result,) = stage.run(load_topology("inquiry"), team, ["what is x"])
    assert result.error == "MemberFailed: tim: out of luck" and result.answer is None and result.usage.calls == 3


def test_after_so_many_rounds_it_says_what_it_says(team: Any, watch: Any) -> None:
    seen = watch(load_topology("inquiry", {"rounds": 1}), team, "what is x")
    assert len(seen.calls) == load_topology("inquiry", {"rounds": 1}).most_calls() == 3
    assert [name for name, _ in seen.calls] == ["sage", "ann", "sage"] and seen.result.answer == "tim?x 2"


def test_silent_peers_say_nothing_though_they_are_asked(team: Any, watch: Any) -> None:
    seen = watch(load_topology("inquiry", {"placebo": "silent"}), team, "what is x")
    assert [name for name, _ in seen.calls] == ["sage", "ann", "sage", "tim", "sage"] and seen.result.answer == "+"


def test_a_placebo_hears_what_was_said_to_another_question(team: Any, watch: Any) -> None:
    placebo = load_topology("inquiry", {"placebo": "other", "others": ("what is y",)})
    seen = watch(placebo, team, "what is x")
    assert placebo.control and seen.result.answer == "ann on y 0+tim on y 2"
    assert not any("x" in turn.content for request in seen.requests for turn in request.messages[:1] if len(turn.content) == 3)  # none was asked of x
    asks_nobody = load_topology("inquiry", {"placebo": "other", "others": ("my own",)})
    assert "mine" in watch(asks_nobody, team, "what is x").calls[-1][1][1]


def test_the_other_questions_come_from_dev(team: Any, watch: Any, trial: Any) -> None:
    placebo = load_topology("inquiry", {"placebo": "other"})
    assert placebo.fit(trial(team, questions=["one", "two"])).others == ("one", "two")
    assert "dev split" in str(watch(placebo, team, "what is x").result.error)


def test_a_coordinator_is_needed(team: Any, roles: Any) -> None:
    load_topology("inquiry").check(team)
    with pytest.raises(UnmetNeed, match="topology 'inquiry' needs a member with role 'coordinator'; the roles in team 'test' are member"):
        load_topology("inquiry").check(roles(team, sage="member"))
    with pytest.raises(UnmetNeed, match="at least 2 members"):
        load_topology("inquiry").check(team.only("sage"))
