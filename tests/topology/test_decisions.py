"""How several answers become one, against the definitions."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable
from math import isclose, prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_agents.errors import NotHere, UserError
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.decisions import DECISIONS, Decision, collect, majority, most_confident, pooled, weighted
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.message import HERE, MOVER, Message

votes = st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 8).map(lambda n: n / 8)), min_size=1, max_size=7)
Votes = list[tuple[str, float | None]]


def drafts(given: Votes, node: str = "home") -> list[Message]:
    return [Message(f"m.{i}", f"m{i}", node, _text=f"I say {a}", _answer=a, _confidence=p) for i, (a, p) in enumerate(given)]


def decided(decision: Any, given: Votes) -> Message:
    return asyncio.run(decision(drafts(given), at="home"))


def doubt(given: Votes) -> dict[str, float]:
    """How likely all who gave an answer are wrong, if they err independently."""
    wrong: dict[str, list[float]] = defaultdict(list)
    for answer, p in given:
        wrong[answer].append(1 - (0.5 if p is None else p))
    return {answer: prod(all_wrong) for answer, all_wrong in wrong.items()}


@given(votes)
def test_majority_is_the_most_frequent_answer_and_of_equals_the_surest_in_sum(given: Votes) -> None:
    winner = decided(majority, given)
    counts, trust = Counter(answer for answer, _ in given), Counter[str]()
    for answer, p in given:
        trust[answer] += p or 0.0  # type: ignore[assignment]
    assert (counts[winner.answer], trust[winner.answer]) == max((counts[answer], trust[answer]) for answer in counts)


@given(votes)
def test_weighted_is_the_answer_least_likely_to_have_only_mistaken_supporters(given: Votes) -> None:
    winner, wrong = decided(weighted, given), doubt(given)
    assert isclose(wrong[winner.answer], min(wrong.values()), rel_tol=1e-9, abs_tol=1e-8)


@given(votes)
def test_pooled_is_the_answer_with_the_largest_geometric_mean_of_confidences(given: Votes) -> None:
    held: dict[str, list[float]] = defaultdict(list)
    for answer, p in given:
        held[answer].append(0.5 if p is None else p)
    mean = {answer: prod(all_held) ** (1 / len(all_held)) for answer, all_held in held.items()}
    winner = mean[decided(pooled, given).answer]
    assert isclose(winner, max(mean.values()), rel_tol=1e-9) or max(mean.values()) == 0  # between answers that somebody rules out the others decide


def test_one_who_rules_an_answer_out_outweighs_two_who_think_it_likely() -> None:
    sure = [("a", 0.7), ("a", 0.7), ("a", 0.001), ("b", 0.2), ("b", 0.2), ("b", 0.2)]
    assert decided(pooled, sure).answer == "b" and decided(weighted, sure).answer == "a"


@given(votes)
def test_most_confident_is_the_surest_members(given: Votes) -> None:
    assert (decided(most_confident, given).confidence or 0.0) == max(p or 0.0 for _, p in given)


@given(votes, st.sampled_from([majority, weighted, pooled, most_confident]))
def test_the_spokesman_is_the_surest_of_its_side_and_of_equals_the_earlier(given: Votes, decision: Any) -> None:
    winner = decided(decision, given)
    side = [(i, p or 0.0) for i, (answer, p) in enumerate(given) if answer == winner.answer]
    assert winner.id == f"m.{max(side, key=lambda member: (member[1], -member[0]))[0]}"


@given(votes, st.randoms(), st.sampled_from([majority, weighted, most_confident]))
def test_the_order_of_the_members_decides_ties_alone(given: Votes, random: Any, decision: Any) -> None:
    shuffled = random.sample(given, len(given))
    one, other = decided(decision, given).answer, decided(decision, shuffled).answer
    if one != other:  # then nothing else could tell the two apart
        wrong, counts = doubt(given), Counter(answer for answer, _ in given)
        sums = {a: sum(p or 0.0 for answer, p in given if answer == a) for a in (one, other)}
        surest = {a: max(p or 0.0 for answer, p in given if answer == a) for a in (one, other)}
        assert decision is not majority or (counts[one] == counts[other] and isclose(sums[one], sums[other]))
        assert decision is not weighted or isclose(wrong[one], wrong[other], abs_tol=1e-8)
        assert decision is not most_confident or surest[one] == surest[other]


def test_a_decision_moves_the_answers_alone_to_where_it_is_taken_and_reads_them_there() -> None:
    moved: list[tuple[list[str], str]] = []

    async def move(messages: Iterable[Message], node: str) -> None:
        moved.append(([m._said for m in messages if m.node != node], node))

    async def main(decision: Any) -> None:
        MOVER.set(move)
        HERE.set("home")
        said = [*drafts([("a", 0.9), ("b", 0.2)], "tower"), *drafts([("a", 0.1)], "cloud")]
        winner = await decision(said, at="cloud")
        assert winner.node == "cloud" and winner.id == "m.0"
        with pytest.raises(NotHere):
            _ = winner.answer  # it was decided there, and is not yet here

    for decision in DECISIONS.values():
        asyncio.run(main(decision))
    assert moved == [(["a", "b"], "cloud")] * len(DECISIONS)


def test_what_is_already_there_need_not_move() -> None:
    said = drafts([("a", 0.5), ("b", 0.5)])
    assert [m.text for m in asyncio.run(collect(said, "home"))] == ["a", "b"]


def test_decisions_are_parameters_by_name() -> None:
    class Pattern(Topology):
        decide: Decision = majority

    assert Pattern(decide="most-confident").decide is most_confident and Pattern().learned() == {"decide": "majority"}  # type: ignore[arg-type]
    assert {name: Pattern(decide=name).learned()["decide"] for name in DECISIONS} == {name: name for name in DECISIONS}  # type: ignore[arg-type]

    async def mine(drafts: Any, *, at: str) -> Message:
        return drafts[0]

    assert Pattern(decide=mine).learned() == {"decide": "mine"}
    with pytest.raises(UserError, match="no decision named 'mayority'; did you mean majority"):
        load_topology("debate", {"decide": "mayority"})


@pytest.mark.parametrize("decision", [majority, weighted, most_confident])
def test_who_said_nothing_has_no_vote_unless_nobody_said_anything(decision: Any) -> None:
    assert decided(decision, [("", 0.9), ("", 0.9), ("a", 0.2)]).answer == "a"
    assert decided(decision, [("", 0.1), ("", 0.9)]).id == "m.1"
