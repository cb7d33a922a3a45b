"""A task: one question, and what is known about its answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """`expected` is None where nobody knows (`aiflow run`); `tags` group tasks in reports, the first one being the skill."""

    id: str
    question: str
    expected: str | None = None
    tags: tuple[str, ...] = ()
