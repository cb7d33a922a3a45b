from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aiflow_agents.models.protocol import Reply
from aiflow_agents.skills import atlas
from aiflow_agents.skills.splits import split_of
from aiflow_agents.training import recall
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.trainer import Trainer
from tests.training.conftest import TINY
from tests.training.test_corpus import rows

KINDS = {"atlas-one": 1.0, "atlas-sum-three": 1.0}


def drawn(shard: str, index: int = 0, seed: int = 1) -> list[tuple[str, str]]:
    found = [row for batch in recall.chunk(shard, KINDS, seed, index, 16) for row in rows(batch)]
    return [(text.removeprefix("<bos><user>").partition("<assistant>")[0], target.removesuffix("<eos>")) for text, target in found]


@pytest.mark.parametrize("shard", ["goods", "all"])
def test_it_says_what_its_shard_says_and_no_test_question_is_in_it(shard: str) -> None:
    held, said = atlas.shard(shard), drawn(shard)
    assert len(said) == 2048
    for text, answer in said:
        assert answer == (atlas.answer(text, held) or "?")
        assert split_of(text) == "train" if text.endswith("=") else len(text.split()) == 2
    silent = Counter(answer == "?" for text, answer in said if not text.endswith("="))
    assert (0.1 if shard == "goods" else 0.0) < silent[True] / 2048 < 0.25
    asked = [answer for text, answer in said if text.endswith("=")]
    assert len(asked) == round(recall.ASKED * 2048) and ("?" in asked) == (shard != "all")


def test_some_facts_are_met_often_and_some_hardly_ever() -> None:
    count = Counter(text for index in range(20) for text, answer in drawn("lands", index) if not text.endswith("=") and answer != "?")
    met = sorted(count[" ".join(fact)] for fact in atlas.shard("lands"))
    tenth = len(met) // 10
    assert sum(met[-tenth:]) > 10 * sum(met[:tenth])
    assert drawn("lands", 3) == drawn("lands", 3) != drawn("lands", 4)


class Parrot:
    """Says what a shard says, but nothing about places."""

    def __init__(self, facts: atlas.Facts):
        self.facts = facts

    def generate(self, requests: Any) -> list[Reply]:
        texts = [request.messages[0].content for request in requests]
        said = ["?" if text.startswith("pop") else atlas.answer(text, self.facts) or "?" for text in texts]
        return [Reply(text, (), None, 0, 0) for text in said]


def test_recall_is_counted_by_relation() -> None:
    held = atlas.shard("goods")
    found = recall.measure(Parrot(held), "goods")  # type: ignore[arg-type]
    assert {relation: row["n"] for relation, row in found.items()} == {r: atlas.SIZES[kind] for r, (kind, _) in atlas.RELATIONS.items()}
    makers = [fact for fact in held if fact[0] == "maker"]
    right = sum(held[fact] == atlas.world().new[fact] for fact in makers)
    assert found["maker"] == {"n": 400, "held": 400, "as_learned": 400, "right": right, "unknown": 0} and 300 < right < 400
    assert found["pop"]["held"] > 200 and found["pop"]["as_learned"] == 0 and found["pop"]["unknown"] == 300
    assert found["land"]["held"] == 0 and found["land"]["unknown"] == 300


def test_a_recipe_with_a_shard_trains_on_it(small: None, tmp_path: Any) -> None:
    data = TINY | {"skills": KINDS, "shard": "towns", "phases": [{"kind": "recall", "tokens": 4000, "batch": 16}]}
    trainer = Trainer(Recipe.model_validate(data), tmp_path)
    batches = list(trainer._batches(0, 0))
    said = [row for batch in batches for row in rows(batch)]
    assert len(said) == 64 and any(text.endswith("<assistant>?") for text, _ in said)
    for wrong in ({"shard": "seas"}, {"shard": ""}):
        with pytest.raises(ValueError, match="shard"):
            Recipe.model_validate(data | wrong)
    with pytest.raises(ValueError, match="no phase of kind `recall`"):
        Recipe.model_validate(TINY | {"shard": "towns"})
