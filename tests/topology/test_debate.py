from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import log
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


def raters(stage: Any, **members: tuple[str, str, dict[str, float]]) -> Any:
    """Members who say one thing, and how likely they hold it and others: raters(stage, ann=("phone", "a", {"a": 0.9, "b": 0.1}))."""
    team = stage.team(**{
        name: (node, lambda request, said=said, held=held: (request.score or said, held[request.score or said])) for name, (node, said, held) in members.items()
    })  # fmt: skip
    can = frozenset({"logprobs", "score"})
    return replace(team, agents={agent.name: replace(agent, info=replace(agent.info, capabilities=can)) for agent in team})


def test_with_ratings_everyone_says_how_likely_it_holds_what_the_others_said(stage: Any, watch: Any) -> None:
    """Each different answer once, its own not again; and what somebody rules out loses, though two were sure of it."""
    team = raters(
        stage,
        ann=("phone", "a", {"a": 0.8, "b": 0.3}), bob=("tower", "a", {"a": 0.8, "b": 0.3}), tim=("tower", "b", {"b": 0.4, "a": 0.001}), tom=("tower", "", {"": 0.9, "a": 0.1, "b": 0.2}),
    )  # fmt: skip
    seen = watch(load_topology("debate", {"reply": "ratings", "decide": "pooled"}), team)
    asked = Counter((name, request.score, request.ended, len(request.messages)) for name, requests in stage.batches for request in requests)
    rated = {"ann": "b", "bob": "b", "tim": "a", "tom": "ab"}
    assert asked == Counter({(name, "", False, 1): 1 for name in rated} | {(name, answer, True, 1): 1 for name, answers in rated.items() for answer in answers})
    assert seen.result.answer == "b"
    assert watch(load_topology("debate", {"reply": "ratings"}), team).result.answer == "a"  # a weighted vote over drafts and ratings
    assert watch(load_topology("debate", {"reply": "ratings", "decide": "pooled", "rounds": 3}), team).result.usage == seen.result.usage


def test_a_placebo_rates_the_same_answers_to_another_question(stage: Any, watch: Any, trial: Any) -> None:
    team = raters(stage, ann=("phone", "a", {"a": 0.8, "b": 0.3}), tim=("tower", "b", {"b": 0.4, "a": 0.25}))
    placebo = load_topology("debate", {"reply": "ratings", "decide": "pooled", "placebo": "other"})
    assert placebo.control and not load_topology("debate").control
    fitted = placebo.fit(trial(team, questions=["q", "r"]))
    seen = watch(fitted, team)
    asked = Counter((name, request.messages[0].content, request.score) for name, requests in stage.batches for request in requests)
    assert asked == Counter([("ann", "q", ""), ("tim", "q", ""), ("ann", "r", "b"), ("tim", "r", "a")])
    assert seen.result.usage.calls == 4
    assert "use `aiflow eval`" in watch(placebo, team).result.error


def test_a_rating_travels_as_a_message_and_reads_the_answer_alone(stage: Any, watch: Any) -> None:
    """A prompt that was read for the draft is not read again for a rating; one that was not, is."""
    team = raters(stage, ann=("phone", "a", {"a": 0.8, "b": 0.3}), tim=("tower", "b", {"b": 0.4, "a": 0.25}))
    draft = {name: stage.do(team, lambda team, name=name: team[name].ask("q")).usage for name in ("ann", "tim")}

    async def rated_unread(team: Any) -> Any:
        return await team["tim"].ask("q", rate=await team["ann"].ask("q"))

    unread = stage.do(team, rated_unread)
    assert (unread.answer, unread.confidence) == ("a", pytest.approx(0.25)) and unread.error is None
    seen = watch(load_topology("debate", {"reply": "ratings", "decide": "pooled"}), team)
    shape = team["tim"].info.shape
    context = 2  # the prompt, and the rated text itself
    behind = 2.0 * shape.block_params + 4.0 * shape.layers * shape.heads * shape.head_dim * context + 2 * 2.0 * shape.head_params
    alone = sum(usage.flops for usage in draft.values())
    assert seen.result.usage.flops == pytest.approx(alone + 2 * behind)
    assert unread.usage.flops > draft["ann"].flops + behind
    assert [(message, src, to) for message, src, to in seen.moves if message.startswith("tim")] == [("tim.1", "tower", "phone"), ("tim.3", "tower", "phone")]
    assert log(0.8) + log(0.25) > log(0.4) + log(0.3) and seen.result.answer == "a"


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
    with pytest.raises(UnmetNeed, match="'debate' with ratings needs members who can say how likely an answer is; ann cannot"):
        load_topology("debate", {"reply": "ratings"}).check(team)
    with pytest.raises(UnmetNeed, match="give it reply=ratings"):
        load_topology("debate", {"placebo": "other"}).check(team)
