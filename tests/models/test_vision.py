"""A model that sees, by our engine, against the same weights under transformers' layers, which trained them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aiflow_agents.errors import ConfigError
from aiflow_agents.models.family.config import DecoderConfig
from aiflow_agents.models.family.info import model_info
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import CallError, Reply, Request, Sampling, Turn, Want
from aiflow_agents.skills import captions
from aiflow_agents.skills.scenes import CAMERAS, KINDS, draw, exam, pictures
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.sight import SightTrainer, captions_heard, captions_said, features_of, joined, read, states_of
from aiflow_agents.training.tokenizer import EOS, encode, prompt_ids
from aiflow_agents.wire.picture import Picture

RECIPE: dict[str, Any] = {
    "name": "mole", "description": "Hardly sees.", "architecture": "qwen3", "tier": "edge", "seed": 3, "skills": dict.fromkeys(KINDS, 1.0),
    "size": {"width": 32, "layers": 3, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64}, "vision": {"layer": 1, "questions": 2, "captions": [1, 2]},
    "phases": [{"kind": "answer", "tokens": 1000, "batch": 16}],
}  # fmt: skip


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> SightTrainer:
    torch.set_num_threads(1)
    trainer = SightTrainer(Recipe.model_validate(RECIPE), tmp_path_factory.mktemp("mole"))
    with torch.no_grad():
        for parameter in trainer.model.parameters():  # as bfloat16 keeps them; and lively, so that answers differ
            parameter.copy_((parameter * (3 if parameter.ndim == 2 else 1)).bfloat16().float())
    return trainer


@pytest.fixture(scope="module")
def mole(trainer: SightTrainer) -> FamilyModel:
    trainer.export(trainer.folder / "mole")
    return FamilyModel.load(trainer.folder / "mole")


@pytest.fixture(scope="module")
def views() -> list[list[Picture]]:
    """[scenes][cameras]"""
    return [[Picture(pixels, camera) for camera, pixels in enumerate(scene)] for scene in pictures(draw(6, "test", 1), 1)]


def ask(text: str, **options: Any) -> Request:
    return Request((Turn("user", text),), 4, **options)


def features(model: FamilyModel, views: list[Picture], codec: str = "float32", **options: Any) -> tuple[Any, dict[str, bytes]]:
    replies, packed = model.exchange([Request((), 0, want=Want(1, codec, **options), picture=picture) for picture in views], {})
    return tuple(reply.parcel for reply in replies if isinstance(reply, Reply) and reply.parcel), packed


def test_features_are_those_of_training(mole: FamilyModel, trainer: SightTrainer, views: list[list[Picture]]) -> None:
    assert mole.eyes is not None
    ours = torch.stack(mole.eyes.look([picture for scene in views for picture in scene])).view(6, 36, 32)
    pixels = torch.stack([torch.from_numpy(np.stack([picture.pixels for picture in scene])) for scene in views])
    with torch.no_grad():
        theirs = features_of(trainer.model, pixels, 1)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("cameras", [(0, 1, 2, 3), (2,), (1, 3), ()])
def test_answers_are_those_of_training(mole: FamilyModel, trainer: SightTrainer, views: list[list[Picture]], cameras: tuple[int, ...]) -> None:
    """Token by token, without a cache, by the layers that were trained; whichever cameras are there, and in whatever order they come."""
    for scene, text in zip(views[:3], ("red?", "at b4?", "kinds?"), strict=True):
        parcels, packed = features(mole, [scene[camera] for camera in reversed(cameras)])
        (reply,), _ = mole.exchange([ask(text, features=parcels)], packed)
        assert isinstance(reply, Reply)
        ids, made, logprobs = prompt_ids(text), [], []
        there = torch.tensor([[camera in cameras for camera in range(4)]])
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in scene]))[None]
        with torch.no_grad():
            seen = features_of(trainer.model, pixels, 1)
            while len(made) < 4 and (not made or made[-1] != 2):
                states = states_of(trainer.model, torch.tensor([[ids + made]]), seen, there, 1)
                scores = torch.log_softmax(trainer.model.lm_head(states[0, 0, -1]), -1)  # type: ignore[operator]
                made.append(int(scores.argmax()))
                logprobs.append(float(scores.max()))
        assert reply.token_ids == tuple(made) and reply.logprobs == pytest.approx(logprobs, abs=1e-3)


def test_a_question_is_blind_for_the_others(trainer: SightTrainer, views: list[list[Picture]]) -> None:
    """What trains together is what is asked alone."""
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in views[0]]))[None]
    both = torch.tensor([[prompt_ids("red?"), prompt_ids("all?")]])
    there = torch.tensor([[True, False, True, True]])
    with torch.no_grad():
        seen = features_of(trainer.model, pixels, 1)
        together = states_of(trainer.model, both, seen, there, 1)
        for i in range(2):
            assert torch.allclose(together[:, i : i + 1], states_of(trainer.model, both[:, i : i + 1], seen, there, 1), atol=1e-5)


def test_what_a_camera_says_is_as_in_training(mole: FamilyModel, trainer: SightTrainer, views: list[list[Picture]]) -> None:
    """Letter by letter: each is what training holds likeliest behind those before it."""
    for camera in (0, 3):
        (reply,) = mole.generate([Request((Turn("user", captions.see(2)),), 18, picture=views[1][camera])])
        assert isinstance(reply, Reply) and len(reply.token_ids) > 1
        prompt = prompt_ids(captions.see(2))
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in views[1]]))[None]
        with torch.no_grad():
            own = features_of(trainer.model, pixels, 1).unflatten(1, (4, 9))[:, camera]
            ids, places = torch.tensor([[prompt + list(reply.token_ids[:-1])]]), camera * 9 + torch.arange(9)[None]
            states, _ = joined(trainer.model, ids, own, torch.ones(1, 9, dtype=torch.bool), 1, places=places)
            scores = torch.log_softmax(trainer.model.lm_head(states[0, 0, len(prompt) - 1 :]), -1)  # type: ignore[operator]
        assert reply.token_ids == tuple(scores.argmax(-1).tolist()) and reply.logprobs == pytest.approx(scores.amax(-1).tolist(), abs=1e-3)


def test_what_is_read_of_captions_is_as_in_training(mole: FamilyModel, trainer: SightTrainer) -> None:
    """Several questions behind one set of captions, each as if it were asked alone, and by the chat template."""
    kinds = np.random.default_rng(5).integers(0, 17, (1, 4, 9, 2))
    heard, last = captions_heard(kinds)
    said = tuple(Turn("user", captions.spell(kinds[0, camera]), name) for camera, name in enumerate(CAMERAS))
    texts = ["red?", "all?", "r-b?"]
    asked = [Request((*said, Turn("user", text)), 1) for text in texts]
    assert [mole.chat.prompt(request.messages) for request in asked] == [heard[0].tolist() + prompt_ids(text)[1:] for text in texts]
    assert mole.chat.text(heard[0, last].tolist()) == "".join(captions.LETTERS[kind] for kind in kinds[0, :, :, -1].flatten())
    with torch.no_grad():
        states, _ = read(trainer.model, torch.tensor([[prompt_ids(text)[1:] for text in texts]]), heard, 2)
        scores = torch.log_softmax(trainer.model.lm_head(states[0, :, -1]), -1)  # type: ignore[operator]
    for reply, row in zip(mole.generate(asked), scores, strict=True):
        assert isinstance(reply, Reply) and reply.token_ids == (int(row.argmax()),) and reply.logprobs == pytest.approx([float(row.max())], abs=1e-3)


def test_captions_are_learned_as_they_are_said_and_heard() -> None:
    kinds = np.arange(18).reshape(1, 9, 2) % 17
    ids, targets = captions_said(kinds)
    begin = len(prompt_ids(captions.see(2))) - 1
    assert ids[0, : begin + 1].tolist() == prompt_ids("see2?") and (targets[0, :begin] == -100).all()
    assert targets[0, begin:].tolist() == [*encode(captions.spell(kinds[0])), EOS] and ids[0, begin + 1 :].tolist() == targets[0, begin:-1].tolist()


def test_rows_do_not_know_each_other(mole: FamilyModel, views: list[list[Picture]]) -> None:
    """Bit for bit the same in any batch: alone, or among many others."""
    asked = [ask(text, picture=picture) for scene in views for picture in scene for text in ("red?", "lime?", "most?", "at a1?")]
    together = mole.generate(asked)
    assert len({reply.text for reply in together if isinstance(reply, Reply)}) > 3
    assert [mole.generate([request])[0] for request in asked[::7]] == together[::7]


def test_one_camera_alone_and_its_own_features_say_the_same(mole: FamilyModel, views: list[list[Picture]]) -> None:
    parcels, packed = features(mole, views[0][1:2])
    (told,), _ = mole.exchange([ask("gold?", features=parcels)], packed)
    (alone,) = mole.generate([ask("gold?", picture=views[0][1])])
    assert isinstance(told, Reply) and isinstance(alone, Reply)
    assert told.token_ids == alone.token_ids and alone.work and told.work == alone.work[1:]


def test_placebos_weigh_the_same_and_say_nothing(mole: FamilyModel, views: list[list[Picture]]) -> None:
    whole, _ = features(mole, views[0], "float16")
    for kind in ("zeros", "noise"):
        parcels, packed = features(mole, views[0], "float16", placebo=kind)
        assert [parcel.nbytes for parcel in parcels] == [parcel.nbytes for parcel in whole]
        assert {parcel.digest for parcel in parcels}.isdisjoint(parcel.digest for parcel in whole)
    other, _ = features(mole, views[0], "float16", placebo="zeros")
    assert other == features(mole, views[1], "float16", placebo="zeros")[0]


def test_a_sampled_answer_depends_on_its_seed(mole: FamilyModel, views: list[list[Picture]]) -> None:
    said = mole.generate([ask("most?", picture=views[0][0], sampling=Sampling(1.5), seed=seed) for seed in (1, 1, 2, 3, 4)])
    assert said[0] == said[1] and len({reply.text for reply in said if isinstance(reply, Reply)}) > 1


def test_what_makes_no_sense_is_refused_alone(mole: FamilyModel, views: list[list[Picture]]) -> None:
    picture = views[0][0]
    parcels, packed = features(mole, [picture])
    bad = [
        ask("all?", picture=Picture(picture.pixels[:16], 0)), ask("all?", picture=Picture(picture.pixels, 4)), ask("all?", want=Want(1)),
        ask("all?", picture=picture, want=Want(2)), ask("all?", picture=picture, features=parcels), ask("all?", parcel=parcels[0]),
        ask("all?", picture=picture, want=Want(1, lower=True)),
    ]  # fmt: skip
    replies, _ = mole.exchange([ask("all?", picture=picture), *bad], packed)
    assert isinstance(replies[0], Reply)
    assert [reply.kind for reply in replies[1:] if isinstance(reply, CallError)] == ["refused"] * len(bad)


def test_a_folder_says_what_it_sees(mole: FamilyModel, trainer: SightTrainer, tmp_path: Path) -> None:
    assert mole.info.capabilities == {"logprobs", "vision"}
    text = (trainer.folder / "mole" / "config.json").read_text()
    for file in (trainer.folder / "mole").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for before, after in (('"patch": 8', '"patch": 7'), ('"layer": 1', '"layer": 3'), ('"cameras": 4', '"cameras": "4"')):
        (tmp_path / "config.json").write_text(text.replace(before, after))
        with pytest.raises(ConfigError, match="vision"):
            DecoderConfig.read(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"layer": 1', '"layer": 2'))
    assert model_info(tmp_path).weights_hash != mole.info.weights_hash


def test_training_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiflow_agents.training.sight.CHUNK", 32)
    monkeypatch.setattr("aiflow_agents.training.sight.UNREAD", 0.0)
    recipe = Recipe.model_validate({**RECIPE, "travel_noise": 0.2})
    straight = SightTrainer(recipe, tmp_path / "a")
    losses: list[float] = []
    straight.run(lambda at: losses.append(at.loss))
    assert len(losses) > 1 and all(b < a for a, b in pairwise([losses[0], losses[-1]]))

    class Killed(BaseException): ...

    def kill(_: Any) -> None:
        raise Killed

    first = SightTrainer(recipe, tmp_path / "b")
    with pytest.raises(Killed):
        first.run(kill)
    first.save_checkpoint()
    second = SightTrainer(recipe, tmp_path / "b")
    assert second.resume()
    second.run()
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True))


def test_recipes_that_cannot_be(tmp_path: Path) -> None:
    for change, said in (({"vision": None}, "needs vision"), ({"skills": {"add": 1}}, "no question about a scene"), ({"vision": {"layer": 3}}, "below the last")):
        with pytest.raises(ValueError, match=said):
            Recipe.model_validate({**RECIPE, **change})
    assert exam(["all"], "dev", 3, 1)[1].shape == (3, 4, 24, 24, 3)
