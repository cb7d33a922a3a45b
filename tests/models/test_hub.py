"""A model as transformers runs it, against the same model in our own engine: two implementations, one checkpoint."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents import catalog
from aiflow_agents.errors import UserError
from aiflow_agents.models.backends import Behind, behind
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.hub import HubModel, hub_info
from aiflow_agents.models.protocol import CallError, Reply, Request, Sampling, Turn, Want
from aiflow_agents.skills.questions import TRAINED
from aiflow_agents.skills.splits import stream

CLOSE = 1e-4  # where the top two lie nearer than this, two engines may differ


@pytest.fixture(scope="module")
def tally() -> Path:
    return catalog.find("model", "tally").path


@pytest.fixture(scope="module")
def both(tally: Path) -> tuple[HubModel, FamilyModel]:
    return HubModel.load(str(tally)), FamilyModel.load(tally)


def questions(count: int) -> list[Request]:
    drawn = [question.text for question in islice(stream(dict.fromkeys(TRAINED, 1.0), "dev", 8), count)]
    heard = Turn("user", "296", "oak"), Turn("user", "41", "maze")
    return [Request((Turn("user", text), *heard[: i % 3]), max_tokens=16) for i, text in enumerate(drawn)]


def test_the_same_text_and_probabilities_as_our_own_engine(both: Any) -> None:
    asked = questions(60)
    for theirs, ours in zip(*(model.generate(asked) for model in both), strict=True):
        assert isinstance(theirs, Reply) and isinstance(ours, Reply)
        differ = next((i for i, (a, b) in enumerate(zip(theirs.token_ids, ours.token_ids, strict=False)) if a != b), None)
        assert differ is None or abs(theirs.logprobs[differ] - ours.logprobs[differ]) < CLOSE, (theirs, ours)  # type: ignore[index]
        if differ is None:
            assert (theirs.text, theirs.token_ids, theirs.tokens_in, theirs.tokens_out, theirs.finish) == (
                ours.text, ours.token_ids, ours.tokens_in, ours.tokens_out, ours.finish,
            )  # fmt: skip
            assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-4)


def test_its_shape_is_counted_from_the_files_as_ours_is(both: Any) -> None:
    theirs, ours = (model.info for model in both)
    assert theirs.shape == ours.shape and theirs.max_context == ours.max_context
    assert (theirs.engine, theirs.capabilities) == ("transformers", {"logprobs"})


def test_a_stop_string_ends_an_answer_before_it(both: Any) -> None:
    plain = both[0].generate([Request((Turn("user", "37*8="),), max_tokens=16)])[0]
    assert len(plain.text) > 1 and plain.finish == "stop"
    for model in both:
        cut = model.generate([Request((Turn("user", "37*8="),), max_tokens=16, stop=(plain.text[1],)), Request((Turn("user", "7+"),), stop=("Z",))])[0]
        assert (cut.text, cut.finish, cut.tokens_out) == (plain.text[: plain.text.index(plain.text[1])], "stop", plain.text.index(plain.text[1]) + 1)


def test_a_sampled_answer_depends_on_its_seed_and_not_on_its_company(both: Any) -> None:
    warm = [Request((Turn("user", "37%8="),), max_tokens=8, sampling=Sampling(1.5), seed=seed) for seed in range(6)]
    alone = [both[0].generate([request])[0] for request in warm]
    assert both[0].generate([*questions(5), *warm])[5:] == alone
    assert len({reply.text for reply in alone}) > 1


def test_what_cannot_be_answered_fails_alone(both: Any) -> None:
    model = both[0]
    long = Request((Turn("user", "1+" * 300),))
    found = model.generate([*questions(1), long, Request((Turn("system", "be brief"),)), Request((Turn("user", "1"),), want=Want(1)), Request((Turn("user", "1"),), score="2")])
    assert isinstance(found[0], Reply)
    assert [found[i].kind for i in (1, 2, 3, 4)] == ["too-long", "refused", "refused", "refused"]
    assert all(isinstance(error, CallError) for error in found[1:]) and "without system turns" in found[2].message


def test_what_is_no_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'nobody/nothing' is no folder, and cannot be had from the Hugging Face hub.*go online once"):
        hub_info("nobody/nothing")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="no safetensors weights; other formats execute code"):
        hub_info(str(tmp_path))


def test_a_key_brings_the_same_backend_to_another_process(tally: Path) -> None:
    there = Behind(kind="transformers", model=str(tally))
    assert behind(there.key) == there and behind(str(tally)) == Behind(kind="family", model=str(tally))
    model = behind(there.key).load()
    (reply,) = model.generate([Request((Turn("user", "37*8="),))])
    assert isinstance(reply, Reply) and isinstance(model, HubModel) and math.isfinite(sum(reply.logprobs or ()))
