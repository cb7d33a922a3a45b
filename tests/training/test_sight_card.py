"""From a recipe to a model that sees, with its card, and the codecs of its features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aiflow_agents.cli.main import main
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Reply, Request, Turn, Want
from aiflow_agents.skills.scenes import KINDS, exam
from aiflow_agents.skills.splits import Question
from aiflow_agents.training.corpus import collate, example
from aiflow_agents.training.feature_sample import answered, feature_sample, needed_draws
from aiflow_agents.training.nursery import Nursery
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.sight_card import measure_sight
from aiflow_agents.wire.codecs import fit
from aiflow_agents.wire.picture import Picture

RECIPE: dict[str, Any] = {
    "name": "mole", "description": "Hardly sees.", "architecture": "qwen3", "tier": "edge", "seed": 3, "skills": {"at": 1.0},
    "size": {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64}, "vision": {"layer": 1, "questions": 2, "captions": [1, 2]},
    "phases": [{"kind": "answer", "tokens": 30000, "batch": 16}],
}  # fmt: skip


@pytest.fixture(scope="module")
def mole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a moment, by the nursery, with its card."""
    recipe, folder = Recipe.model_validate(RECIPE), tmp_path_factory.mktemp("nursery")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("aiflow_agents.training.sight.CHUNK", 64)
        nursery = Nursery(folder / "work", folder / "models", folder / "work")
        nursery.answer(recipe)
        nursery.hear(recipe)
        nursery.card(recipe, "aiflow train mole", count_per_skill=6, seed=4)
    return folder / "models" / "mole"


def test_its_card_says_what_was_measured(mole: Path) -> None:
    card = json.loads((mole / "card.json").read_text())
    model = FamilyModel.load(mole)
    tasks, views = exam(list(KINDS), "test", 54, 4)
    asked = [Request((Turn("user", task.text),), 16, picture=Picture(views[task.scene][2], 2)) for task in tasks]
    right = sum(isinstance(reply, Reply) and reply.text.strip() == task.answer for task, reply in zip(tasks, model.generate(asked), strict=True))
    third = card["measured"]["fewer"]["camera 2 alone"]["overall"]
    assert (third["right"], third["asked"]) == (right, 54)
    whole = card["measured"]["alone"]
    assert set(whole) == {"overall", *KINDS} and whole["overall"]["right"] == sum(whole[kind]["right"] for kind in KINDS) > 0
    assert card["trained"]["total_tokens"] >= 30000 and card["weights_hash"] == model.info.weights_hash
    told = card["measured"]["told"]["captions, letters a place: 2"]["overall"]
    assert (told["right"], told["asked"]) == (_told(model, tasks, views), 54)
    text = (mole / "README.md").read_text()
    assert f"| all cameras | {whole['overall']['accuracy']:.1%}" in text and f"{card['parameters']:,} parameters" in text
    assert card["parameters"] == sum(p.numel() for p in _trained(mole))


def _told(model: FamilyModel, tasks: list[Any], views: Any) -> int:
    """Right answers where it reads what it has said of each picture, one question at a time."""
    right = 0
    for task in tasks:
        said = []
        for camera, name in enumerate(("north", "east", "south", "west")):
            (reply,) = model.generate([Request((Turn("user", "see2?"),), 18, picture=Picture(views[task.scene][camera], camera))])
            assert isinstance(reply, Reply)
            said.append(Turn("user", reply.text, name))
        (reply,) = model.generate([Request((*said, Turn("user", task.text)), 16)])
        right += isinstance(reply, Reply) and reply.text.strip() == task.answer
    return right


def _trained(folder: Path) -> list[Any]:
    """All weights in the folder, the head once, and without the last norm, which is counted with the blocks."""
    from safetensors.torch import load_file

    return [tensor for name, tensor in load_file(folder / "model.safetensors").items() if name != "lm_head.weight"]


def test_codecs_of_features_are_fitted_by_command_and_weigh_less(mole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sent(model: FamilyModel, codec: str) -> int:
        views = exam(["all"], "dev", 4, 1)[1]
        looks = [Request((), 0, want=Want(1, codec), picture=Picture(pixels, camera)) for scene in views for camera, pixels in enumerate(scene)]
        return sum(reply.parcel.nbytes for reply in model.generate(looks) if isinstance(reply, Reply) and reply.parcel)

    assert main(["calibrate", str(mole), "--calibration", "400", "--display", "none"]) == 0
    model = FamilyModel.load(mole)
    assert {codec.name for codec in model.info.codecs} == {"klt", "coarse", "int8", "int4", "merge"}
    assert sent(model, "coarse") < 0.5 * sent(model, "klt")
    assert sent(model, "int4") < 0.6 * sent(model, "int8") and sent(model, "klt") < 0.55 * sent(model, "float16")
    assert model.courier.codec("int8").fingerprint == fit("int8", feature_sample(model, 100, 0)).fingerprint
    assert measure_sight(model, count=54, codec="int8") and sent(model, "int8") < 0.6 * sent(model, "float16")
    assert main(["calibrate", str(mole), "--lower"]) == 2 and "fitted on scenes" in capsys.readouterr().err


def test_gradients_are_of_what_it_answers(mole: Path) -> None:
    """The logits that are differentiated are those of answers as they are really given."""
    model = FamilyModel.load(mole)
    assert model.eyes is not None
    tasks, views = exam(["colour", "most"], "dev", 6, 3)
    looks = [Request((), 0, want=Want(1, "float32"), picture=Picture(pixels, camera)) for scene in views for camera, pixels in enumerate(scene)]
    replies, packed = model.exchange(looks, {})
    parcels = [reply.parcel for reply in replies if isinstance(reply, Reply) and reply.parcel]
    asked = [Request((Turn("user", task.text),), 8, features=tuple(parcels[task.scene * 4 : task.scene * 4 + 4])) for task in tasks]
    states = torch.stack(model.eyes.look([Picture(pixels, camera) for scene in views for camera, pixels in enumerate(scene)])).float()
    for task, reply in zip(tasks, model.exchange(asked, packed)[0], strict=True):
        assert isinstance(reply, Reply)
        batch = collate([example(Question(task.kind, task.text, model.chat.text(list(reply.token_ids[:-1]))))])
        said = answered(model.eyes, states[task.scene * 4 : task.scene * 4 + 4].flatten(0, 1)[None], batch).log_softmax(-1)[batch.targets >= 0]
        assert said.argmax(-1).tolist() == list(reply.token_ids) and said.amax(-1).tolist() == pytest.approx(list(reply.logprobs), abs=1e-3)
    sample = feature_sample(model, 20, 1, draws=2)["hidden.1"]
    assert sample.gradients is not None and sample.gradients.shape == (2, 20 * 36, 32) and (np.abs(sample.gradients).sum((0, 2)) > 0).mean() > 0.9
    assert needed_draws(["klt:step=1+range", "klt:step=1,by=output+range"]) and not needed_draws(["int8", "klt:step=1+range"])
