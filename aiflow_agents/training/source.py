"""Where a trained model's further training takes its batches from: a source gives the batches of chunk number i, always the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import torch

from aiflow_agents.errors import UserError
from aiflow_agents.training.corpus import Batch, chunk, collate
from aiflow_agents.training.recipe import load_recipe

Source = Callable[[int], Iterator[Batch]]
CALIBRATION = 1 << 20  # chunks from this number on are for measuring: tuning never comes that far


def skill_source(skills: Mapping[str, float], seed: int, batch: int = 64) -> Source:
    """Questions of the training split with their right answers, in the format that our models are trained in; loss on the answers."""
    return lambda index: chunk(skills, seed, index, batch)


def text_source(file: Path, model: Path, seed: int, batch: int = 8, length: int = 256) -> Source:
    """A text in pieces of `length` tokens of the model's own tokenizer, every chunk the whole text in an order of its own; loss on every token.

    Raises `UserError` where there is no tokenizer, or the text is shorter than one batch.
    """
    from tokenizers import Tokenizer

    if not (model / "tokenizer.json").exists():
        raise UserError(f"model folder {model} has no tokenizer.json to read {file} with")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"text {file} cannot be read ({error})") from None
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    pieces = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if len(pieces) < batch:
        raise UserError(f"text {file} has {len(ids):,} tokens of this model; it takes at least {batch * length:,}")

    def batches(index: int) -> Iterator[Batch]:
        order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed * 1_000_003 + index)).tolist()
        for i in range(0, len(order) - batch + 1, batch):
            yield collate([(pieces[j], 0) for j in order[i : i + batch]])

    return batches


def source_of(model: Path, text: Path | None, seed: int) -> tuple[Source, str]:
    """What a model is measured and tuned on, and what that is called: a text, or else the skills in its recipe. `UserError` where it has none."""
    if text is not None:
        return text_source(text, model, seed), f"text {text.name}"
    if not (model / "recipe.yaml").exists():
        raise UserError(f"model folder {model} has no recipe.yaml that names its skills; give it something to read: --text FILE")
    skills = load_recipe(model / "recipe.yaml").skills
    return skill_source(skills, seed), f"training questions of {', '.join(name for name, share in skills.items() if share)}"


def up_to(source: Source, tokens: int, start: int = CALIBRATION) -> Iterator[Batch]:
    """Batches from chunk `start` on, until so many tokens are reached."""
    seen = 0
    for index in count(start):
        for batch in source(index):
            yield batch
            seen += batch.tokens
            if seen >= tokens:
                return


def is_text(batch: Batch) -> torch.Tensor:
    """Which positions are text and not padding: all up to the last that has a target. [rows, positions] bool."""
    return (batch.targets >= 0).flip(1).cummax(1).values.flip(1)
