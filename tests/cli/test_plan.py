from __future__ import annotations

import json

import pytest

from aiflow_agents.cli.main import main


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    from tests.conftest import make_family

    return make_family(tmp_path_factory.mktemp("models") / "fern", seed=3, layers=3, exits=(1, 2))


def test_a_plan_in_words_in_json_and_as_a_file(family, tmp_path, capsys):
    asked = ["plan", str(family), "--questions", "6", "--sample", "2", "--max-tokens", "3", "--display", "none"]
    file = tmp_path / "plan.yaml"
    assert main([*asked, "--minimise", "bytes", "--out", str(file)]) == 0
    told = capsys.readouterr().out
    assert "wins: 0 B of bytes on links" in told and f"aiflow run QUESTION --team {file} --topology single -T member=alone" in told
    assert main(["run", "12+34=", "--team", str(file), "--topology", "single", "-T", "member=alone", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["wire_bytes"] == 0
    assert main([*asked, "--floor", "1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["winner"] is None and "No plan reaches the floor" in found["why"][0] and not any(row["wins"] for row in found["plans"])


@pytest.mark.parametrize(
    "more, said",
    [
        (["--costs-as", "cloud"], "is no TIER=SHAPE"),
        (["--costs-as", "moon=qwen3-8b"], "moon"),
        (["--costs-as", "cloud=qwen9-8b"], "qwen9-8b"),
        (["--suite", "exits", "--skill", "add"], "give one of them"),
        (["--skill", "adding"], "adding"),
        (["--network", "nowhere"], "nowhere"),
        (["--out", "/nowhere/at/all.yaml"], "there is no folder"),
    ],
)
def test_mistakes_are_one_line(family, more, said, capsys):
    assert main(["plan", str(family), *more, "--display", "none"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_a_plain_model_is_no_family(capsys):
    assert main(["plan", "tally", "--display", "none"]) == 2
    assert "one exit" in capsys.readouterr().err
