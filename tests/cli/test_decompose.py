"""`aiflow family decompose` and `aiflow bench rank` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aiflow_agents.cli.main import main
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.training import corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 64)
    torch.set_num_threads(1)


def test_a_model_becomes_one_file_of_all_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tally"
    wanted = ["family", "decompose", "tally", str(out), "--measure-tokens", "1500", "--tune-tokens", "1500", "--keeps", "0.5,0.8", "--no-card", "--json"]
    assert main(wanted) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["method"] == "whitened" and found["tuning"]["tokens"] == 1500 and found["file_bytes"] == (out / "model.safetensors").stat().st_size
    assert [row["keep"] for row in found["sizes"]] == [1.0, 0.8, 0.5]
    assert "training questions of" in captured.err and "KL to the original by size" in captured.err
    tokens = torch.tensor([[1, 3, 40, 41, 42]])
    whole = Decoder.load(ROOT / "agents" / "models" / "tally").logits(tokens)
    torch.testing.assert_close(Decoder.load(out).logits(tokens), whole, rtol=0, atol=1e-3)
    assert not (out / "checkpoint").exists()
    assert json.loads((out / "config.json").read_text())["rank"]["data"].startswith("training questions of add")
    assert main(wanted) == 2 and f"{out} already holds a model" in capsys.readouterr().err


def test_its_card_says_how_good_every_size_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from functools import partial

    from aiflow_agents.models.family.model import FamilyModel
    from aiflow_agents.models.family.rank import spend
    from aiflow_agents.training import card

    monkeypatch.setattr(card, "decomposed_card", partial(card.decomposed_card, count_per_skill=2))
    out = tmp_path / "tally-ranks"
    assert main(["family", "decompose", "tally", str(out), "--measure-tokens", "1500", "--keeps", "0.6"]) == 0
    assert "at 0.6 " in capsys.readouterr().err
    found = json.loads((out / "card.json").read_text())
    assert found["command"].startswith("aiflow family decompose tally") and [row["keep"] for row in found["measured"]["sizes"]] == [1.0, 0.6]
    right = card.measure(FamilyModel.load(out, keep=spend(out, 0.6)), found["measured"]["sizes"][1]["exits"]["3"]["skills"], 2)
    assert found["measured"]["sizes"][1]["exits"]["3"]["overall"]["right"] == sum(r for r, _ in right.values())
    text = (out / "README.md").read_text()
    assert "| keep | block parameters | exit 3 |" in text and "keep: 0.7" in text


def test_an_interrupted_tuning_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from aiflow_agents.training import shrink

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(shrink, "tune", interrupted)
    assert main(["family", "decompose", "tally", str(tmp_path / "x y"), "--measure-tokens", "1000", "--tune-tokens", "9", "--method", "svd"]) == 130
    said = capsys.readouterr().err
    assert "interrupted; continue with: aiflow family decompose tally '" in said and "--method svd --tune-tokens 9" in said


def test_bench_rank_shows_tables_and_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "rank", "tally", "--method", "svd", "--method", "asvd", "--method", "whitened", "--keeps", "0.7", "--tune-tokens", "0"]
    assert main([*words, "--measure-tokens", "1000", "--per-skill", "2", "--work", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tally, 28 test questions: ") and "as decomposed, every layer alike\n keep" in out and "whitened at 0.7 against svd" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["family", "decompose", "taly", "out"], "no model named 'taly'; did you mean tally?"),
        (["family", "decompose", "tally", "out", "--keeps", "0.5;0.4"], "--keeps 0.5;0.4: expected numbers with commas between them"),
        (["family", "decompose", "tally", "out", "--keeps", "1.5"], "more than 0 and at most 1 of its parameters, not 1.5"),
        (["family", "decompose", "tally", "out", "--method", "pca"], "'pca' is not one of"),
        (["family", "decompose", "tally", "out", "--text", "none.txt"], "text none.txt cannot be read"),
        (["bench", "rank", "tally", "--method", "pca"], "no method 'pca'; known: svd, asvd, whitened, fisher"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(tmp_path / word) if word == "out" else word for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and captured.err.count("\n") == 1
