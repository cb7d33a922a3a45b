"""Scenes and their questions, against answers counted cell by cell and pictures looked at pixel by pixel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from aiflow_agents.errors import UnknownName
from aiflow_agents.skills import scenes as module
from aiflow_agents.skills.captions import LETTERS, spell
from aiflow_agents.skills.scenes import CAMERAS, CELL, COLOURS, COLUMNS, KINDS, ROWS, SEEN, SHAPES, ask, draw, exam, in_view, pictures
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
    if word == "twins":
        return str(sum(n > 1 for n in Counter(standing).values()))
    if word == "most":
        (best, n), *rest = colours.most_common()
        return "" if rest and rest[0][1] == n else f"{best[0]}{n}"
    if word.startswith("at "):
        cell = cells["abc".index(word[3]) * COLUMNS + int(word[4]) - 1]
        return cell[0][0] + cell[1][0] if cell else "no"
    if "-" in word:
        first, second = ([name[0] for name in NAMES].index(letter) for letter in word.split("-"))
        return str(colours[NAMES[first]] - colours[NAMES[second]])
    if len(word) == 2:
        return str(sum(c[0] + s[0] == word for c, s in standing))
    return str(colours[word] if word in NAMES else sum(s == word for _, s in standing))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right(kind: str) -> None:
    scenes = draw(200, "test", 3)
    asked = KINDS[kind](scenes, np.random.default_rng(1))
    expected = [by_hand(text, things(c, s)) for text, c, s in zip(asked.texts, scenes.colour, scenes.shape, strict=True)]
    assert asked.answers == expected and len(set(expected)) > 3


def test_a_scene_belongs_to_one_split() -> None:
    for split in ("train", "dev", "test"):
        scenes = draw(50, split, 1)
        assert {split_of(bytes(row).hex()) for row in scenes.colour * len(SHAPES) + scenes.shape} == {split}
    assert not np.array_equal(draw(50, "test", 1).colour, draw(50, "test", 2).colour)


def still(scenes: module.Scenes, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The same pictures without noise and haze, each in its own light."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "NOISE", 0.0)
        patched.setattr(module, "HAZE", (1.0, 1.0))
        return pictures(scenes, 5).astype(float)


def test_three_cameras_see_every_place() -> None:
    """By hand: camera by camera, three sectors round the shelf."""
    sectors = {"north": (0, 1, 2), "east": (1, 2, 3), "south": (2, 3, 0), "west": (3, 0, 1)}
    for camera, name in enumerate(CAMERAS):
        assert SEEN[camera].tolist() == [row * COLUMNS + column for row in range(ROWS) for column in sectors[name]]
    assert Counter(SEEN.flatten().tolist()) == dict.fromkeys(range(ROWS * COLUMNS), 3)


def test_views_overlap_and_show_what_stands_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and haze and with one light for all, what three cameras see of one place is the same, and has the colour of what stands there."""
    scenes = draw(40, "dev", 2)
    noisy, clear = pictures(scenes, 5), still(scenes, monkeypatch)
    assert noisy.shape == (40, 4, 24, 24, 3) and np.array_equal(noisy, pictures(scenes, 5)) and not np.array_equal(noisy, pictures(scenes, 6))
    assert np.std(noisy - clear) > 30
    cells = clear.reshape(40, 4, 3, CELL, 3, CELL, 3).swapaxes(3, 4).reshape(40, 4, 9, CELL, CELL, 3)
    grey = np.where(np.ptp(clear, axis=-1) == 0, clear[..., 0], np.nan)  # wall
    assert np.nanmax(grey, (2, 3)).tolist() == np.nanmin(grey, (2, 3)).tolist()  # one light for a picture
    light = np.nanmax(grey, (2, 3)).reshape(40, 4, 1, 1, 1, 1)
    tints = np.array([*COLOURS.values()])
    for place in range(ROWS * COLUMNS):
        looks = [(camera, SEEN[camera].tolist().index(place)) for camera in range(4) if place in SEEN[camera]]
        seen = np.stack([(cells / light)[:, camera, patch] for camera, patch in looks])
        unclipped = (np.stack([cells[:, camera, patch] for camera, patch in looks]) < 255).all(0)
        assert np.abs(seen[1:] - seen[:1])[:, unclipped].max() < 0.05
        for i, (colour, shape) in enumerate(zip(scenes.colour[:, place], scenes.shape[:, place], strict=True)):
            lit = np.ptp(seen[0, i], axis=-1) > 0.2
            assert lit.any() == (colour >= 0) == (shape >= 0)
            if lit.any():
                hue = seen[0, i][lit].mean(0) * module.GROUND
                assert np.abs(tints - hue).sum(1).argmin() == colour


def test_haze_hides_more_or_less_of_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contrast differs from look to look, between what HAZE says."""
    scenes = draw(60, "dev", 3)
    clear = still(scenes, monkeypatch)
    monkeypatch.setattr(module, "NOISE", 0.0)
    hazy = pictures(scenes, 5).astype(float)
    shown = []
    for picture, whole in zip(hazy.reshape(-1, 24, 24, 3), clear.reshape(-1, 24, 24, 3), strict=True):
        for row in range(0, 24, CELL):
            for column in range(0, 24, CELL):
                a, b = (view[row : row + CELL, column : column + CELL] for view in (picture, whole))
                if np.ptp(b[..., 2]) > 60 and b.max() < 255:
                    shown.append(np.ptp(a[..., 2]) / np.ptp(b[..., 2]))
    assert min(shown) < 0.2 and max(shown) > 0.9 and all(0.05 < share < 1.05 for share in shown)
    assert 0.45 < np.mean(shown) < 0.65


def test_what_is_in_view_is_what_stands_there() -> None:
    scenes = draw(5, "test", 1)
    seen = in_view(scenes)
    for i, (colour, shape) in enumerate(zip(scenes.colour, scenes.shape, strict=True)):
        for camera in range(4):
            cells = [row * 4 + (camera + column) % 4 for row in range(3) for column in range(3)]
            assert seen[i, camera].tolist() == [16 if colour[k] < 0 else colour[k] * 4 + shape[k] for k in cells]


def test_captions_of_cameras_that_see_perfectly_answer_every_question() -> None:
    """From four texts alone, without the scene; and where two speak of one place they say the same."""
    scenes = draw(60, "test", 4)
    every = [(colour, shape) for colour in NAMES for shape in SHAPES]
    shelves = []
    for cameras in in_view(scenes):
        shelf: dict[int, str] = {}
        for camera, view in enumerate(cameras):
            for place, letter in zip(SEEN[camera].tolist(), spell(view), strict=True):
                assert shelf.setdefault(place, letter) == letter
        shelves.append([None if shelf[place] == "." else every[LETTERS.index(shelf[place])] for place in range(ROWS * COLUMNS)])
    for ask_kind in KINDS.values():
        asked = ask_kind(scenes, np.random.default_rng(3))
        assert [by_hand(text, shelf) for text, shelf in zip(asked.texts, shelves, strict=True)] == asked.answers


def test_an_exam_asks_every_scene_every_kind_once() -> None:
    tasks, views = exam(list(KINDS), "test", 90, 4)
    assert len(tasks) == 90 and len(views) == 10
    assert Counter((task.kind, task.scene) for task in tasks) == {(kind, scene): 1 for kind in KINDS for scene in range(10)}
    assert all(task.answer for task in tasks)
    assert exam(list(KINDS), "test", 90, 4)[0] == tasks != exam(list(KINDS), "test", 90, 5)[0]
    for call in (lambda: exam(["hue"], "test", 7, 1), lambda: ask(draw(2, "train", 1), {"hue": 1.0}, 1, 1)):
        with pytest.raises(UnknownName, match="kind of question"):
            call()


def test_training_questions_come_in_the_asked_proportion() -> None:
    rows = ask(draw(300, "train", 1), {"all": 3.0, "kinds": 1.0}, 4, 1)
    kinds = Counter(task.kind for row in rows for task in row)
    assert kinds["all"] + kinds["kinds"] == 1200 and 0.7 < kinds["all"] / 1200 < 0.8
    assert all(task.answer for row in ask(draw(100, "train", 2), {"most": 9.0, "all": 0.1}, 3, 2) for task in row)


def test_joint_questions_do_not_follow_from_what_each_camera_would_answer() -> None:
    """The definition of a tag of the rooms with cameras: two scenes about which every camera, seeing perfectly, gives the same answers, and yet the
    whole differs. Sums do follow: a third of the cameras' sum. So does `at`."""
    from aiflow_agents.evals.suite import load_suites

    scenes = draw(3000, "dev", 8)
    views = [np.isin(np.arange(ROWS * COLUMNS), SEEN[camera]) for camera in range(len(CAMERAS))]
    parts = [module.Scenes(np.where(seen, scenes.colour, -1), np.where(seen, scenes.shape, -1), scenes.shift) for seen in views]
    for room in ("partial-views", "open-views"):
        (suite,) = load_suites(room)
        assert set(suite.file.scenes) == set(KINDS) == {*suite.file.tags["joint"], *suite.file.tags["sum"], "at"}
        for kind in KINDS:
            texts, answers = KINDS[kind](scenes, np.random.default_rng(4))
            if kind == "thing":  # which one is asked for depends on what stands there, so it is asked for anew
                texts = ["rd?"] * len(scenes)
                answers = [by_hand("rd?", things(c, s)) for c, s in zip(scenes.colour, scenes.shape, strict=True)]
                told = [[by_hand("rd?", things(c, s)) for c, s in zip(part.colour, part.shape, strict=True)] for part in parts]
            else:
                told = [KINDS[kind](part, np.random.default_rng(4)).answers for part in parts]
            found: dict[tuple[str, ...], set[str]] = {}
            for row in zip(texts, *told, answers, strict=True):
                found.setdefault(row[:-1], set()).add(row[-1])
            follows = all(len(each) == 1 for each in found.values())
            assert follows == (kind not in suite.file.tags["joint"]), kind
            if kind in suite.file.tags["sum"]:
                assert all(sum(map(int, row[:-1])) == 3 * int(row[-1]) for row in zip(*told, answers, strict=True))
