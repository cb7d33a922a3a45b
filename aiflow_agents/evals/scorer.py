"""How an answer is marked: a number in [0, 1]. A suite names one of these, or brings its own `scorer.py` with a function `score(answer, task)`."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite
from pathlib import Path

from aiflow_agents.config import load_python
from aiflow_agents.errors import ConfigError, UnknownName, UserError
from aiflow_agents.runtime.latex import plain
from aiflow_agents.runtime.task import Task

Scorer = Callable[[str, Task], float]


def exact(answer: str, task: Task) -> float:
    """1 for the expected text, space around it aside."""
    return float(answer.strip() == (task.expected or "").strip())


def folded(answer: str, task: Task) -> float:
    """As `exact`, but case and runs of space do not matter."""
    return float(" ".join(answer.casefold().split()) == " ".join((task.expected or "").casefold().split()))


def number(answer: str, task: Task) -> float:
    """1 if the last number in the answer equals the last one in what is expected; commas do not matter."""
    found, expected = (re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", "")) for text in (answer, task.expected or ""))
    return float(bool(found and expected) and float(found[-1]) == float(expected[-1]))


def math(answer: str, task: Task) -> float:
    """1 for the expected answer in any of its spellings: see `runtime.latex`."""
    said, expected = plain(answer), plain(task.expected or "")
    return float(bool(said) and said == expected)


SCORERS: dict[str, Scorer] = {"exact": exact, "folded": folded, "number": number, "math": math}


def load_scorer(name: str, folder: Path) -> Scorer:
    """A scorer by name; `scorer.py` is the suite's own file. Raises UnknownName or ConfigError."""
    if name in SCORERS:
        return SCORERS[name]
    if not name.endswith(".py"):
        raise UnknownName("scorer", name, [*SCORERS, "scorer.py"])
    file = folder / name
    module = load_python(file, f"aiflow_scorer_{folder.name.replace('-', '_')}")
    if not callable(getattr(module, "score", None)):
        raise ConfigError("expected a function `score(answer: str, task: Task) -> float`", file=file)
    return _watched(module.score, f"{file}: score")


def own_scorer(score: Scorer) -> Scorer:
    """A function as a scorer. Raises UserError for what is none."""
    if not callable(score):
        raise UserError(f"expected a scorer's name or a function `score(answer: str, task: Task) -> float`, found {type(score).__name__}")
    return _watched(score, f"the scorer {getattr(score, '__name__', type(score).__name__)}")


def _watched(score: Scorer, named: str) -> Scorer:
    """The user's own scorer; what it does wrong is said in one line, with the task and the answer."""

    def watched(answer: str, task: Task) -> float:
        try:
            mark = float(score(answer, task))
        except Exception as error:
            raise UserError(f"{named}({answer!r}, task {task.id}) raised {type(error).__name__}: {error}") from error
        if not (isfinite(mark) and 0.0 <= mark <= 1.0):
            raise UserError(f"{named}({answer!r}, task {task.id}) gave {mark}; expected a number from 0 to 1")
        return mark

    return watched
