"""A team and one model of its size, trained anew and held against each other: tiny ones, from recipe to verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiflow_agents.bench.monolith import plan_monolith, questions_at
from aiflow_agents.cli.main import main
from aiflow_agents.config import dump_yaml
from aiflow_agents.errors import UserError
from aiflow_agents.training import corpus, nursery
from tests.conftest import make_model
from tests.training.conftest import TINY


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A team of two, one of which is there twice; both learn from each other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIFLOW_PATH", raising=False)
    monkeypatch.setattr(corpus, "CHUNK", 64)
    for name, skills in (("ada", {"add": 3, "sort": 1}), ("bob", {"add": 1, "sort": 3})):
        make_model(tmp_path / "agents" / "models" / name)
        (tmp_path / "agents" / "models" / name / "recipe.yaml").write_text(dump_yaml(TINY | {"name": name, "skills": skills}))
    (tmp_path / "agents" / "pair.yaml").write_text(
        "network: home-wifi\nmembers:\n  ann: {model: ada, tier: device, max_tokens: 6}\n  bo: {model: bob, tier: edge, role: server}\n"
        "  an2: {model: ada, tier: cloud}\n"
    )
    (tmp_path / "evals" / "small").mkdir(parents=True)
    (tmp_path / "evals" / "small" / "eval.yaml").write_text("team: pair\nskills: [add, sort]\ntasks: {dev: 8, test: 8}\ntopologies: [majority, debate]\n")
    return tmp_path


def test_both_sides_are_trained_and_judged(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiflow_agents.bench.monolith.FEWEST", 40)
    words = ["bench", "monolith", "small", "--scale", "0.5", "--limit", "8", "--display", "none", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    *team, whole = found["models"]
    assert [row["name"] for row in team] == ["ada", "bob"] and whole["name"] == "monolith"
    count = 2 * team[0]["parameters"] + team[1]["parameters"]  # of three members
    assert abs(whole["parameters"] / count - 1) < 0.02
    seen = sum(row["tokens"] for row in team)
    assert seen <= whole["tokens"] < 1.3 * seen  # it ends with a whole chunk, as they do
    assert found["recipe"]["phases"][0]["tokens"] == seen
    arms = found["summary"]["arms"]
    assert arms["monolith"]["kind"] == "rival" and {"ann", "bo", "an2", "majority", "vote@flops"} <= set(arms)
    assert "monolith" in {row["against"] for row in found["summary"]["verdicts"]}
    folder = here / "logs" / "monolith" / "small-0.5-0"
    weights = {file: file.read_bytes() for file in folder.glob("models/*/model.safetensors")}
    assert len(weights) == 3 and all(file.read_bytes() != (here / "agents" / "models" / "ada" / "model.safetensors").read_bytes() for file in weights)

    def no_training(*_: object) -> None:
        raise AssertionError("what is trained already is not trained again")

    monkeypatch.setattr(nursery.Trainer, "_step", no_training)
    assert main([*words[:-1]]) == 0
    out = capsys.readouterr().out
    assert "monolith" in out and "the team: 3 members of 2 models" in out and "times as many" in out


def test_scale_and_seed_are_those_of_every_recipe(here: Path) -> None:
    plan = plan_monolith("small", scale=0.25, train_seed=3)
    assert {name: recipe.name for name, recipe in plan.members.items()} == {"ann": "ada", "bo": "bob", "an2": "ada"}
    assert [recipe.seed for recipe in plan.recipes] == [3005, 3005] and not plan.peers
    assert [phase.tokens for phase in plan.recipes[0].phases] == [1200, 1200]
    assert questions_at(1) == 12_000 and questions_at(0.5) == 6_000 and questions_at(0.001) == 1_000


def test_what_cannot_be_made_into_one_is_said_at_once(here: Path) -> None:
    (here / "agents" / "models" / "bob" / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="member 'bo': the model .*bob has no recipe.yaml"):
        plan_monolith("small", scale=0.5)
    with pytest.raises(UserError, match="'willow' is a family"):
        plan_monolith("exits", scale=0.5)
    with pytest.raises(UserError, match="'controls' is a group of suites"):
        plan_monolith("controls", scale=0.5)
