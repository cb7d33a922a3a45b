from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aiflow_agents.errors import UnknownName, UnmetNeed, UserError
from aiflow_agents.topology.load import load_topology

ALONE = [("ann", ()), ("bob", ()), ("tim", ())]


def test_everyone_answers_then_hears_the_others_and_answers_again(hearers: Any, watch: Any) -> None:
    seen = watch(load_topology("debate", {"rounds": 2}), hearers(ann="phone", bob="phone", tim="tower"))
    others = {name: [f"{other}:{other}" for other in ("ann", "bob", "tim") if other != name] for name in ("ann", "bob", "tim")}
    second, third = ([(name, tuple(f"{said}{heard}" for said in others[name])) for name in others] for heard in (0, 2))
    assert sorted(seen.calls) == sorted([*ALONE, *second, *third])


@pytest.mark.parametrize(
    ("graph", "second"),
    [
        ("path", [("ann", ("bob:bob0",)), ("bob", ("ann:ann0", "tim:tim0")), ("tim", ("bob:bob0",))]),
        ("star", [("ann", ("bob:bob0", "tim:tim0")), ("bob", ("ann:ann0",)), ("tim", ("ann:ann0",))]),
        ("tim>ann", [("ann", ("tim:tim0",)), ("bob", ()), ("tim", ())]),
    ],
)
def test_the_graph_says_who_hears_whom(hearers: Any, watch: Any, graph: str, second: Any) -> None:
    seen = watch(load_topology("debate", {"graph": graph}), hearers(ann="phone", bob="phone", tim="tower"))
    assert sorted({*seen.calls}) == sorted({*ALONE, *second}) and seen.result.usage.calls == 6


def test_the_last_drafts_are_decided_at_home(hearers: Any, crew: Any, watch: Any, stage: Any) -> None:
    team = hearers(ann="phone", bob="phone", tim="tower")
    stage.say["tim"] = lambda request: ("changed" if len(request.messages) > 1 else "first", 0.99)
    seen = watch(load_topology("debate"), team)
    assert seen.result.answer == "changed"
    seen = watch(load_topology("debate", {"decide": "majority", "rounds": 0}), crew(ann=("phone", "a", 0.9), bob=("phone", "b", 0.1), tim=("tower", "b", 0.1)))
    assert seen.result.answer == "b" and seen.result.usage.calls == 3


def test_a_draft_is_sent_once_to_a_node_where_several_hear_it(hearers: Any, watch: Any) -> None:
    seen = watch(load_topology("debate"), hearers(ann="phone", bob="phone", cid="phone", tim="tower", tom="tower"))
    assert max(Counter((message, to) for message, _, to in seen.moves).values()) == 1
    # the question and three drafts up; two drafts down, and the two that are decided on
    assert Counter(to for _, _, to in seen.moves) == {"tower": 1 + 3, "phone": 2 + 2}


def test_what_it_needs_is_checked_before_the_run(hearers: Any) -> None:
    team = hearers(ann="phone", tim="tower")
    load_topology("debate", {"graph": "ann-tim"}).check(team)
    with pytest.raises(UnknownName, match="no member named 'tom'; did you mean tim"):
        load_topology("debate", {"graph": "ann-tom"}).check(team)
    with pytest.raises(UserError, match="graph 'rings': expected one of complete, ring"):
        load_topology("debate", {"graph": "rings"}).check(team)
    with pytest.raises(UnmetNeed, match="'debate' needs at least 2 members"):
        load_topology("debate").check(team.only("ann"))
    with pytest.raises(UserError, match="parameter rounds: .*greater than or equal to 0"):
        load_topology("debate", {"rounds": -1})
