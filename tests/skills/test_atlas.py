"""The atlas against a graph walked by networkx, and what makes its room hard: shards overlap, disagree, and none of them is enough."""

from __future__ import annotations

from functools import cache
from random import Random

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.skills import atlas
from aiflow_agents.skills.splits import balanced, skill, split_of
from aiflow_agents.training.heard import MAX_ANSWER

SHARDS = {"atlas-one": 1, "atlas-two": 2, "atlas-three": 3, "atlas-sum-two": 2, "atlas-sum-three": 3}


@cache
def graph() -> nx.MultiDiGraph:
    """The new edition: an edge is a fact."""
    edges = nx.MultiDiGraph()
    edges.add_edges_from((whose, value, relation) for (relation, whose), value in atlas.world().new.items())
    return edges


def walked(question: str) -> str:
    """The answer by following edges."""
    found = []
    for chain in question.removesuffix("=").split("+"):
        *relations, at = chain.split()
        for relation in relations[::-1]:
            (at,) = [to for _, to, key in graph().out_edges(at, keys=True) if key == relation]
        found.append(at)
    return found[0] if len(found) == 1 else str(sum(map(int, found)))


@pytest.mark.parametrize("kind", atlas.ATLAS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_the_answer_is_what_the_graph_says(kind: str, seed: int) -> None:
    question, answer = atlas.ATLAS[kind](Random(seed))
    assert (question, answer) == skill(kind)(Random(seed)) and answer == walked(question)
    assert len(answer) < MAX_ANSWER and all(" " <= character <= "~" for character in question + answer)


@pytest.mark.parametrize("kind", atlas.ATLAS)
def test_a_question_needs_as_many_shards_as_its_kind_says(kind: str) -> None:
    """Without one of the relations' owners there is no answer, and with the relations of these owners alone there is."""
    new = atlas.world().new
    for seed in range(30):
        question, answer = atlas.draw(kind, Random(seed))
        needed = [owner for owner in atlas.HELD if atlas.answer(question, {f: v for f, v in new.items() if atlas.OWNER[f[0]] != owner}) is None]
        assert len(needed) == SHARDS[kind]
        assert atlas.answer(question, {f: v for f, v in new.items() if atlas.OWNER[f[0]] in needed}) == answer


def test_names_are_one_thing_each() -> None:
    names = [name for called in atlas.world().names.values() for name in called]
    assert len(names) == len(set(names)) == sum(atlas.SIZES.values())
    assert set(atlas.world().new) == set(atlas.world().old)


def test_shards_overlap_and_disagree() -> None:
    new, old = atlas.world().new, atlas.world().old
    changed = sum(new[fact] != old[fact] for fact in new) / len(new)
    assert changed == pytest.approx(atlas.CHANGED, abs=0.03)
    said: dict[atlas.Fact, list[str]] = {fact: [] for fact in new}
    for name, relations in atlas.HELD.items():
        for fact, value in atlas.shard(name).items():
            assert fact[0] in relations and value in (new[fact], old[fact])
            said[fact].append(value)
    assert all(said.values())
    assert sum(len(values) > 1 for values in said.values()) > 0.8 * len(said)
    assert 0.1 < sum(len(set(values)) > 1 for values in said.values()) / len(said) < 0.5
    assert sum(new[fact] not in values for fact, values in said.items()) < 0.08 * len(said)  # what nobody has right is lost to every team
    owner_right = {r: sum(atlas.shard(atlas.OWNER[r])[f] == v for f, v in new.items() if f[0] == r) / atlas.SIZES[atlas.OWNER[r]] for r in atlas.RELATIONS}
    assert min(owner_right, key=owner_right.__getitem__) in ("pop", "ruler") and max(owner_right.values()) < 0.97
    assert atlas.shard("all") == new


def test_there_are_enough_different_questions_for_a_suite() -> None:
    questions = balanced(list(atlas.ATLAS), "test", 2000, 1)
    assert len({question.text for question in questions}) == 2000 and {split_of(question.text) for question in questions} == {"test"}


def test_what_is_missing_has_no_answer() -> None:
    facts = {("born", "ann"): "rome", ("pop", "rome"): "12", ("year", "ann"): "30"}
    assert atlas.answer("pop born ann+year ann=", facts) == "42" and atlas.answer("born ann", facts) == "rome"
    assert atlas.answer("pop born bob=", facts) is None and atlas.answer("year ann+year bob=", facts) is None
