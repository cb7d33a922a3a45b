"""A model as transformers runs it, against the same model in our own engine: two implementations, one checkpoint."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from aiflow_agents import catalog
from aiflow_agents.errors import UserError
from aiflow_agents.models.backends import Behind, behind
from aiflow_agents.models.family.export import plain
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.hub import HubModel, _counted, hub_info
from aiflow_agents.models.protocol import CallError, Parcel, Reply, Request, Sampling, Turn, Want
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


@pytest.mark.parametrize("stop", [(), ("9",)])
def test_it_tells_every_token_while_it_makes_them(both: Any, stop: tuple[str, ...]) -> None:
    asked = [*(replace(request, stop=stop) for request in questions(20)), Request((Turn("user", "2+2="),), 4, Sampling(1.0), 5, stop)]
    for model in both:
        heard: list[Any] = []
        replies = model.generate(asked, told=lambda *what, heard=heard: heard.append(what))
        assert replies == model.generate(asked)
        for i, reply in enumerate(replies):
            ends = reply.token_ids[-1:] if reply.finish == "stop" and reply.token_ids[-1] in model_ends(both[1]) else ()
            assert [(at, ids) for row, at, ids, _ in heard if row == i] == [(at, (t,)) for at, t in enumerate(reply.token_ids[: len(reply.token_ids) - len(ends)])]


def model_ends(model: FamilyModel) -> frozenset[int]:
    return model.engine.eos_ids


def test_its_shape_is_counted_from_the_files_as_ours_is(both: Any, tally: Path) -> None:
    theirs, ours = (model.info for model in both)
    assert (theirs.engine, theirs.capabilities) == ("transformers", {"logprobs", "hidden"})
    assert (theirs.weights_hash, theirs.tokenizer_hash, theirs.shape) == (ours.weights_hash, ours.tokenizer_hash, ours.shape)
    counted = _counted(tally, "float32")  # as of a model that our decoder does not know
    assert counted.shape == ours.shape and counted.max_context == ours.max_context and counted.space == ""


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
    one = (Turn("user", "1"),)
    parcel = Parcel("00", 1, "00", Want(1), 1, ())
    cannot = [Request(one, score="2"), Request(one, exit=1), Request(one, parcel=parcel), Request(one, want=Want(1, lower=True)), Request(one, want=Want(9))]
    found = model.generate([*questions(1), long, Request((Turn("system", "be brief"),)), *cannot])
    assert isinstance(found[0], Reply)
    assert [error.kind for error in found[1:]] == ["too-long", *["refused"] * 6]
    words = ("without system turns", "a given text", "choose an exit", "go on from hidden", "keys and values", "the input of layer 9: it has 4 layers")
    assert all(isinstance(error, CallError) and said in error.message for error, said in zip(found[2:], words, strict=True))


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


# --- hidden states ---


def test_hidden_states_are_those_of_our_own_engine(both: Any) -> None:
    asked = [replace(request, want=Want(2, "float32")) for request in questions(20)]
    (theirs, packed), (ours, held) = (model.exchange(asked, {}) for model in both)
    for a, b in zip(theirs, ours, strict=True):
        assert (a.text, a.token_ids) == (b.text, b.token_ids)
        assert (a.parcel.prompt, a.parcel.draft, a.parcel.weights_hash, a.parcel.want) == (b.parcel.prompt, b.parcel.draft, b.parcel.weights_hash, b.parcel.want)
        assert (a.parcel.nbytes, a.work) == (len(packed[a.parcel.digest]), None)
        here, there = both[0].courier.unpack(packed[a.parcel.digest], a.parcel), both[1].courier.unpack(held[b.parcel.digest], b.parcel)
        assert here.token_ids == there.token_ids
        torch.testing.assert_close(here.hidden, there.hidden, atol=1e-4, rtol=1e-4)


def test_our_own_engine_goes_on_from_them(both: Any) -> None:
    asked = questions(20)
    theirs, packed = both[0].exchange([replace(request, want=Want(1)) for request in asked], {})
    onward = [Request(request.messages, request.max_tokens, parcel=reply.parcel) for request, reply in zip(asked, theirs, strict=True)]
    resumed, _ = both[1].exchange(onward, packed)
    assert [reply.text for reply in resumed] == [reply.text for reply in both[1].generate(asked)]
    nothing = [replace(one, parcel=replied.parcel) for one, replied in zip(onward, reversed(theirs), strict=True)]  # of another question
    assert [reply.text for reply in both[1].exchange(nothing, packed)[0]] != [reply.text for reply in resumed]


def test_without_an_answer_only_the_layers_below_are_billed(both: Any) -> None:
    (theirs,), _ = both[0].exchange([replace(questions(1)[0], want=Want(2), max_tokens=0)], {})
    (ours,), _ = both[1].exchange([replace(questions(1)[0], want=Want(2), max_tokens=0)], {})
    assert (theirs.text, theirs.tokens_out, theirs.work, theirs.parcel.nbytes) == ("", 0, ours.work, ours.parcel.nbytes)


def test_agents_of_one_model_on_two_engines_understand_each_other(tally: Path) -> None:
    from aiflow_agents.runtime.agent import Agent
    from aiflow_agents.wire.handshake import meet

    ours, theirs, other = (
        Agent("a", "a", Behind(kind=kind, model=str(folder)).info(), "phone", "phone")
        for kind, folder in (("family", tally), ("transformers", tally), ("transformers", catalog.find("model", "quill").path))
    )
    assert "hidden" in meet(theirs.hello, ours.hello, 2).forms and "hidden" not in meet(other.hello, ours.hello, 2).forms
    assert ours.fingerprint != theirs.fingerprint  # what one says is not remembered as the other's


def test_a_team_on_two_engines_hands_a_hidden_state_over(tmp_path: Path, stage: Any) -> None:
    from aiflow_agents import Team
    from aiflow_agents.runtime.hosts import InlineHosts

    (tmp_path / "two.yaml").write_text(
        "network: home-wifi\nmembers:\n  phone: {backend: transformers, model: tally, tier: device}\n  cloud: {model: tally, tier: cloud}\n"
    )

    async def over(team: Any) -> Any:
        first = await team["phone"].ask("37*8=", want=Want(2))
        return await (await team["cloud"].ask("37*8=", resume=first.as_("hidden"))).to(team.home)

    async def alone(team: Any) -> Any:
        return await (await team["cloud"].ask("37*8=")).to(team.home)

    team = Team.load(tmp_path / "two.yaml")
    handed, asked = (stage.do(team, how, hosts=InlineHosts()) for how in (over, alone))
    assert handed.error is None and handed.answer == asked.answer
    # it did not read the question again: one pass over what came, and the states travelled
    assert handed.usage.wire_bytes > asked.usage.wire_bytes + 1000


# --- models of other kinds ---


def test_a_model_without_a_chat_template_reads_line_by_line(tally: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    bare = tmp_path / "bare"
    shutil.copytree(tally, bare)
    (bare / "chat_template.jinja").unlink()
    model = HubModel.load(str(bare))
    (reply,) = model.generate([Request((Turn("user", "6*7="), Turn("user", "41", "oak"), Turn("user", "6*7=")), 8)])
    ids = model.tokenizer("6*7=\noak: 41\n6*7=", return_tensors="pt")["input_ids"]
    said = AutoModelForCausalLM.from_pretrained(bare, dtype=torch.float32).generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert isinstance(reply, Reply) and reply.tokens_in == ids.shape[1] and list(reply.token_ids) == said.tolist()


def test_one_exit_of_a_family_as_a_plain_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIFLOW_CACHE", str(tmp_path))
    willow = catalog.find("model", "willow").path
    ours, theirs, whole = FamilyModel.load(willow), HubModel.load(str(willow), exit=1), HubModel.load(str(willow))
    asked = [replace(request, exit=1) for request in questions(20)]
    same = [(reply.text, reply.token_ids) for reply in ours.generate(asked)]
    assert [(reply.text, reply.token_ids) for reply in theirs.generate(asked)] == same
    assert [reply.text for reply in whole.generate(questions(20))] == [reply.text for reply in ours.generate(questions(20))]
    assert theirs.generate([replace(asked[0], exit=3)])[0].kind == "refused"
    made = {folder: folder.stat().st_mtime_ns for folder in tmp_path.glob("exits/*/*")}
    assert sorted(folder.name for folder in made) == ["willow-exit1", "willow-exit7"]
    assert plain(willow, 1) in made and made == {folder: folder.stat().st_mtime_ns for folder in tmp_path.glob("exits/*/*")}  # made once
