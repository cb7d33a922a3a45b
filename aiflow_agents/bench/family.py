"""The exits of a family beside each other, and beside plain models: the same fresh test questions to all, and what may be said about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aiflow_agents.errors import UserError
from aiflow_agents.evals.statistics import mcnemar_exact, ratio, wilson
from aiflow_agents.models.family.export import number_bytes, sizes
from aiflow_agents.models.family.info import model_info
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.skills.splits import Question, balanced
from aiflow_agents.training.heard import answers
from aiflow_agents.training.sources import skills_of


class Rival(NamedTuple):
    """A plain model, and the exit of the family that it is held against."""

    name: str
    folder: Path
    exit: int


def questions_for(folder: Path, count: int, seed: int) -> list[Question]:
    """`count` different test questions, the family's skills in turn. Raises `UserError` for a folder whose recipe.yaml names no skills."""
    skills = skills_of(folder)
    if not skills:
        raise UserError(f"model folder {folder} has no recipe.yaml that names skills in our own tokens, so it is not known what to ask it")
    return balanced(list(skills), "test", count, seed)


def bench_family(folder: Path, questions: Sequence[Question], rivals: Sequence[Rival] = (), *, seed: int = 0, watch: Any = None) -> dict[str, Any]:
    """Ask every exit and every rival, greedily, in float32. `seed` is that of the bootstrap; `watch.advance(1)` is called after each.

    Returns `family, n, exits, every_exit_better, against`. A row of `exits` has what the exit costs (`sizes`), `right, accuracy, ci95`, accuracy by
    skill, and `over`: the exit before it, with `wins, losses` (only this, only that one right) and the exact McNemar `p`. `every_exit_better` is the
    largest of these p (None unless each exit has more right than the one before): all claims must hold (intersection-union). A row of `against` has
    the accuracies of rival and exit, their `ratio` with a bootstrap interval, `wins, losses, p`. Raises `UserError` for an exit that is not there.
    """
    model = FamilyModel.load(folder)
    costs = {row["exit"]: row for row in sizes(folder, number_bytes(folder))}
    for rival in rivals:
        if rival.exit not in costs:
            raise UserError(f"{rival.name}: {folder.name} has no exit {rival.exit}; it has {', '.join(map(str, costs))}")
        model_info(rival.folder)  # a folder that cannot be used is said before anything is asked
    right = {}  # exit -> who was right, [questions] bool
    for e in costs:
        right[e] = _right(model, questions, e)
        if watch is not None:
            watch.advance(1)
    rows, order = [], list(costs)
    for before, e in zip([None, *order], order, strict=False):
        row = {**costs[e], **_score(right[e]), "skills": _by_skill(questions, right[e])}
        row["over"] = None if before is None else {"exit": before, **_paired(right[e], right[before])}
        rows.append(row)
    steps = [row["over"] for row in rows[1:]]
    better = bool(steps) and all(step["wins"] > step["losses"] for step in steps)
    return {
        "family": folder.name,
        "n": len(questions),
        "exits": rows,
        "every_exit_better": max(step["p"] for step in steps) if better else None,
        "against": [_against(rival, right[rival.exit], questions, seed, watch) for rival in rivals],
    }


def _against(rival: Rival, ours: np.ndarray, questions: Sequence[Question], seed: int, watch: Any) -> dict[str, Any]:
    theirs = _right(FamilyModel.load(rival.folder), questions)
    if watch is not None:
        watch.advance(1)
    share = ratio(ours, theirs, seed)
    return {
        "name": rival.name,
        "folder": str(rival.folder),
        "exit": rival.exit,
        **_score(theirs),
        "exit_accuracy": float(ours.mean()),
        "ratio": share and share[0],
        "ratio_ci95": share and list(share[1]),
        **_paired(ours, theirs),
    }


def _right(model: FamilyModel, questions: Sequence[Question], exit: int | None = None) -> np.ndarray:
    said = answers(model, questions, exit=exit)
    return np.array([answer == question.answer for answer, question in zip(said, questions, strict=True)])


def _score(right: np.ndarray) -> dict[str, Any]:
    return {"right": int(right.sum()), "accuracy": float(right.mean()), "ci95": list(wilson(int(right.sum()), len(right)))}


def _by_skill(questions: Sequence[Question], right: np.ndarray) -> dict[str, float]:
    skills = np.array([question.skill for question in questions])
    return {str(skill): float(right[skills == skill].mean()) for skill in dict.fromkeys(skills)}


def _paired(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    wins, losses = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return {"wins": wins, "losses": losses, "p": mcnemar_exact(wins, losses)}
