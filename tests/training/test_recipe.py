from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiflow_agents import catalog
from aiflow_agents.config import dump_yaml, load_yaml, parse_yaml
from aiflow_agents.errors import ConfigError
from aiflow_agents.skills.atlas import ATLAS
from aiflow_agents.skills.questions import TRAINED
from aiflow_agents.skills.scenes import KINDS
from aiflow_agents.skills.worked import WORKED
from aiflow_agents.training.recipe import Recipe, load_recipe


def test_shipped_recipes_are_read_and_their_peers_exist() -> None:
    root = catalog.library()
    assert root is not None
    recipes = {path.stem: load_recipe(path) for path in (root / "agents/recipes").glob("*.yaml")}
    assert {recipe.name for recipe in recipes.values()} == set(recipes)
    assert {recipe.architecture for recipe in recipes.values()} == {"qwen3", "llama"}
    for recipe in recipes.values():
        assert {peer for phase in recipe.phases for peer in phase.peers} <= set(recipes)
        taught = set(recipe.skills).union(*(phase.skills or {} for phase in recipe.phases))
        assert taught <= (set(KINDS) if recipe.vision else {*TRAINED, *WORKED, *ATLAS})  # bigmul, the negative control, is never trained
        assert recipe.tier != "cloud" or any(taught >= set(field) for field in (TRAINED, WORKED, ATLAS))  # who is in the cloud has seen everything
    tokens = {name: sum(phase.tokens for phase in recipe.phases) for name, recipe in recipes.items()}
    cloud = {recipe.name: {peer for phase in recipe.phases for peer in phase.peers} for recipe in recipes.values() if recipe.tier == "cloud"}
    assert all(tokens[name] >= tokens[peer] for name, peers in cloud.items() for peer in peers)  # and at least as much as any other member of its team


def test_a_family_ends_with_the_whole_model(tiny: Recipe) -> None:
    def with_exits(*exits: int) -> Recipe:
        return Recipe.model_validate(tiny.model_dump() | {"size": tiny.size.model_dump() | {"layers": 3}, "exits": dict.fromkeys(exits, 1.0)})

    last = 2
    assert sorted(with_exits(0, last).exits) == [0, last]
    for wrong in ([0], [last + 1], [-1, last]):
        with pytest.raises(ValueError, match="exits"):
            with_exits(*wrong)


def test_a_recipe_survives_being_written_and_read(tmp_path: Path, tiny: Recipe) -> None:
    (tmp_path / "ada.yaml").write_text(dump_yaml(tiny))
    assert load_yaml(tmp_path / "ada.yaml", Recipe) == tiny


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("skills",), {"ad": 1}, "unknown skill ad"),
        (("skills",), {"add": -1}, "skills.add"),
        (("skills",), {"add": 0}, "no skill has a weight"),
        (("name",), "../ada", "name"),
        (("size", "kv_heads"), 3, "multiple of kv_heads"),
        (("size", "head_dim"), 15, "must be even"),
        (("phases",), [], "phases"),
        (("phases", 0, "kind"), "hear", "needs peers"),
        (("phases", 0, "peers"), ["bob"], "hears nobody"),
        (("phases", 0, "token"), 5, "token"),
    ],
)
def test_a_mistake_is_named(tiny: Recipe, place: tuple[Any, ...], value: Any, says: str) -> None:
    inner = data = tiny.model_dump(mode="json")
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    with pytest.raises(ConfigError, match=says):
        parse_yaml(dump_yaml(data), Recipe, file="ada.yaml")


def test_hearing_cannot_come_first(tiny: Recipe) -> None:
    data = tiny.model_dump(mode="json")
    with pytest.raises(ConfigError, match="first phase"):
        parse_yaml(dump_yaml(data | {"phases": data["phases"][::-1]}), Recipe)


def test_scaled_keeps_the_shares(tiny: Recipe) -> None:
    assert [phase.tokens for phase in tiny.scaled(1000).phases] == [500, 500]
    assert [phase.tokens for phase in tiny.scaled(1).phases] == [1, 1]
    assert tiny.answering == 1
