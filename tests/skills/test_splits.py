from __future__ import annotations

from collections import Counter
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.skills.questions import SKILLS, TRAINED
from aiflow_agents.skills.splits import SPLITS, balanced, skill, split_of, stream


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(TRAINED), seeds=st.tuples(st.integers(0, 2**48), st.integers(0, 2**48)))
def test_no_question_is_in_two_splits(name: str, seeds: tuple[int, int]) -> None:
    train = {question.text for question in islice(stream({name: 1.0}, "train", seeds[0]), 100)}
    held_out = {question.text for split in ("dev", "test") for question in islice(stream({name: 1.0}, split, seeds[1]), 40)}
    assert not train & held_out


@pytest.mark.parametrize("name", SKILLS)
def test_every_split_has_its_share_of_every_skill(name: str) -> None:
    rng = Random(0)
    share = Counter(split_of(text) for text in {SKILLS[name](rng)[0] for _ in range(3000)})
    total = sum(share.values())
    assert share["test"] / total == pytest.approx(0.2, abs=0.06)
    assert share["dev"] / total == pytest.approx(0.1, abs=0.05)


def test_a_question_stays_where_it_is() -> None:
    """The split is part of what was published: these must never change."""
    assert [split_of(text) for text in ("38+57=", "147%23=", "10+10=", "10+11=", "10+12=")] == ["dev", "train", "test", "test", "train"]


def test_streams_follow_seed_and_weights() -> None:
    def draw(seed: int, split: str = "train") -> list[tuple[str, str, str]]:
        return [tuple(question) for question in islice(stream({"add": 3, "sort": 1}, split, seed), 2000)]  # type: ignore[misc]

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed, split)) for seed in (1, 2) for split in SPLITS}) == 6
    assert Counter(skill for skill, _, _ in draw(1))["add"] == pytest.approx(1500, abs=80)


def test_balanced_takes_turns_and_repeats_nothing() -> None:
    questions = balanced(["add", "sort", "hops"], "test", 90, 4)
    assert [question.skill for question in questions] == ["add", "sort", "hops"] * 30
    assert len({question.text for question in questions}) == 90
    assert {split_of(question.text) for question in questions} == {"test"}


def test_balanced_says_when_a_skill_has_too_few() -> None:
    with pytest.raises(UserError, match="'mul' has too few different test questions for 2000"):
        balanced(["mul"], "test", 2000, 0)


def test_an_unknown_skill_gets_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean sort"):
        skill("srot")
