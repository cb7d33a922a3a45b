"""Scenes and their questions, against answers counted cell by cell and pictures looked at pixel by pixel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from aiflow_agents.errors import UnknownName
from aiflow_agents.skills import scenes as module
from aiflow_agents.skills.scenes import CELL, COLOURS, CORNERS, GRID, KINDS, SHAPES, ask, draw, exam, in_view, pictures
from aiflow_agents.skills.splits import split_of

NAMES = list(COLOURS)


def things(colour: np.ndarray, shape: np.ndarray) -> list[tuple[str, str] | None]:
    return [None if c < 0 else (NAMES[c], SHAPES[s]) for c, s in zip(colour, shape, strict=True)]


def by_hand(text: str, cells: list[tuple[str, str] | None]) -> str:
    """The answer to a question, counted as a child would."""
    standing = [cell for cell in cells if cell]
    colours, word = Counter(c for c, _ in standing), text[:-1]
    if word == "all":
        return str(len(standing))
    if word == "kinds":
        return str(len(set(standing)))
    if word == "most":
        (best, n), *rest = colours.most_common()
        return "" if rest and rest[0][1] == n else f"{best[0]}{n}"
    if word.startswith("at "):
        cell = cells["abcde".index(word[3]) * GRID + int(word[4]) - 1]
        return cell[0][0] + cell[1][0] if cell else "no"
    if "-" in word:
        a, b = word.split("-")
        return str(colours[a] - colours[b])
    return str(colours[word] if word in NAMES else sum(s == word for _, s in standing))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right(kind: str) -> None:
    scenes = draw(200, "test", 3)
    asked = KINDS[kind](scenes, np.random.default_rng(1))
    expected = [by_hand(text, things(c, s)) for text, c, s in zip(asked.texts, scenes.colour, scenes.shape, strict=True)]
    assert asked.answers == expected and len(set(expected)) > 5


def test_a_scene_belongs_to_one_split() -> None:
    for split in ("train", "dev", "test"):
        scenes = draw(50, split, 1)
        assert {split_of(bytes(row).hex()) for row in scenes.colour * len(SHAPES) + scenes.shape} == {split}
    assert not np.array_equal(draw(50, "test", 1).colour, draw(50, "test", 2).colour)


def test_views_overlap_and_show_what_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and with one light for all, what two cameras see of one cell is the same, and it has the colour of what stands there."""
    scenes = draw(40, "dev", 2)
    noisy = pictures(scenes, 5)
    assert noisy.shape == (40, 4, 24, 24, 3) and np.array_equal(noisy, pictures(scenes, 5)) and not np.array_equal(noisy, pictures(scenes, 6))
    monkeypatch.setattr(module, "NOISE", 0.0)
    still = pictures(scenes, 5)
    assert np.std(noisy.astype(float) - still) > 30
    middle = [still[:, camera, (2 - r) * CELL : (3 - r) * CELL, (2 - c) * CELL : (3 - c) * CELL].astype(float) for camera, (r, c) in enumerate(CORNERS)]
    lights = [cell[:, :1, :1].mean((1, 2), keepdims=True) for cell in middle]  # a corner pixel is floor
    for cell, light in zip(middle[1:], lights[1:], strict=True):
        unclipped = np.maximum(cell, middle[0]) < 255
        assert np.abs(cell / light - middle[0] / lights[0])[unclipped].max() < 0.05
    for i, (colour, shape) in enumerate(zip(scenes.colour[:, 12], scenes.shape[:, 12], strict=True)):
        lit = np.ptp(middle[0][i].reshape(-1, 3), 0)
        assert (lit.max() > 40) == (colour >= 0) and (colour < 0 or shape >= 0)


def test_what_is_in_view_is_what_stands_there() -> None:
    scenes = draw(5, "test", 1)
    seen = in_view(scenes)
    for i, (colour, shape) in enumerate(zip(scenes.colour, scenes.shape, strict=True)):
        for camera, (r, c) in enumerate(CORNERS):
            cells = [(r + a) * GRID + c + b for a in range(3) for b in range(3)]
            assert seen[i, camera].tolist() == [16 if colour[k] < 0 else colour[k] * 4 + shape[k] for k in cells]


def test_an_exam_asks_every_scene_every_kind_once() -> None:
    tasks, views = exam(list(KINDS), "test", 70, 4)
    assert len(tasks) == 70 and len(views) == 10
    assert Counter((task.kind, task.scene) for task in tasks) == {(kind, scene): 1 for kind in KINDS for scene in range(10)}
    assert all(task.answer for task in tasks)
    assert exam(list(KINDS), "test", 70, 4)[0] == tasks != exam(list(KINDS), "test", 70, 5)[0]
    for call in (lambda: exam(["hue"], "test", 7, 1), lambda: ask(draw(2, "train", 1), {"hue": 1.0}, 1, 1)):
        with pytest.raises(UnknownName, match="kind of question"):
            call()


def test_training_questions_come_in_the_asked_proportion() -> None:
    rows = ask(draw(300, "train", 1), {"all": 3.0, "kinds": 1.0}, 4, 1)
    kinds = Counter(task.kind for row in rows for task in row)
    assert kinds["all"] + kinds["kinds"] == 1200 and 0.7 < kinds["all"] / 1200 < 0.8
    assert all(task.answer for row in ask(draw(100, "train", 2), {"most": 9.0, "all": 0.1}, 3, 2) for task in row)
