"""Batches: questions encoded, padded on the right, and where the loss is taken.

Chunk `c` of a phase depends on the seed and `c` alone, so training resumes anywhere without replaying what went before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from random import Random
from typing import NamedTuple

import torch

from aiflow_agents.models.confidence import told
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.training.recipe import Phase
from aiflow_agents.training.tokenizer import EOS, PAD, encode, prompt_ids

CHUNK = 2048  # questions drawn, sorted by length and cut into batches together


class Heard(NamedTuple):
    """A question, what each peer really answered to it, and with which calibrated confidence (none in pools of those who are not told)."""

    question: Question
    answers: dict[str, str]
    sure: dict[str, float] = {}


class Batch(NamedTuple):
    """`ids`: [rows, longest] token ids; `targets`: the same shape, the token that follows, or -100 where no loss is taken."""

    ids: torch.Tensor
    targets: torch.Tensor
    tokens: int

    def to(self, device: str) -> Batch:
        return Batch(self.ids.to(device), self.targets.to(device), self.tokens)


def example(question: Question, heard: tuple[tuple[str, str], ...] = ()) -> tuple[list[int], int]:
    """Token ids of one example and the position from which its answer is predicted."""
    prompt = prompt_ids(question.text, heard)
    return [*prompt, *encode(question.answer), EOS], len(prompt) - 1


def collate(examples: Sequence[tuple[list[int], int]]) -> Batch:
    """Pad to the longest. The last token is never an input."""
    longest = max(len(ids) for ids, _ in examples) - 1
    inputs = torch.full((len(examples), longest), PAD)
    targets = torch.full((len(examples), longest), -100)
    for row, (ids, start) in enumerate(examples):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, start : len(ids) - 1] = torch.tensor(ids[start + 1 :])
    return Batch(inputs, targets, sum(len(ids) for ids, _ in examples))


def chunk(
    skills: Mapping[str, float], seed: int, index: int, batch: int, pool: Sequence[Heard] = (), truth: float = 0.0, phase: Phase | None = None
) -> Iterator[Batch]:
    """The batches of chunk `index`. With a pool, all but a share `phase.alone` of the examples are pool questions followed by some peers' answers,
    `phase.least` or more, in any order, with how sure they were if `phase.sure`.

    In a share `truth` of these every peer says what is right.
    """
    rng = Random(f"chunk/{seed}/{index}")
    alone, least, sure = (phase.alone, phase.least, phase.sure) if phase else (0.5, 1, False)
    questions = islice(stream(skills, "train", rng.getrandbits(48)), int(CHUNK * alone) if pool else CHUNK)
    examples = [example(question) for question in questions]
    for item in rng.choices(pool, k=CHUNK - int(CHUNK * alone)) if pool else ():
        names = rng.sample(sorted(item.answers), rng.randint(min(least, len(item.answers)), len(item.answers)))
        said = dict.fromkeys(names, item.question.answer) if truth and rng.random() < truth else item.answers
        examples.append(example(item.question, tuple((name, told(said[name], item.sure[name] if sure else None)) for name in names)))
    examples.sort(key=lambda one: len(one[0]))
    starts = list(range(0, len(examples), batch))
    rng.shuffle(starts)
    for start in starts:
        yield collate(examples[start : start + batch])
