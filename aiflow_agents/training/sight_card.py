"""How good a model that sees is: with all cameras, with each one alone, with none, and told in text what they see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiflow_agents.config import dump_yaml
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Parcel, Reply, Request, Turn, Want
from aiflow_agents.skills import captions
from aiflow_agents.skills.scenes import CAMERAS, KINDS, SceneTask, exam
from aiflow_agents.training.heard import MAX_ANSWER
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.wire.picture import Picture

Right = dict[str, tuple[int, int]]  # kind -> (right, asked)
ALL = tuple(range(len(CAMERAS)))


def measure_sight(
    model: FamilyModel, cameras: Sequence[int] = ALL, count: int = 2700, split: str = "test", seed: int = 2026, codec: str = "float32"
) -> Right:
    """How many questions are answered right from the features of these cameras, by kind: (right, asked)."""
    assert model.eyes is not None
    tasks, views = exam(list(KINDS), split, count, seed)
    want = Want(model.eyes.config.layer, codec)
    looks = [Request((), 0, want=want, picture=Picture(scene[camera], camera)) for scene in views for camera in cameras]
    replies, packed = model.exchange(looks, {})
    parcels: list[Parcel] = [reply.parcel for reply in replies if isinstance(reply, Reply) and reply.parcel is not None]
    n = len(cameras)
    asked = [Request((Turn("user", task.text),), MAX_ANSWER, features=tuple(parcels[task.scene * n : (task.scene + 1) * n])) for task in tasks]
    return _marked(tasks, model.exchange(asked, packed)[0])


def measure_captions(model: FamilyModel, letters: int, count: int = 2700, split: str = "test", seed: int = 2026) -> Right:
    """The same from what all cameras say they see, with so many letters for each place."""
    tasks, views = exam(list(KINDS), split, count, seed)
    see = (Turn("user", captions.see(letters)),)
    said = model.generate([Request(see, letters * captions.PLACES, picture=Picture(scene[camera], camera)) for scene in views for camera in ALL])
    texts = [reply.text if isinstance(reply, Reply) else "" for reply in said]
    heard = [tuple(Turn("user", texts[scene * len(ALL) + camera], CAMERAS[camera]) for camera in ALL) for scene in range(len(views))]
    return _marked(tasks, model.generate([Request((*heard[task.scene], Turn("user", task.text)), MAX_ANSWER) for task in tasks]))


def _marked(tasks: Sequence[SceneTask], replies: Sequence[Any]) -> Right:
    found: Right = {}
    for task, reply in zip(tasks, replies, strict=True):
        right, of = found.get(task.kind, (0, 0))
        found[task.kind] = right + (isinstance(reply, Reply) and reply.text.strip() == task.answer), of + 1
    return found


def sight_card(folder: Path, recipe: Recipe, trained: dict[str, Any], *, count: int = 2700, seed: int = 2026, command: str = "") -> dict[str, Any]:
    """Measure an exported model that sees and write card.json, README.md and recipe.yaml. Returns what card.json holds."""
    model = FamilyModel.load(folder)
    ways = {**{f"camera {camera} alone": (camera,) for camera in ALL}, "no camera": ()}
    measured: dict[str, Any] = {"alone": _rows(measure_sight(model, ALL, count, "test", seed))}  # without peers, as of all models
    measured["fewer"] = {name: _rows(measure_sight(model, cameras, count, "test", seed)) for name, cameras in ways.items()}
    assert model.eyes is not None and recipe.vision is not None
    if recipe.vision.captions:
        told = {f"captions, letters a place: {letters}": measure_captions(model, letters, count, "test", seed) for letters in recipe.vision.captions}
        measured["told"] = {name: _rows(right) for name, right in told.items()}
    shape, eyes = model.info.shape, model.eyes
    parameters = shape.block_params + shape.head_params + sum(part.numel() for part in (eyes.patch, eyes.bias, eyes.places))
    card = {
        "name": recipe.name, "description": recipe.description, "parameters": parameters, "weights_hash": model.info.weights_hash,
        "trained": {key: trained[key] for key in ("total_tokens", "seconds") if key in trained}, "command": command,
        "exam": {"questions": count, "seed": seed, "split": "test"}, "measured": measured,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")
    return card


def _rows(right: Right) -> dict[str, Any]:
    total = tuple(map(sum, zip(*right.values(), strict=True)))
    return {kind: {"right": r, "asked": of, "accuracy": round(r / of, 4)} for kind, (r, of) in {"overall": total, **right}.items()}


def _readme(card: dict[str, Any]) -> str:
    kinds = [kind for kind in card["measured"]["alone"] if kind != "overall"]
    lines = [
        f"# {card['name']}", "", card["description"], "",
        f"{card['parameters']:,} parameters, trained from scratch on {card['trained'].get('total_tokens', 0):,} tokens of questions about scenes.",
        f"Command: `{card['command']}`", "",
        f"Right answers of {card['exam']['questions']:,} test questions (seed {card['exam']['seed']}), by what it sees:", "",
        "| | overall | " + " | ".join(kinds) + " |", "|---|" + "---|" * (len(kinds) + 1),
    ]  # fmt: skip
    for name, row in {"all cameras": card["measured"]["alone"], **card["measured"]["fewer"], **card["measured"].get("told", {})}.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[kind]['accuracy']:.1%}" for kind in ("overall", *kinds)) + " |")
    return "\n".join(lines) + "\n"
