"""How likely a given text is: the oracle is transformers' loss, of a plain model and of each exit written as one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from aiflow_agents.models.family.export import export_branch
from aiflow_agents.models.family.info import end_ids
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import CallError, Reply, Request, Turn
from aiflow_agents.runtime.memory import digest

TEXTS = [("a", "bc"), ("37*8=", "296"), ("who knows?", "nobody"), ("a", "z"), ("x" * 40, "y" * 30)]


def requests(**options: Any) -> list[Request]:
    return [Request((Turn("user", question),), 0, score=text, **options) for question, text in TEXTS]


def loss(model: Any, prompt: list[int], text: list[int]) -> float:
    """Mean NLL of the text's tokens behind the prompt."""
    labels = torch.tensor([[-100] * len(prompt) + text])
    with torch.no_grad():
        return float(model(torch.tensor([prompt + text]), labels=labels).loss)


def check(model: FamilyModel, folder: Path, replies: list[Any]) -> None:
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for (question, text), reply in zip(TEXTS, replies, strict=True):
        prompt, ids = model.chat.prompt((Turn("user", question),)), model.chat.ids(text)
        assert (reply.text, reply.token_ids, reply.tokens_in, reply.tokens_out) == (text, tuple(ids), len(prompt) + len(ids), 0)
        assert -math.fsum(reply.logprobs) / len(ids) == pytest.approx(loss(oracle, prompt, ids), abs=2e-4)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_it_is_the_loss_that_transformers_finds(make_checkpoint: Any, add_tokenizer: Any, kind: str) -> None:
    folder, _ = make_checkpoint(kind)
    add_tokenizer(folder)
    model = FamilyModel.load(folder)
    assert "score" in model.info.capabilities
    check(model, folder, model.generate(requests()))


def test_each_exit_has_its_own(family: Any, add_tokenizer: Any, tmp_path: Path) -> None:
    folder, _ = family
    add_tokenizer(folder)
    model = FamilyModel.load(folder)
    found = {}
    for exit in (1, 3, 5):
        export_branch(folder, exit, tmp_path / str(exit))
        found[exit] = model.generate(requests(exit=exit))
        check(model, tmp_path / str(exit), found[exit])
    assert len({reply.logprobs for replies in found.values() for reply in replies}) == 3 * len(TEXTS)


def test_company_and_bad_requests_change_nothing(make_checkpoint: Any, add_tokenizer: Any) -> None:
    folder, _ = make_checkpoint("qwen3", seed=1)
    add_tokenizer(folder)
    model = FamilyModel.load(folder)
    alone = [model.generate([request])[0] for request in requests()]
    long, refused = Request((Turn("user", "a"),), 0, score="b" * 300), Request((Turn("system", "no"), Turn("user", "a")), 0, score="b")
    mixed = model.generate([long, *requests(), Request((Turn("user", "a"),), 4), refused])
    assert isinstance(mixed[0], CallError) and mixed[0].kind == "too-long" and isinstance(mixed[-1], CallError) and mixed[-1].kind == "refused"
    assert isinstance(mixed[-2], Reply) and mixed[-2].tokens_out > 0, "an ordinary call beside them is answered"
    assert alone == mixed[1:-2], "to the bit"


def test_the_end_of_an_answer_is_scored_with_it(make_checkpoint: Any, add_tokenizer: Any) -> None:
    """Then the score of what a model says itself is the probability with which it says it."""
    folder, _ = make_checkpoint("qwen3")
    add_tokenizer(folder)
    model = FamilyModel.load(folder)
    (end, *_), oracle = end_ids(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for (question, text), plain, reply in zip(TEXTS, model.generate(requests()), model.generate(requests(ended=True)), strict=True):
        prompt, ids = model.chat.prompt((Turn("user", question),)), [*model.chat.ids(text), end]
        assert (reply.text, reply.token_ids, reply.tokens_in, reply.tokens_out) == (text, tuple(ids), plain.tokens_in, 0)  # type: ignore[union-attr]
        assert -math.fsum(reply.logprobs) / len(ids) == pytest.approx(loss(oracle, prompt, ids), abs=2e-4)  # type: ignore[union-attr]


def test_what_is_scored_is_part_of_what_is_remembered() -> None:
    one, other = requests()[:2]
    asked = [one, other, Request(one.messages, 0), replace(one, ended=True)]
    assert len({digest(("m", request)) for request in asked}) == len(asked)
