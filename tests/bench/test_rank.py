"""What `bench rank` counts as right must be what a model really answers, and its tests must be those of the counts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from aiflow_agents.bench.rank import bench_rank, score
from aiflow_agents.evals.statistics import holm, mcnemar_exact
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.training import corpus
from aiflow_agents.training.card import exam
from aiflow_agents.training.heard import answers
from aiflow_agents.training.nested import Tuning
from aiflow_agents.training.tokenizer import EOS, encode, prompt_ids

TALLY = Path(__file__).parents[2] / "agents" / "models" / "tally"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_right_is_what_the_model_answers_and_perplexity_what_it_thinks_of_the_answer() -> None:
    questions = exam(["add", "mul", "sort"], 30)
    found = score(Decoder.load(TALLY), questions)
    said = answers(FamilyModel.load(TALLY), questions)
    assert found.right.tolist() == [answer == question.answer for answer, question in zip(said, questions, strict=True)]
    assert 10 < found.right.sum() < 80

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TALLY, dtype=torch.float32)
    for question, nll in zip(questions[::10], found.nll[::10], strict=True):
        prompt, answer = prompt_ids(question.text), [*encode(question.answer), EOS]
        with torch.no_grad():
            logp = model(torch.tensor([prompt + answer])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        assert nll == pytest.approx(-float(logp[range(len(answer)), answer].mean()), abs=1e-4)
    lengths = [len(question.answer) + 1 for question in questions]
    total = sum(nll * length for nll, length in zip(found.nll, lengths, strict=True))
    assert found.perplexity == pytest.approx(math.exp(total / sum(lengths)))


def test_methods_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 64)
    how = Tuning(tokens=1500, keeps=(0.9, 0.5))
    found = bench_rank(TALLY, tmp_path, methods=("svd", "asvd", "whitened"), how=how, measured_tokens=1500, per_skill=4)
    rows = {(row["method"], row["tuned"], row["budget"], row["keep"]): row for row in found["rows"]}
    assert len(rows) == 3 * 2 * 3 + 2 * 2 and json.dumps(found)
    for (_, _, budget, keep), row in rows.items():
        assert row["kept"] <= keep and row["n"] == found["questions"] == 56
        if keep == 1:
            assert row["right"] == found["original"]["right"] and row["perplexity"] == pytest.approx(found["original"]["perplexity"], rel=1e-4)
        assert not budget or row["kept"] > keep - 0.01
    assert rows["whitened", False, False, 0.9]["perplexity"] < rows["svd", False, False, 0.9]["perplexity"]
    assert rows["whitened", False, False, 0.5]["flops_per_token"] < rows["whitened", False, False, 0.9]["flops_per_token"]

    cases = [("whitened", tuned, keep) for tuned in (False, True) for keep in (0.9, 0.5)]
    assert [(claim["method"], claim["tuned"], claim["keep"]) for claim in found["claims"]] == cases
    for claim in found["claims"]:
        for rival, pair in claim["against"].items():
            mine, other = (rows[name, claim["tuned"], False, claim["keep"]] for name in ("whitened", rival))
            assert pair["wins"] - pair["losses"] == mine["right"] - other["right"]
            assert pair["p_accuracy"] == mcnemar_exact(pair["wins"], pair["losses"]) <= claim["p_accuracy"]
    for both in (found["claims"][:2], found["claims"][2:]):
        assert [claim["p_accuracy_holm"] for claim in both] == holm([claim["p_accuracy"] for claim in both]).tolist()
    assert (tmp_path / "whitened-tuned" / "model.safetensors").exists()
