"""What codecs of features are fitted on: those of scenes of the train split, and how much answers about these scenes mind an error in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from aiflow_agents.models.family.decoder import Cache, Span
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.family.vision import Eyes
from aiflow_agents.skills.scenes import KINDS, SceneTask, ask, draw, pictures
from aiflow_agents.skills.splits import Question
from aiflow_agents.training.corpus import Batch, collate, example
from aiflow_agents.training.cut import NOISE, drawn_gradients
from aiflow_agents.wire.codecs import Sample
from aiflow_agents.wire.picture import Picture

ROWS = 64  # scenes in a batch
DRAWS = 4  # gradients for each scene, each of another question


def needed_draws(specs: Iterable[str]) -> int:
    """How many gradients for each scene the sample needs that all these codecs are fitted on."""
    return DRAWS if any("by=output" in spec for spec in specs) else 0


def feature_sample(model: FamilyModel, scenes: int, seed: int, draws: int = 0) -> dict[str, Sample]:
    """Features of so many scenes, for `wire.codecs.fit`: space -> sample. With `draws` they have gradients, which codecs by=output need."""
    assert model.eyes is not None
    eyes, drawn = model.eyes, draw(scenes, "train", seed)
    seen = [Picture(pixels, camera) for views in pictures(drawn, seed) for camera, pixels in enumerate(views)]
    features = torch.stack(eyes.look(seen)).float()  # [scenes * cameras, patches, width]
    lengths = np.full(len(seen), eyes.config.patches)
    first = np.array([picture.camera for picture in seen]) * eyes.config.patches
    told = None
    if draws:
        asked = ask(drawn, dict.fromkeys(KINDS, 1.0), draws, seed)
        told = _sensitive(eyes, features.unflatten(0, (scenes, -1)).flatten(1, 2), asked, seed).flatten(1, 2).numpy()
    return {f"hidden.{eyes.config.layer}": Sample(features.flatten(0, 1).numpy(), told, lengths=lengths, first=first)}


def _sensitive(eyes: Eyes, features: Tensor, asked: Sequence[Sequence[SceneTask]], seed: int) -> Tensor:
    """Gradients of what the model says to each question, as `training.cut` takes them: features [scenes, count, width] -> [draws, scenes, ...]."""
    generator, noise = torch.Generator().manual_seed(seed), NOISE * features.std()
    found = torch.zeros(len(asked[0]), *features.shape)
    for turn in range(len(found)):
        for begin in range(0, len(features), ROWS):
            rows = slice(begin, begin + ROWS)
            batch = collate([example(Question(row[turn].kind, row[turn].text, row[turn].answer)) for row in asked[rows]])
            near = (features[rows] + noise * torch.randn(features[rows].shape, generator=generator)).requires_grad_(True)
            found[turn, rows] = drawn_gradients(answered(eyes, near, batch), near, batch.targets >= 0, generator)
    return found


def answered(eyes: Eyes, features: Tensor, batch: Batch) -> Tensor:
    """Logits of questions with their answers, ids [rows, longest], from features [rows, count, width] of all cameras: in one pass, so that gradients
    flow back to the features."""
    decoder, c, layer = eyes.decoder, eyes.decoder.config, eyes.config.layer
    (rows, longest), count = batch.ids.shape, features.shape[1]
    with torch.no_grad():
        text = decoder.over(decoder.embed(batch.ids), range(layer))
    mask = torch.full((count + longest, count + longest), -torch.inf, dtype=decoder.dtype).triu_(1)
    mask[:count, :count] = 0  # features see each other
    span = Span(0, count + longest, decoder.turns(torch.arange(count + longest))[None, :, None, None], mask.repeat_interleave(c.group, 0)[None])
    above = range(layer, c.layers)
    cache = Cache.new(c, rows, count + longest, decoder.dtype, above)
    return decoder.head(decoder.run(torch.cat((features.to(decoder.dtype), text), 1), cache, span, above)[:, count:])
