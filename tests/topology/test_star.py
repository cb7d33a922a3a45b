from __future__ import annotations

from typing import Any

import pytest

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.topology.load import load_topology


@pytest.fixture
def team(hearers: Any, roles: Any) -> Any:
    return roles(hearers(ann="phone", bob="phone", tim="tower"), tim="server")


def test_members_answer_the_server_guides_and_each_revises_its_own_answer(team: Any, watch: Any) -> None:
    seen = watch(load_topology("star"), team)
    assert seen.calls == [
        ("ann", ()),
        ("bob", ()),
        ("tim", ("ann:ann0", "bob:bob0")),
        ("ann", ("ann:ann0", "tim:tim2")),
        ("bob", ("bob:bob0", "tim:tim2")),
    ]


def test_only_what_another_node_needs_is_sent(team: Any, watch: Any) -> None:
    """Question and drafts up, guidance down; a member's own draft stays with it, and the guidance need not come twice to be decided on."""
    assert [(message, to) for message, _, to in watch(load_topology("star"), team).moves] == [
        ("q0", "tower"), ("ann.1", "tower"), ("bob.2", "tower"), ("tim.3", "phone")
    ]  # fmt: skip


@pytest.mark.parametrize(("sure", "answer"), [((0.9, 0.2, 0.5), "ann2"), ((0.2, 0.3, 0.9), "tim2")])
def test_the_guidance_has_a_say_in_the_decision(team: Any, watch: Any, stage: Any, sure: tuple[float, ...], answer: str) -> None:
    for name, probability in zip(("ann", "bob", "tim"), sure, strict=True):
        stage.say[name] = lambda request, name=name, p=probability: (f"{name}{len(request.messages) - 1}", p)
    assert watch(load_topology("star"), team).result.answer == answer


def test_a_server_and_two_more_are_needed(team: Any, hearers: Any, roles: Any) -> None:
    load_topology("star").check(team)
    with pytest.raises(UnmetNeed, match="topology 'star' needs at least 3 members; team 'test' has 2"):
        load_topology("star").check(team.only("ann", "tim"))
    with pytest.raises(UnmetNeed, match="topology 'star' needs a member with role 'server'; the roles in team 'test' are critic, member"):
        load_topology("star").check(roles(hearers(ann="phone", bob="phone", tim="tower"), tim="critic"))
