"""A model that sees, in training: patches of each camera's picture through the first layers, then all cameras and the questions together.

    camera 0  [9 patches] --layers 0..k-1--\
    ...                                     features [36] --layers k..-- keys and values, which know of no question
    camera 3  [9 patches] --layers 0..k-1--/                                  |
    question  [tokens]    --layers 0..k-1-----------------------------layers k..-- answer

Patches of one camera see each other, and so do all features; a question sees the features and itself. So several questions about a scene share the
features, and are trained together, each blind for the others. A camera that is missing is masked.

Answers alone teach eyes slowly, so in training a linear head names what stands at each patch, from its features; it is not part of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aiflow_agents.skills import scenes as scenes_module
from aiflow_agents.skills.scenes import COLOURS, SHAPES, SceneTask
from aiflow_agents.skills.splits import Question
from aiflow_agents.training.branches import travel_noise
from aiflow_agents.training.corpus import collate, example
from aiflow_agents.training.front import CAMERAS, PATCHES
from aiflow_agents.training.recipe import Phase, Recipe
from aiflow_agents.training.trainer import Trainer

CHUNK = 512  # scenes drawn together
NAMING = 0.5  # weight of naming what stands at each patch, beside that of answers


class SceneBatch(NamedTuple):
    """`ids`, `targets`: [scenes, questions, longest], as in `Batch`; `pictures`: [scenes, cameras, 24, 24, 3], 8 bits a number; `there`
    [scenes, cameras]: which cameras are; `cells` [scenes, cameras, 9]: what stands at each patch."""

    ids: Tensor
    targets: Tensor
    pictures: Tensor
    there: Tensor
    cells: Tensor
    tokens: int

    def to(self, device: str) -> SceneBatch:
        ids, targets, pictures, there, cells = (one.to(device) for one in self[:5])
        return SceneBatch(ids, targets, pictures, there, cells, self.tokens)


def features_of(model: Any, pictures: Tensor, layer: int) -> Tensor:
    """The input of `layer` at every patch, each camera by itself: [scenes, cameras, 24, 24, 3] -> [scenes, cameras * 9, width]."""
    hidden = model.vision(pictures).flatten(0, 1)  # [scenes * cameras, 9, width]
    turns = model.model.rotary_emb(hidden, torch.arange(PATCHES)[None])
    open_ = torch.ones(1, 1, PATCHES, PATCHES, dtype=torch.bool)
    for block in model.model.layers[:layer]:
        hidden = block(hidden, attention_mask=open_, position_embeddings=turns)
    return hidden.unflatten(0, (-1, CAMERAS)).flatten(1, 2)


def states_of(model: Any, ids: Tensor, features: Tensor, there: Tensor, layer: int) -> Tensor:
    """What the head reads at each place of the questions: ids [scenes, questions, longest] -> the same with width."""
    inner, (n, questions, longest) = model.model, ids.shape
    count = features.shape[1]
    hidden = inner.embed_tokens(ids.flatten(0, 1))  # [scenes * questions, longest, width]
    turns = inner.rotary_emb(hidden, (count + torch.arange(longest))[None])
    for block in inner.layers[:layer]:
        hidden = block(hidden, position_embeddings=turns)
    hidden = torch.cat((features, hidden.unflatten(0, (n, questions)).flatten(1, 2)), 1)
    positions = torch.cat((torch.arange(count), (count + torch.arange(longest)).repeat(questions)))
    turns, mask = inner.rotary_emb(hidden, positions[None]), _mask(there, questions, longest)
    for block in inner.layers[layer:]:
        hidden = block(hidden, attention_mask=mask, position_embeddings=turns)
    return inner.norm(hidden[:, count:]).unflatten(1, (questions, longest))


def _mask(there: Tensor, questions: int, longest: int) -> Tensor:
    """Who sees whom, [scenes, 1, positions, positions]: all see the features that are there, a question sees itself up to each place."""
    seen = there.repeat_interleave(PATCHES, 1)[:, None, None]  # [scenes, 1, 1, features]
    n, count, text = len(there), seen.shape[-1], questions * longest
    self_ = torch.eye(count + text, count, dtype=torch.bool)  # of a camera that is missing nobody reads the features, but they must see something
    own = torch.block_diag(*[torch.ones(longest, longest, dtype=torch.bool).tril()] * questions)
    behind = torch.cat((torch.zeros(count, text, dtype=torch.bool), own))[None, None].expand(n, 1, -1, -1)
    return torch.cat((seen | self_, behind), -1)


class SightTrainer(Trainer):
    """Trains a model that sees through the phases of its recipe."""

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "cpu", phases: Any = None):
        assert recipe.vision is not None
        self.vision = recipe.vision
        super().__init__(recipe, folder, device=device, phases=phases)

    def _build(self, recipe: Recipe) -> nn.Module:
        model: Any = super()._build(recipe)
        model.namer = nn.Linear(recipe.size.width, len(COLOURS) * len(SHAPES) + 1)
        return model

    def _batches(self, phase: int, chunk: int) -> Iterable[SceneBatch]:  # type: ignore[override]
        return scene_batches(self.recipe, self.phases[phase], self.recipe.seed * 1000 + phase, chunk)

    def _loss(self, batch: SceneBatch) -> Tensor:  # type: ignore[override]
        features = features_of(self.model, batch.pictures, self.vision.layer)
        naming = nn.functional.cross_entropy(self.model.namer(features).flatten(0, 1), batch.cells.flatten())  # type: ignore[operator]
        if self.recipe.travel_noise:
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + int(self.state["total_tokens"]))
            features = travel_noise(features, self.recipe.travel_noise, generator)
        states, where = states_of(self.model, batch.ids, features, batch.there, self.vision.layer), batch.targets >= 0
        return nn.functional.cross_entropy(self.model.lm_head(states[where]), batch.targets[where]) + NAMING * naming  # type: ignore[operator]


def scene_batches(recipe: Recipe, phase: Phase, seed: int, chunk: int) -> Iterable[SceneBatch]:
    """The batches of a chunk: a function of its arguments. `phase.batch` counts scenes."""
    assert recipe.vision is not None
    key = seed * 1_000_003 + chunk
    scenes = scenes_module.draw(CHUNK, "train", key)
    asked = scenes_module.ask(scenes, phase.skills or recipe.skills, recipe.vision.questions, key)
    there = _there(CHUNK, recipe.vision.missing, key)
    for start in range(0, CHUNK, phase.batch):
        some = slice(start, start + phase.batch)
        here = scenes.take(np.arange(CHUNK)[some])
        yield collate_scenes(asked[some], scenes_module.pictures(here, key * CHUNK + start), there[some], scenes_module.in_view(here))


def collate_scenes(asked: list[list[SceneTask]], views: scenes_module.Pixels, there: np.ndarray, cells: np.ndarray) -> SceneBatch:
    """Questions [scenes][questions] about pictures [scenes, cameras, ...]; `tokens` counts those of the questions."""
    flat = collate([example(Question(task.kind, task.text, task.answer)) for row in asked for task in row])
    ids, targets = (one.unflatten(0, (len(asked), -1)) for one in (flat.ids, flat.targets))
    return SceneBatch(ids, targets, torch.from_numpy(views), torch.from_numpy(there), torch.from_numpy(cells), flat.tokens)


def _there(count: int, missing: float, seed: int) -> np.ndarray:
    """Which cameras are there, [count, cameras]: all, or in the share `missing` of scenes one alone (half of these) or any number below four."""
    rng = np.random.default_rng([seed, 4])
    kept = np.where(rng.random(count) < 0.5, 1, rng.integers(0, CAMERAS, count))
    kept = np.where(rng.random(count) < missing, kept, CAMERAS)
    return rng.random((count, CAMERAS)).argsort(1).argsort(1) < kept[:, None]
