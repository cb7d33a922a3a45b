"""How to ask is found from what peers said; what a coordinator learns from is what its chat template writes; an interview is topology `inquiry`."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from aiflow_agents.models.protocol import Reply
from aiflow_agents.skills import atlas
from aiflow_agents.skills.splits import Question
from aiflow_agents.topology.load import load_topology
from aiflow_agents.training import inquiry, tokenizer
from aiflow_agents.training.corpus import Heard
from aiflow_agents.training.inquiry import Peers, Step, best_step, converse, interview, study
from aiflow_agents.training.recall import facts
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.trainer import Trainer
from tests.training.conftest import TINY
from tests.training.test_corpus import rows

WHO = {"ann": "goods", "bob": "people", "cid": "towns", "dan": "lands"}
KINDS = dict.fromkeys(atlas.ATLAS, 1.0)


@pytest.fixture(scope="module")
def pool() -> list[Heard]:
    """What four would answer who know their shards, but for every eleventh fact."""
    said = {name: atlas.shard(shard) for name, shard in WHO.items()}
    return [
        Heard(q, {name: "?" if (i + 3 * n) % 11 == 0 else atlas.answer(q.text, said[name]) or "?" for n, name in enumerate(WHO)})
        for i, q in enumerate(facts())
    ]


@pytest.fixture(scope="module")
def peers(pool: list[Heard]) -> Peers:
    return study(pool)


def outcome(step: Step, row: tuple[int, ...]) -> tuple[int, int]:
    """(what is believed in the end, 0 for nothing; how many were asked) when peers say `row`."""
    seen: list[int] = []
    calls = 0
    while step.peer is not None:
        calls += 1
        if (code := row[step.peer]) and code not in seen:
            seen.append(code)
        step = step.after[1 + seen.index(code) if code else 0]
    return seen[step.best - 1] if step.best else 0, calls


def test_the_best_is_asked_first_and_another_when_it_does_not_know() -> None:
    step = best_step([(0, 1, 0)] * 80 + [(1, 0, 0)] * 20)
    assert step.peer == 1 and step.after[1] == Step(best=1) and step.after[0].peer == 0
    assert outcome(step, (1, 0, 0)) == (1, 2)
    assert best_step([(0, 1), (0, 0)] * 50) == Step(1, 0, {1: Step(best=1), 0: Step(best=0)})  # who never knows is never asked
    assert best_step([(0, 1), (2, 1), (2, 2)] * 40 + [(1, 1)]).peer == 1


def test_two_who_agree_in_an_old_mistake_are_not_believed() -> None:
    """The first two copy the same old edition, the third is mostly right: a majority would be wrong where they differ."""
    rows = [(2, 2, 1)] * 40 + [(1, 1, 1)] * 50 + [(1, 1, 0)] * 10
    step = best_step(rows)
    assert [outcome(step, row)[0] for row in ((2, 2, 1), (1, 1, 1), (1, 1, 0))] == [1, 1, 1]


def test_a_second_is_asked_where_mistakes_differ() -> None:
    """Two who err apart: what both say is right; where they differ a third decides."""
    rows = [(1, 1, 1)] * 60 + [(2, 1, 1)] * 20 + [(1, 2, 1)] * 20
    assert sum(outcome(best_step([row[:2] for row in rows]), row[:2])[0] == 1 for row in rows) == 80
    assert all(outcome(best_step(rows, cost=0.001), row)[0] == 1 for row in rows)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=4, max_size=30), cost=st.floats(0, 0.2))
def test_it_is_worth_no_less_than_any_fixed_way(rows: list[tuple[int, ...]], cost: float) -> None:
    def worth(of: list[tuple[int, int]]) -> float:
        return sum((best == 1) - cost * calls for best, calls in of)

    best = worth([outcome(best_step(rows, cost), row) for row in rows])
    assert best >= -1e-9
    for order in ([0], [1], [2], [2, 1], [0, 1, 2]):  # ask in this order up to the first who says something, and believe that
        told = []
        for row in rows:
            said = [row[peer] for peer in order]
            calls = next((i + 1 for i, code in enumerate(said) if code), len(order))
            told.append((said[calls - 1], calls))
        assert best >= worth(told) - inquiry.LUCK * len(order) - inquiry.USEFUL * len(rows) - 1e-9


def test_what_the_peers_of_the_atlas_can_do_together(peers: Peers) -> None:
    """Asking well beats asking the owner, for every relation, and far where the owner has the old edition."""
    assert peers.names == tuple(WHO) and set(peers.rows) == set(atlas.RELATIONS)
    for relation, found in peers.rows.items():
        owner = list(WHO.values()).index(atlas.OWNER[relation])
        alone = sum(row[owner] == 1 for row, _ in found) / len(found)
        together = sum(outcome(peers.steps[relation], row)[0] == 1 for row, _ in found) / len(found)
        assert together > alone + (0.2 if relation in ("pop", "ruler") else 0.0)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 2**40))
def test_a_conversation_asks_only_for_what_it_was_told(peers: Peers, kind: str, seed: int) -> None:
    rng = Random(seed)
    question, turns = converse(rng.choice(atlas.forms()[kind]), peers, "sage", rng)
    known = {name for _, name in atlas.parse(question)}
    *talk, last = turns
    assert last.speaker == "sage" and len(talk) % 2 == 0
    told: dict[str, set[str]] = {}
    for own, other in zip(talk[::2], talk[1::2], strict=True):
        name, relation, whose = re.fullmatch(r"(\w+)\?(\w+) (\w+)", own.text).groups()  # type: ignore[union-attr]
        assert own.speaker == "sage" and other.speaker == name and relation in atlas.HELD[WHO[name]] and whose in known
        told.setdefault(f"{relation} {whose}", set()).add(other.text)
        known.add(other.text)
    if last.text != "?":  # some choice of what was heard gives the answer
        def results(chain: tuple[str, ...], value: str) -> set[str]:
            return {value} if not chain else {r for v in told.get(f"{chain[-1]} {value}", ()) for r in results(chain[:-1], v)}

        each = [results(chain, start) for chain, start in atlas.parse(question)]
        working, _, answer = last.text.rpartition("=")
        values = working.split("+") if working else [answer]
        assert all(value in told_of for value, told_of in zip(values, each, strict=True)) and answer == (str(eval(working)) if working else values[0])


def test_names_are_drawn_anew(peers: Peers) -> None:
    """No name of the atlas is taught: of 200 conversations none begins with more names of it than chance gives."""
    rng = Random(5)
    real = {name for called in atlas.world().names.values() for name in called}
    said = {name for _ in range(200) for _, name in atlas.parse(converse((("pop", "born"),), peers, "sage", rng)[0])}
    assert len(said & real) < 5


def test_what_is_learned_is_what_the_template_writes(peers: Peers, tmp_path: Path) -> None:
    tokenizer.save(tmp_path, 512)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    rng = Random(2)
    question, turns = converse((("pop", "born", "maker"),), peers, "sage", rng)
    ids, spans = inquiry.conversation(question, turns, "sage")
    chat = [{"role": "user", "content": question}]
    for said in turns:
        if said.speaker == "sage":
            prompt = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            start, end = spans.pop(0)
            assert ids[:start] == prompt and theirs.decode(ids[start:end]) == f"{said.text}<eos>"
            chat.append({"role": "assistant", "content": said.text})
        else:
            chat.append({"role": "user", "name": said.speaker, "content": said.text})
    assert not spans and ids == theirs.apply_chat_template(chat)["input_ids"]


def test_the_loss_is_on_its_own_turns(peers: Peers, small: None) -> None:
    batches = list(inquiry.chunk(peers, "sage", KINDS, 3, 4, 4))
    assert torch.equal(batches[0].ids, next(inquiry.chunk(peers, "sage", KINDS, 3, 4, 4)).ids)
    for text, target in (row for batch in batches for row in rows(batch)):
        own = [part.partition("<heard>")[0].removesuffix("<eos>") for part in text.split("<assistant>")[1:]]
        assert target == "".join(f"{said}<eos>" for said in own)


class Talker:
    """A model that says what a function says."""

    def __init__(self, say: Any):
        self.say = say

    def generate(self, requests: Any) -> list[Reply]:
        return [Reply(self.say(request), (), None, 0, 0) for request in requests]


def chair(request: Any) -> str:
    """Asks ann for both words, bob when she does not know, and puts together what it heard; asks for ever about `loop`."""
    first, second = request.messages[0].content.split()
    heard = request.messages[1:]
    if first == "loop":
        return f"ann?{second}"
    told = [turn.content for turn in heard if turn.role == "user" and turn.content != "?"]
    if len(told) == 2:
        return f"{'+'.join(told)}={''.join(told)}" if told[0] == "x" else "".join(told)  # at times with its working
    return f"{'bob' if heard and heard[-1].content == '?' else 'ann'}?{(first, second)[len(told)]}"


SAY = {"ann": lambda request: {"a": "x", "b": "?"}.get(request.messages[0].content, "z"), "bob": lambda request: request.messages[0].content * 2}


def test_an_interview_is_the_topology(stage: Any) -> None:
    from dataclasses import replace

    questions = ["a b", "b a", "a c", "loop a"]
    said = interview(Talker(chair), {n: Talker(say) for n, say in SAY.items()}, [Question("", q, "") for q in questions])  # type: ignore[arg-type,misc]
    assert said == ["xbb", "bbx", "xz", "ann?a"]
    team = stage.team(sage=("tower", chair), **{name: ("phone", say) for name, say in SAY.items()})
    team = replace(team, agents={a.name: replace(a, role="coordinator" if a.name == "sage" else "member") for a in team})
    assert [result.answer for result in stage.run(load_topology("inquiry"), team, questions)] == said


def test_a_coordinator_is_trained_and_resumed(pool: list[Heard], small: None, tmp_path: Path) -> None:
    data = TINY | {"name": "sage", "skills": KINDS, "max_length": 512, "phases": [{"kind": "ask", "tokens": 4000, "batch": 4, "peers": list(WHO)}]}
    recipe = Recipe.model_validate(data)
    assert recipe.answering == 0
    straight, stopped = Trainer(recipe, tmp_path / "one"), Trainer(recipe, tmp_path / "two")
    straight.pool = stopped.pool = pool
    losses: list[float] = []
    straight.run(lambda now: losses.append(now.loss))

    class Killed(BaseException): ...

    def kill(_: Any) -> None:
        stopped.save_checkpoint()
        raise Killed

    with pytest.raises(Killed):
        stopped.run(kill)
    again = Trainer(recipe, tmp_path / "two")
    assert again.resume() and again.state["chunk"] == 1
    again.pool = pool
    again.run()
    assert all(torch.equal(a, b) for a, b in zip(straight._tensors().values(), again._tensors().values(), strict=True))
    assert len(losses) > 2 and losses[-1] < losses[0]


