"""From recipes to finished folders: members of an atlas learn their shards, and a coordinator what they know. Tiny ones, in a small atlas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.skills import atlas
from aiflow_agents.skills.splits import Question
from aiflow_agents.training import inquiry
from aiflow_agents.training.card import exam
from aiflow_agents.training.nursery import Nursery
from aiflow_agents.training.recipe import Recipe
from tests.conftest import transformers_says
from tests.training.conftest import TINY


@pytest.fixture
def village(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An atlas of a few facts."""

    def forget() -> None:
        for found in (atlas.world, atlas.shard, atlas.forms):
            found.cache_clear()

    monkeypatch.setattr(atlas, "SIZES", {"goods": 12, "people": 12, "towns": 10, "lands": 6})
    forget()
    yield
    forget()


def recipe(name: str, **more: Any) -> Recipe:
    return Recipe.model_validate(TINY | {"name": name, "skills": {"atlas-one": 1, "atlas-two": 1}, "max_length": 512} | more)


def test_members_recall_and_a_coordinator_asks(village: None, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [recipe(n, shard=s, phases=[{"kind": "recall", "tokens": 1, "batch": 16}]) for n, s in (("ann", "goods"), ("bob", "people"))]
    sage = recipe("sage", phases=[{"kind": "ask", "tokens": 1, "batch": 8, "peers": ["ann", "bob"]}])
    notes: list[str] = []
    nursery = Nursery(tmp_path / "work", tmp_path / "out", tmp_path / "work", note=notes.append)
    assert nursery.missing(sage) == ["ann", "bob"]
    with pytest.raises(UserError, match="aiflow train ann --phase answer"):
        nursery.hear(sage)
    for one in (*members, sage):
        nursery.answer(one)
    assert not (tmp_path / "work" / "sage" / "answer").exists()  # nobody learns from it
    for one in (*members, sage, sage):
        nursery.hear(one)
    (pool,) = (tmp_path / "work").glob("pool-*.jsonl")
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    assert {tuple(row[:3]) for row in rows} == {(r, f"{r} {whose}", value) for (r, whose), value in atlas.world().new.items()}
    said = transformers_says(tmp_path / "work" / "ann" / "answer", [row[1] for row in rows])
    assert [row[3]["ann"] for row in rows] == said
    assert sum(note.startswith("asking") for note in notes) == 1

    card = nursery.card(members[0], count_per_skill=5)
    held = atlas.shard("goods")
    assert {r: row["held"] for r, row in card["measured"]["recall"].items()} == {r: sum(fact[0] == r for fact in held) for r in atlas.RELATIONS}
    text = (tmp_path / "out" / "ann" / "README.md").read_text()
    assert "| maker | 12 | 12 |" in text and "the shard `goods`" in text

    monkeypatch.setattr("aiflow_agents.training.card.interview", lambda model, peers, questions: [q.answer for q in questions][:4] + [""] * (len(questions) - 4))
    card = nursery.card(sage, count_per_skill=5)
    assert card["measured"]["asking"]["overall"]["right"] == 4 and card["measured"]["asking"]["peers"] == ["ann", "bob"]
    text = (tmp_path / "out" / "sage" / "README.md").read_text()
    assert "Asking ann and bob: 0.400" in text and "asking peers" in text


def test_a_coordinator_that_says_nothing_sensible_is_heard_out(village: None, tmp_path: Path, models: list[Path]) -> None:
    """Random models babble; an interview ends all the same."""
    ant, bee, _ = (FamilyModel.load(folder) for folder in models)
    questions: list[Question] = exam(["atlas-two"], 4)
    assert len(inquiry.interview(ant, {"bee": bee}, questions)) == len(questions) > 0
