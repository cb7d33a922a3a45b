"""One model for a whole team: as many parameters, as many tokens, the same skills in the same shares."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents import catalog
from aiflow_agents.errors import UserError
from aiflow_agents.training.monolith import CLOSE, monolith, parameters, shape
from aiflow_agents.training.recipe import Recipe, Size, load_recipe
from aiflow_agents.training.trainer import build
from tests.training.conftest import TINY


def recipe(name: str) -> Recipe:
    return load_recipe(catalog.find("recipe", name).path)


def planned(*recipes: Recipe) -> list[list[int]]:
    return [[phase.tokens for phase in one.phases] for one in recipes]


@pytest.mark.parametrize("changes", [{}, {"architecture": "llama"}, {"size": {"width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp": 88}}])
def test_parameters_are_those_that_transformers_makes(changes: dict[str, object]) -> None:
    made = Recipe.model_validate(TINY | changes)
    assert parameters(made.size, made.architecture) == build(made).num_parameters()  # type: ignore[operator]


@settings(deadline=None, max_examples=20)
@given(st.integers(300_000, 60_000_000))
def test_there_is_a_shape_for_every_size_and_it_is_no_odd_one(count: int) -> None:
    like = Size(width=128, layers=6, heads=4, kv_heads=4, head_dim=32, mlp=352)
    found = shape(count, like)
    assert abs(parameters(found) / count - 1) < CLOSE
    assert 1 / 3 < (found.width / found.layers) / (128 / 6) < 3 and 1.3 < found.mlp / found.width < 5


def test_specialists_as_one() -> None:
    team = [recipe(name) for name in ("tally", "quill", "dial", "maze", "knot", "oak")]
    count = sum(parameters(one.size) for one in team)
    whole = monolith(team, count, planned(*team), seed=7)
    assert abs(parameters(whole.size) / count - 1) < CLOSE and whole.seed == 7 and whole.max_length == 256
    assert [(phase.kind, phase.tokens) for phase in whole.phases] == [("answer", sum(map(sum, planned(*team))))]
    assert whole.phases[0].lr == pytest.approx(0.015) and whole.phases[0].batch == 64
    assert sum(whole.skills.values()) == pytest.approx(1, abs=1e-3) and whole.skills == whole.phases[0].skills
    tokens = {one.name: sum(phase.tokens for phase in one.phases) for one in team}
    mul = sum(tokens[one.name] * one.skills["mul"] / sum(one.skills.values()) for one in team) / sum(tokens.values())
    assert whole.skills["mul"] == pytest.approx(mul, abs=1e-4)


def test_a_team_with_shards_becomes_one_model_that_learns_the_whole_atlas() -> None:
    team = [recipe(name) for name in ("cart", "kin", "gate", "map", "sage")]
    whole = monolith(team, 3_000_000, planned(*team))
    kinds = {phase.kind: phase for phase in whole.phases}
    assert list(kinds) == ["answer", "recall"] and whole.shard == "all" and whole.max_length == 512
    assert kinds["answer"].skills == {"add": 1.0} and kinds["answer"].tokens == 1_200_000
    assert kinds["recall"].tokens == sum(map(sum, planned(*team))) - 1_200_000
    assert set(whole.skills) == {"atlas-one", "atlas-two", "atlas-three", "atlas-sum-two", "atlas-sum-three"}


@pytest.mark.parametrize(("name", "why"), [("willow", "is a family"), ("owl", "sees")])
def test_what_shares_weights_or_sees_is_refused(name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' {why}"):
        monolith([recipe(name)], 1_000_000, planned(recipe(name)))
