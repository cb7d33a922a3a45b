"""What a model that is already there is trained on further: the questions it was made for, or a user's text in its own tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from torch import Tensor

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.config import read_json
from aiflow_agents.skills.splits import stream
from aiflow_agents.training import corpus
from aiflow_agents.training.corpus import Batch, collate, example
from aiflow_agents.training.recipe import load_recipe
from aiflow_agents.training.tokenizer import VOCABULARY

CALIBRATION = 1 << 20  # chunks from this number on are for measuring what layers read: no training comes that far
HELD_QUESTIONS, HELD_SHARE, HELD_PIECES = 512, 0.05, 64  # what is kept for measuring
PIECES = 256  # of a text, in a chunk


class Source(NamedTuple):
    """`chunk(i)` gives the batches of chunk i, the same whenever it is asked; `held` is never trained on; `made_of` decides all that, as JSON.

    `name` is what a user calls it.
    """

    chunk: Callable[[int], Iterable[Batch]]
    held: list[Batch]
    made_of: dict[str, Any]
    name: str = ""


def skills_of(folder: str | Path) -> dict[str, float]:
    """The skills that a model folder's recipe.yaml names, with their shares; none where there is no recipe, or its tokens are not our characters."""
    recipe = Path(folder) / "recipe.yaml"
    if not recipe.exists() or read_json(Path(folder) / "tokenizer.json").get("model", {}).get("vocab") != VOCABULARY:
        return {}
    return load_recipe(recipe).skills


def skill_source(skills: Mapping[str, float], seed: int, batch: int = 64) -> Source:
    """Training questions with right answers, the loss on the answers; held are questions of the dev split."""
    questions = islice(stream(skills, "dev", seed), HELD_QUESTIONS)
    held = _batches(sorted((example(question) for question in questions), key=lambda one: len(one[0])), batch)
    made_of = {"skills": dict(skills), "seed": seed, "batch": batch}
    name = f"training questions of {', '.join(name for name, share in skills.items() if share)}"
    return Source(lambda index: corpus.chunk(skills, seed, index, batch), list(held), made_of, name)


def text_source(file: Path, model: Path, seed: int, batch: int = 16, length: int = 256) -> Source:
    """A UTF-8 text in pieces of `length` tokens of the model's own tokenizer, each begun as the tokenizer begins a text; the loss on every token.

    A twentieth of the pieces, spread over the text, is held. All others come once before one comes again.
    Raises `UserError` for a text or tokenizer that cannot be read, and for a text of fewer than two pieces.
    """
    ids, begin = _tokens(file, model)
    room = length - len(begin)
    pieces = [[*begin, *ids[at : at + room]] for at in range(0, len(ids) - 1, room)]
    if len(pieces) < 2:
        raise UserError(f"text {file} has {len(ids):,} tokens; it takes more than {room:,} to train on some and measure on the rest")
    few = min(HELD_PIECES, max(1, round(HELD_SHARE * len(pieces))))
    apart = set(range(len(pieces) // few - 1, len(pieces), len(pieces) // few)[:few])
    held, kept = ([piece for at, piece in enumerate(pieces) if (at in apart) == wanted] for wanted in (True, False))

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        return Random(f"text/{seed}/{epoch}").sample(range(len(kept)), len(kept))

    def chunk(index: int) -> Iterator[Batch]:
        places = (divmod(at, len(kept)) for at in range(index * PIECES, (index + 1) * PIECES))
        return _batches([(kept[order(epoch)[place]], 0) for epoch, place in places], batch)

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    made_of = {"text": digest, "seed": seed, "batch": batch, "length": length}
    return Source(chunk, list(_batches([(piece, 0) for piece in held], batch)), made_of, f"text {file.name}")


def source_of(folder: Path, text: Path | None, seed: int, batch: int | None = None, length: int = 256) -> Source:
    """What a model goes on with: a text, or else the questions of its recipe. Raises `UserError` where it has none."""
    if text is not None:
        return text_source(text, folder, seed, batch or 16, length)
    skills = skills_of(folder)
    if not skills:
        raise UserError(f"model folder {folder} has no recipe.yaml that names skills in our own tokens; give it a text: --text FILE")
    return skill_source(skills, seed, batch or 64)


def up_to(source: Source, tokens: int, start: int = CALIBRATION) -> Iterator[Batch]:
    """Batches from chunk `start` on, until so many tokens are reached."""
    seen = 0
    for index in count(start):
        for batch in source.chunk(index):
            yield batch
            seen += batch.tokens
            if seen >= tokens:
                return


def is_text(batch: Batch) -> Tensor:
    """Which positions are text and not padding: all up to the last that has a target. [rows, positions] bool."""
    return (batch.targets >= 0).flip(1).cummax(1).values.flip(1)


def _batches(examples: list[tuple[list[int], int]], batch: int) -> Iterator[Batch]:
    for start in range(0, len(examples), batch):
        yield collate(examples[start : start + batch])


def _tokens(file: Path, model: Path) -> tuple[list[int], list[int]]:
    """The tokens of a text, and those that the tokenizer sets before any text: one or none."""
    from tokenizers import Tokenizer

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"text {file} cannot be read ({error})") from None
    try:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception as error:  # tokenizers raises a bare Exception
        raise UserError(f"{model / 'tokenizer.json'} cannot be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.encode("").ids[:1]
