"""`aiflow family`: grow, export and show as a user meets them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aiflow_agents.cli.main import main
from aiflow_agents.models.family import Family
from aiflow_agents.training import card, corpus, sources
from aiflow_agents.training.grow import Grower
from tests.conftest import make_family, make_model

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a plain model `bee` that has skills, one without (`ant`), and a family `fam`; chunks and exams are small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIFLOW_PATH", raising=False)
    monkeypatch.setattr(corpus, "CHUNK", 64)
    monkeypatch.setattr(sources, "HELD_QUESTIONS", 32)
    monkeypatch.setattr(sources, "PIECES", 16)
    real = card.exam
    monkeypatch.setattr(card, "exam", lambda skills, count, *rest: real(skills, 4, *rest))
    models = tmp_path / "agents" / "models"
    make_family(models / "fam")
    for name in ("bee", "ant"):
        make_model(models / name, layers=3)
    recipe = (models / "fam" / "recipe.yaml").read_text()
    (models / "bee" / "recipe.yaml").write_text(recipe.replace("exits: {0: 1, 1: 2, 2: 3}\n", ""))
    (tmp_path / "text.txt").write_text("38+57=95 " * 200)
    return tmp_path


@pytest.fixture
def aiflow(here: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*args: str) -> tuple[int, str, str]:
        code = main(["family", *args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_grown_shown_and_exported(here: Path, aiflow: Call) -> None:
    code, out, err = aiflow("grow", "bee", "--exits", "1", "--tokens", "2000", "--batch", "16")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "./agents/models/bee-family" and lines[2].split()[:2] == ["exit", "blocks"] and [line.split()[0] for line in lines[3:5]] == ["1", "2"]
    assert "bee-family grow: " in err and "tok/s" in err and "test questions right at exit 1" in err
    folder = here / "agents" / "models" / "bee-family"
    family, base = Family.load(folder), Family.load(here / "agents" / "models" / "bee")
    tokens = torch.arange(10, 20)[None]
    assert family.exits == (1, 2) and torch.equal(family.logits(tokens), base.logits(tokens))
    command = json.loads((folder / "card.json").read_text())["command"]
    assert shlex.split(command) == ["aiflow", "family", "grow", "bee", "--exits", "1", "--tokens", "2000", "--batch", "16"]

    code, out, _ = aiflow("show", "bee-family", "--json")
    shown = json.loads(out)
    assert code == 0 and [(row["exit"], row["blocks"]) for row in shown["exits"]] == [(1, 2), (2, 3)]
    assert shown["weight_bytes"] == (folder / "model.safetensors").stat().st_size
    code, out, _ = aiflow("export", "bee-family", "small", "--exit", "1")
    assert code == 0 and out.splitlines()[-1] == "use it in a team file as model: ./small"
    count = sum(tensor.numel() for tensor in load_file(here / "small" / "model.safetensors").values())
    assert shown["exits"][0]["parameters"] == count and f"{count:,} parameters in 2 blocks" in out
    assert torch.equal(Family.load(here / "small").logits(tokens), family.logits(tokens, exit=1))
    code, out, _ = aiflow("export", "bee-family", "smaller", "--exit", "2", "--json")
    assert json.loads(out)["exit"] == 2


def test_grown_by_tier_sizes_from_a_text_as_data(here: Path, aiflow: Call) -> None:
    code, out, _ = aiflow("show", "fam", "--json")
    sizes = {row["exit"]: row["parameters"] for row in json.loads(out)["exits"]}
    tiers = f"device={sizes[0]},edge={sizes[1] / 1000 + 0.1}k,cloud=1G"
    words = ["--tier-sizes", tiers, "--text", "text.txt", "--tokens", "300", "--length", "24", "--out", "out/grown", "--no-card", "--json"]
    code, out, err = aiflow("grow", "ant", *words)
    assert code == 0, err
    found = json.loads(out)
    assert found["tiers"] == {"device": 0, "edge": 1, "cloud": 2} and [row["exit"] for row in found["exits"]] == [0, 1, 2]
    assert found["exits"][0]["after"]["kl"] < found["exits"][0]["before"]["kl"] and found["exits"][2]["after"]["kl"] == 0
    assert found["exits"][0]["accuracy"] is None and not (here / "out/grown/card.json").exists()
    assert "edge gets exit 1" in err
    _, again, said = aiflow("grow", "ant", *words)
    assert again == out and "already trained" in said and "resumes" not in said


def test_ctrl_c_prints_the_command_that_goes_on(here: Path, aiflow: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["grow", "bee", "--exits", "0,1", "--tokens", "5000", "--batch", "16", "--joint", "--no-card", "--json"]
    straight = json.loads(aiflow(*words, "--out", "straight")[1])
    steps, real = 0, Grower._step

    def pressed(self: Grower, *args: Any) -> None:
        nonlocal steps
        real(self, *args)
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Grower, "_step", pressed)
        code, out, err = aiflow(*words, "--out", "other/straightened")
    assert code == 130 and out == "" and not (here / "other").exists()
    command = err.splitlines()[-1].partition("continue with: ")[2]
    code, out, err = aiflow(*shlex.split(command)[2:])
    assert code == 0 and "resumes at " in err
    again = json.loads(out)
    assert again["exits"] == straight["exits"] and again["tokens"] == straight["tokens"]
    ours, theirs = (load_file(here / folder / "model.safetensors") for folder in ("straight", "other/straightened"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_show_reads_accuracies_from_the_card(here: Path, aiflow: Call) -> None:
    folder = here / "agents" / "models" / "fam"
    assert "accuracy" not in aiflow("show", "fam")[1]
    exits = {str(e): {"overall": {"accuracy": 0.1 * (e + 1)}} for e in (0, 1, 2)}
    (folder / "card.json").write_text(json.dumps({"measured": {"alone": exits["2"], "exits": exits}}))
    out = aiflow("show", "fam")[1].splitlines()
    assert out[0].startswith("fam: 3 exits, ") and [line.split()[-1] for line in out[2:]] == ["accuracy", "10.0%", "20.0%", "30.0%"]
    (folder / "card.json").write_text(json.dumps({"measured": {"alone": exits["2"]}}))
    assert [line.split()[-1] for line in aiflow("show", str(folder))[1].splitlines()[3:]] == ["-", "-", "30.0%"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grow", "be", "--exits", "1"], "no model named 'be'; did you mean bee"),
        (["grow", "bee"], "say where to leave, either with --exits 4,8 or with --tier-sizes"),
        (["grow", "bee", "--exits", "1", "--tier-sizes", "device=1M"], "say where to leave"),
        (["grow", "bee", "--exits", "one"], "--exits one: expected numbers of layers"),
        (["grow", "bee", "--exits", "7"], "no exit 7: this model has 3 layers, so an exit is a number from 0 to 2"),
        (["grow", "bee", "--tier-sizes", "device"], "--tier-sizes device: expected each tier once"),
        (["grow", "bee", "--tier-sizes", "device=1K"], "nothing fits device=1000: the smallest exit, 0, has"),
        (["grow", "bee", "--tier-sizes", "device=1G"], "exit 2 is the whole model, which is there already"),
        (["grow", "fam", "--exits", "1"], "is a family already, with the exits 0, 1, 2; make a plain model of one first"),
        (["grow", "ant", "--exits", "1"], "has no recipe.yaml that names skills in our own tokens; give it a text: --text FILE"),
        (["grow", "ant", "--exits", "1", "--text", "nowhere.txt"], "text nowhere.txt cannot be read"),
        (["grow", "bee", "--exits", "1", "--out", "agents/models/bee"], "agents/models/bee is the base itself; choose another --out"),
        (["grow", "bee", "--exits", "1", "--out", "agents/models/ant"], "agents/models/ant already holds a model; choose another --out"),
        (["grow", "bee", "--exits", "1", "--out", "text.txt"], "text.txt is a file; choose another --out"),
        (["export", "fam", "text.txt", "--exit", "1"], "text.txt is a file; choose another folder"),
        (["grow", "bee", "--exits", "1", "--tokens", "0"], "Invalid value for '--tokens'"),
        (["export", "fam", "out", "--exit", "4"], "no exit 4; this model has 0, 1, 2"),
        (["export", "fam", "agents/models/ant", "--exit", "1"], "already holds a model; choose another folder"),
        (["export", "fam", "out"], "Missing option '--exit'"),
        (["show", "famm"], "no model named 'famm'; did you mean fam?"),
    ],
)
def test_a_mistake_is_one_line(aiflow: Call, words: list[str], said: str) -> None:
    code, out, err = aiflow(*words)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1
