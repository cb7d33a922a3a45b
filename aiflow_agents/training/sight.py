"""A model that sees, in training: patches of each camera's picture through the first layers, then all cameras and the questions together.

    camera 0  [9 patches] --layers 0..k-1--\
    ...                                     features [36] --layers k..-- keys and values, which know of no question
    camera 3  [9 patches] --layers 0..k-1--/                                  |
    question  [tokens]    --layers 0..k-1-----------------------------layers k..-- answer

Patches of one camera see each other, and so do all features; a question sees the features and itself. So several questions about a scene share the
features, and are trained together, each blind for the others. A camera that is missing is masked.

It also learns to say what one camera sees (`skills.captions`), and to answer from what four cameras have said. What they say in training is what the
model itself holds likely at that time, right or wrong, and that is what it learns to say.

Answers alone teach eyes slowly, so in training linear heads name what stands in a place: from the features of each patch, half-way through the
layers that join them, and half-way through what is read of it. They are no part of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aiflow_agents.skills import captions
from aiflow_agents.skills import scenes as scenes_module
from aiflow_agents.skills.scenes import COLOURS, SHAPES, SceneTask
from aiflow_agents.skills.splits import Question
from aiflow_agents.training.branches import travel_noise
from aiflow_agents.training.corpus import collate, example
from aiflow_agents.training.front import CAMERAS, PATCHES
from aiflow_agents.training.recipe import Phase, Recipe
from aiflow_agents.training.tokenizer import BOS, EOS, HEARD, encode, prompt_ids
from aiflow_agents.training.trainer import Trainer

CHUNK = 512  # scenes drawn together
NAMING = 0.5  # weight of each naming, and of captions, beside that of answers
SAYING = 0.25  # share of scenes that a camera says,
READING = 0.375, 0.5  # and that are read: in the first phase, and in later ones
UNREAD = 0.05  # share of the tokens of a first phase before captions are worth reading


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
    return joined(model, ids, features, there.repeat_interleave(PATCHES, 1), layer)[0]


def joined(
    model: Any, ids: Tensor, features: Tensor, there: Tensor, layer: int, *, places: Tensor | None = None, watch: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same, and the features as they come to layer `watch`. Of the features [scenes, count, width] some may be missing: `there`
    [scenes, count]. `places` [scenes, count] tells which they are of those of all cameras; by default they are those of all."""
    inner, (n, questions, longest) = model.model, ids.shape
    count, behind = features.shape[1], CAMERAS * PATCHES  # where text begins, whichever cameras are there
    hidden, watched = inner.embed_tokens(ids.flatten(0, 1)), features  # [scenes * questions, longest, width]
    turns = inner.rotary_emb(hidden, (behind + torch.arange(longest))[None])
    for block in inner.layers[:layer]:
        hidden = block(hidden, position_embeddings=turns)
    hidden = torch.cat((features, hidden.unflatten(0, (n, questions)).flatten(1, 2)), 1)
    places = torch.arange(count)[None] if places is None else places
    positions = torch.cat((places, (behind + torch.arange(longest)).repeat(len(places), questions)), 1)
    turns, mask = inner.rotary_emb(hidden, positions), _mask(there, questions, longest)
    for index, block in enumerate(inner.layers[layer:], layer):
        watched = hidden[:, :count] if index == watch else watched
        hidden = block(hidden, attention_mask=mask, position_embeddings=turns)
    return inner.norm(hidden[:, count:]).unflatten(1, (questions, longest)), watched


def _mask(there: Tensor, questions: int, longest: int) -> Tensor:
    """Who sees whom, [scenes, 1, positions, positions]: all see the features that are there, a question sees itself up to each place."""
    n, count = there.shape
    text = questions * longest
    self_ = torch.eye(count + text, count, dtype=torch.bool)  # of a camera that is missing nobody reads the features, but they must see something
    behind = torch.cat((torch.zeros(count, text, dtype=torch.bool), _own(questions, longest)))[None, None].expand(n, 1, -1, -1)
    return torch.cat((there[:, None, None] | self_, behind), -1)


def _own(questions: int, longest: int) -> Tensor:
    return torch.block_diag(*[torch.ones(longest, longest, dtype=torch.bool).tril()] * questions)


def read(model: Any, ids: Tensor, heard: Tensor, watch: int) -> tuple[Tensor, Tensor]:
    """The same from text alone: what was heard, [scenes, tokens], comes before every question and knows of none. No layer is told apart."""
    inner, (n, questions, longest) = model.model, ids.shape
    count, text = heard.shape[1], questions * longest
    hidden = inner.embed_tokens(torch.cat((heard, ids.flatten(1)), 1))
    watched = hidden[:, :count]
    positions = CAMERAS * PATCHES + torch.cat((torch.arange(count), (count + torch.arange(longest)).repeat(questions)))
    before = torch.cat((torch.ones(count, count, dtype=torch.bool).tril(), torch.zeros(count, text, dtype=torch.bool)), 1)
    mask = torch.cat((before, torch.cat((torch.ones(text, count, dtype=torch.bool), _own(questions, longest)), 1)))[None, None]
    turns, mask = inner.rotary_emb(hidden, positions[None]), mask.expand(n, 1, -1, -1)
    for index, block in enumerate(inner.layers):
        watched = hidden[:, :count] if index == watch else watched
        hidden = block(hidden, attention_mask=mask, position_embeddings=turns)
    return inner.norm(hidden[:, count:]).unflatten(1, (questions, longest)), watched


class SightTrainer(Trainer):
    """Trains a model that sees through the phases of its recipe."""

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "cpu", phases: Any = None):
        assert recipe.vision is not None
        self.vision = recipe.vision
        self.middle = recipe.vision.layer + (recipe.size.layers - recipe.vision.layer) // 2  # where it is asked what it makes of all cameras
        super().__init__(recipe, folder, device=device, phases=phases)

    def _build(self, recipe: Recipe) -> nn.Module:
        model: Any = super()._build(recipe)
        names = ("seen", "joined", "read") if self.vision.captions else ("seen", "joined")
        model.namers = nn.ModuleDict({name: nn.Linear(recipe.size.width, len(COLOURS) * len(SHAPES) + 1) for name in names})
        return model

    def _batches(self, phase: int, chunk: int) -> Iterable[SceneBatch]:  # type: ignore[override]
        return scene_batches(self.recipe, self.phases[phase], self.recipe.seed * 1000 + phase, chunk)

    def _loss(self, batch: SceneBatch) -> Tensor:  # type: ignore[override]
        model: Any = self.model
        key = self.recipe.seed * 1_000_003 + int(self.state["total_tokens"])  # so that it resumes bit for bit
        features = features_of(model, batch.pictures, self.vision.layer)
        named = model.namers["seen"](features)
        loss = NAMING * nn.functional.cross_entropy(named.flatten(0, 1), batch.cells.flatten())
        travelled = features
        if self.recipe.travel_noise:
            travelled = travel_noise(features, self.recipe.travel_noise, torch.Generator().manual_seed(key))
        there = batch.there.repeat_interleave(PATCHES, 1)
        states, middle = joined(model, batch.ids, travelled, there, self.vision.layer, watch=self.middle)
        loss = loss + self._answers(states, batch.targets) + NAMING * self._naming("joined", middle[there], batch.cells.flatten(1)[there])
        if self.vision.captions:
            likely = named.detach().softmax(-1).unflatten(1, (CAMERAS, PATCHES)).double().numpy()
            rng = np.random.default_rng([key, 5])
            loss = loss + NAMING * self._say(features, likely, rng)
            if self.state["phase"] or self.state["tokens"] >= UNREAD * self.phases[0].tokens:
                loss = loss + self._read(batch, likely, rng)
        return loss

    def _answers(self, states: Tensor, targets: Tensor) -> Tensor:
        where = targets >= 0
        model: Any = self.model
        return nn.functional.cross_entropy(model.lm_head(states[where]), targets[where])

    def _naming(self, name: str, hidden: Tensor, cells: Tensor) -> Tensor:
        """How wrongly a head names what stands there: hidden [places, width], cells [places]."""
        model: Any = self.model
        return nn.functional.cross_entropy(model.namers[name](nn.functional.rms_norm(hidden, hidden.shape[-1:])), cells)

    def _say(self, features: Tensor, likely: NDArray[np.float64], rng: np.random.Generator) -> Tensor:
        """One camera of some scenes says what it sees: what its features make likely."""
        n, letters = max(1, int(len(features) * SAYING)), int(rng.choice(self.vision.captions))
        rows, cameras = rng.permutation(len(features))[:n], rng.integers(0, CAMERAS, n)
        ids, targets = captions_said(captions.shared_out(likely[rows, cameras], letters))
        own = features.unflatten(1, (CAMERAS, PATCHES))[rows, cameras]
        places = torch.from_numpy(cameras)[:, None] * PATCHES + torch.arange(PATCHES)
        there = torch.ones(n, PATCHES, dtype=torch.bool)
        return self._answers(joined(self.model, ids[:, None], own, there, self.vision.layer, places=places)[0], targets[:, None])

    def _read(self, batch: SceneBatch, likely: NDArray[np.float64], rng: np.random.Generator) -> Tensor:
        """All questions about some scenes, from what their cameras say."""
        n, letters = max(1, int(len(likely) * READING[self.state["phase"] > 0])), int(rng.choice(self.vision.captions))
        rows = rng.permutation(len(likely))[:n]
        heard, last = captions_heard(captions.shared_out(likely[rows], letters))
        states, middle = read(self.model, batch.ids[rows, :, 1:], heard, self.middle)  # the conversation has begun before the question
        naming = self._naming("read", middle[:, last].flatten(0, 1), batch.cells[rows].flatten())
        return self._answers(states, batch.targets[rows, :, 1:]) + NAMING * naming


LETTER_IDS = np.array(encode(captions.LETTERS))


def captions_said(kinds: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Captions by one camera, kinds [rows, 9, letters], as it says them: ids and targets, [rows, tokens] each."""
    prompt = np.tile(prompt_ids(captions.see(kinds.shape[-1])), (len(kinds), 1))
    said = LETTER_IDS[kinds.reshape(len(kinds), -1)]
    ids = torch.from_numpy(np.concatenate((prompt, said), 1))
    targets = torch.full_like(ids, -100)
    targets[:, prompt.shape[1] - 1 :] = torch.from_numpy(np.concatenate((said, np.full((len(kinds), 1), EOS)), 1))
    return ids, targets


def captions_heard(kinds: NDArray[np.int64]) -> tuple[Tensor, list[int]]:
    """Captions of all cameras, kinds [rows, cameras, 9, letters], as they are heard before a question: ids [rows, tokens], and at which of them the
    last letter for each place of each camera stands."""
    n, letters = len(kinds), kinds.shape[-1]
    parts, last, length = [np.full((n, 1), BOS)], list[int](), 1
    for camera, name in enumerate(scenes_module.CAMERAS):
        begin = [HEARD, *encode(f"{name}:")]
        parts += [np.tile(begin, (n, 1)), LETTER_IDS[kinds[:, camera].reshape(n, -1)]]
        length += len(begin)
        last += range(length + letters - 1, length + PATCHES * letters, letters)
        length += PATCHES * letters
    return torch.from_numpy(np.concatenate(parts, 1)), last


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
