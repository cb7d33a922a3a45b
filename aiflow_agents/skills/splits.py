"""Train, dev and test: a question belongs to one split for ever, by a hash of its text.

So a test question cannot occur in training whatever the seeds, and still every split is unlimited wherever the skill is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import NamedTuple
from zlib import crc32

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.skills.atlas import ATLAS
from aiflow_agents.skills.questions import SKILLS, Draw
from aiflow_agents.skills.worked import WORKED

DRAWS: dict[str, Draw] = SKILLS | WORKED | ATLAS
SPLITS = ("train", "dev", "test")


class Question(NamedTuple):
    """One question: its skill, its text and the one right answer."""

    skill: str
    text: str
    answer: str


def split_of(text: str) -> str:
    """The split a question belongs to: two tenths are test, one is dev, the rest is train."""
    bucket = crc32(text.encode()) % 10
    return "test" if bucket < 2 else "dev" if bucket == 2 else "train"


def skill(name: str) -> Draw:
    """The skill of that name; `UnknownName` with the nearest ones otherwise."""
    if name not in DRAWS:
        raise UnknownName("skill", name, DRAWS)
    return DRAWS[name]


def stream(weights: Mapping[str, float], split: str, seed: int) -> Iterator[Question]:
    """Endless questions of a split, skills drawn in proportion to `weights`."""
    rng = Random(f"{split}/{seed}")
    names, shares = list(weights), list(weights.values())
    draws = [skill(name) for name in names]
    while True:
        for index in rng.choices(range(len(names)), shares, k=512):
            text, answer = draws[index](rng)
            while split_of(text) != split:
                text, answer = draws[index](rng)
            yield Question(names[index], text, answer)


def balanced(names: list[str], split: str, count: int, seed: int) -> list[Question]:
    """`count` different questions, the skills in turn: a suite's tasks.

    Raises `UserError` when a skill has not that many different questions in this split.
    """
    streams = {name: stream({name: 1.0}, split, seed) for name in names}
    seen: set[str] = set()
    questions = []
    for index in range(count):
        name = names[index % len(names)]
        for _ in range(10_000):
            question = next(streams[name])
            if question.text not in seen:
                break
        else:
            raise UserError(f"skill '{name}' has too few different {split} questions for {count} tasks over {len(names)} skills")
        seen.add(question.text)
        questions.append(question)
    return questions
