"""Scenes: coloured shapes on a round shelf, which four cameras see in part and through haze, and questions that take all of them.

      1 2 3 4         the shelf has three boards a-c and four sectors 1-4, the last beside the first. Four cameras stand round it:
    a . x . .         north sees sectors 1-3, east 2-4, south 3, 4 and 1, west 4, 1 and 2. So every place is seen by three of them,
    b x . . x         each in its own light, through noise, and through haze that is drawn anew for every place and camera: one look is
    c . . x .         often not enough to tell what stands there, three together mostly are, and what each was unsure of matters.

All of it is numpy over many scenes at once. A scene belongs to one split for ever, by a hash of what stands where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.errors import UnknownName
from aiflow_agents.skills.splits import split_of

ROWS, COLUMNS, VIEW, CELL = 3, 4, 3, 8  # boards and sectors of a shelf, cells of a view to a side, pixels of a cell to a side
CELLS, SIDE = ROWS * COLUMNS, VIEW * CELL  # cells of a scene, pixels of a picture to a side
CAMERAS = ("north", "east", "south", "west")
CORNERS = ((0, 0), (0, 1), (0, 2), (0, 3))  # row and column of each camera's first cell; columns go round
SEEN = np.array([[(r + y) * COLUMNS + (c + x) % COLUMNS for y in range(VIEW) for x in range(VIEW)] for r, c in CORNERS])  # cells by camera and patch
COLOURS = {"red": (0.85, 0.2, 0.2), "lime": (0.2, 0.75, 0.25), "blue": (0.2, 0.3, 0.9), "gold": (0.85, 0.8, 0.15)}
SHAPES = ("discs", "squares", "crosses", "rings")
GROUND, NOISE = 0.35, 0.3  # grey of the wall behind, and the deviation of every pixel's noise; full light is 1
HAZE = (0.1, 1.0)  # how much of the contrast of what stands in a place reaches a camera: drawn for every place and camera
FILLED = (0.3, 0.8)  # share of cells on which something stands, drawn anew for every scene

Pixels = NDArray[np.uint8]
Cells = NDArray[np.int8]


class Scenes(NamedTuple):
    """Many scenes: for each of their 12 cells the colour and the shape of what stands there, -1 where nothing does, and by how many pixels it
    stands beside the middle (rows, columns)."""

    colour: Cells  # [scenes, 12]
    shape: Cells  # [scenes, 12]
    shift: Cells  # [scenes, 12, 2]

    def __len__(self) -> int:  # type: ignore[override]
        return len(self.colour)

    def take(self, index: NDArray[np.intp]) -> Scenes:
        return Scenes(self.colour[index], self.shape[index], self.shift[index])


def draw(count: int, split: str, seed: int) -> Scenes:
    """So many scenes of a split."""
    rng, found, have = np.random.default_rng([seed, *split.encode()]), [], 0
    while have < count:
        some = _any(max(64, 2 * (count - have)), rng)
        own = np.array([split_of(bytes(row).hex()) == split for row in (some.colour * len(SHAPES) + some.shape).astype(np.int8)])
        found.append(some.take(np.flatnonzero(own)))
        have += len(found[-1])
    return Scenes(*(np.concatenate(parts)[:count] for parts in zip(*found, strict=True)))


def _any(count: int, rng: np.random.Generator) -> Scenes:
    empty = rng.random((count, CELLS)) >= rng.uniform(*FILLED, (count, 1))
    colour, shape = (rng.integers(0, n, (count, CELLS), dtype=np.int8) for n in (len(COLOURS), len(SHAPES)))
    colour[empty] = shape[empty] = -1
    return Scenes(colour, shape, rng.integers(-1, 2, (count, CELLS, 2), dtype=np.int8))


def pictures(scenes: Scenes, seed: int) -> Pixels:
    """What the cameras see: [scenes, cameras, 24, 24, 3]. Each has a light, a haze and a noise of its own."""
    rng, n, cameras = np.random.default_rng([seed, 1]), len(scenes), len(CAMERAS)
    tint = np.array([*COLOURS.values()], np.float32) - GROUND
    masks = _sprites()[scenes.shape, scenes.shift[..., 0] + 1, scenes.shift[..., 1] + 1]  # [scenes, 12, 8, 8]
    masks = (masks * (scenes.shape >= 0)[..., None, None])[:, SEEN]  # [scenes, cameras, 9, 8, 8]
    masks *= rng.uniform(*HAZE, (n, cameras, VIEW * VIEW, 1, 1)).astype(np.float32)
    cells = GROUND + masks[..., None] * tint[scenes.colour][:, SEEN][:, :, :, None, None]  # [scenes, cameras, 9, 8, 8, 3]
    views = cells.reshape(n, cameras, VIEW, VIEW, CELL, CELL, 3).swapaxes(3, 4).reshape(n, cameras, SIDE, SIDE, 3)
    views *= rng.uniform(0.8, 1.2, (n, cameras, 1, 1, 1)).astype(np.float32)
    views += NOISE * rng.standard_normal(views.shape, np.float32)
    return np.rint(views.clip(0, 1) * 255).astype(np.uint8)


def in_view(scenes: Scenes) -> NDArray[np.int64]:
    """What each camera has in front of it, [scenes, cameras, 9]: colour * 4 + shape, and 16 where nothing stands."""
    kind = np.where(scenes.colour < 0, len(COLOURS) * len(SHAPES), scenes.colour * len(SHAPES) + scenes.shape).astype(np.int64)
    return kind[:, SEEN]


def _sprites() -> NDArray[np.float32]:
    """The shapes, [shape, shift of rows, shift of columns, 8, 8], 1 where they are."""
    at = np.arange(CELL) - (CELL - 1) / 2
    y, x = np.meshgrid(at, at, indexing="ij")
    far = np.hypot(y, x)
    cross = (np.minimum(abs(y), abs(x)) < 1) & (np.maximum(abs(y), abs(x)) < 3)
    shapes = np.stack([far < 2.6, np.maximum(abs(y), abs(x)) < 3, cross, (far > 1.8) & (far < 3.3)]).astype(np.float32)
    return np.stack([np.stack([np.roll(shapes, (a, b), (1, 2)) for b in (-1, 0, 1)], 1) for a in (-1, 0, 1)], 1)


# -- questions ---------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """Questions about scenes, one each. An answer is empty where a scene has none (`most` of two colours alike)."""

    texts: list[str]
    answers: list[str]


Ask = Callable[[Scenes, np.random.Generator], Asked]
_COLOURS = list(COLOURS)


def _colour(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """How many things have a colour: `red?` -> `5`."""
    c = rng.integers(0, len(COLOURS), len(scenes))
    return Asked([f"{_COLOURS[i]}?" for i in c], _text((scenes.colour == c[:, None]).sum(1)))


def _shape(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """How many things have a shape: `discs?` -> `3`."""
    s = rng.integers(0, len(SHAPES), len(scenes))
    return Asked([f"{SHAPES[i]}?" for i in s], _text((scenes.shape == s[:, None]).sum(1)))


def _all(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """How many things there are: `all?` -> `14`."""
    return Asked(["all?"] * len(scenes), _text((scenes.colour >= 0).sum(1)))


def _gap(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """How many more things have one colour than another: `r-b?` -> `-2`."""
    a = rng.integers(0, len(COLOURS), len(scenes))
    b = (a + rng.integers(1, len(COLOURS), len(scenes))) % len(COLOURS)
    gap = (scenes.colour == a[:, None]).sum(1) - (scenes.colour == b[:, None]).sum(1)
    return Asked([f"{_COLOURS[i][0]}-{_COLOURS[j][0]}?" for i, j in zip(a, b, strict=True)], _text(gap))


def _most(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """The most frequent colour and how often it occurs: `most?` -> `r6`."""
    counts = (scenes.colour[..., None] == np.arange(len(COLOURS))).sum(1)  # [scenes, colours]
    best, top = counts.argmax(1), counts.max(1)
    alone = (counts == top[:, None]).sum(1) == 1
    return Asked(["most?"] * len(scenes), [f"{_COLOURS[i][0]}{n}" if one else "" for i, n, one in zip(best, top, alone, strict=True)])


def _thing(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """How many there are of one thing, by colour and shape: red discs, `rd?` -> `2`. Half of the questions are about one that is there."""
    colour, shape = rng.integers(0, len(COLOURS), len(scenes)), rng.integers(0, len(SHAPES), len(scenes))
    where, each = rng.integers(0, CELLS, len(scenes)), np.arange(len(scenes))
    there = (rng.random(len(scenes)) < 0.5) & (scenes.colour[each, where] >= 0)
    colour, shape = np.where(there, scenes.colour[each, where], colour), np.where(there, scenes.shape[each, where], shape)
    texts = [f"{_COLOURS[c][0]}{SHAPES[s][0]}?" for c, s in zip(colour, shape, strict=True)]
    return Asked(texts, _text(((scenes.colour == colour[:, None]) & (scenes.shape == shape[:, None])).sum(1)))


def _kinds(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """How many different things there are, by colour and shape: `kinds?` -> `9`."""
    return Asked(["kinds?"] * len(scenes), _text((_each(scenes) > 0).sum(1)))


def _twins(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """How many different things stand in more than one place: `twins?` -> `2`. One that several cameras see is still one."""
    return Asked(["twins?"] * len(scenes), _text((_each(scenes) > 1).sum(1)))


def _each(scenes: Scenes) -> NDArray[np.int64]:
    """How often each of the 16 different things stands there, [scenes, 16]."""
    kind = np.where(scenes.colour >= 0, scenes.colour * len(SHAPES) + scenes.shape, -1)
    return (kind[..., None] == np.arange(len(COLOURS) * len(SHAPES))).sum(1)


def _at(scenes: Scenes, rng: np.random.Generator) -> Asked:
    """What stands in a place, by board and sector: `at b4?` -> `rd`, a red disc, or `no`."""
    where, each = rng.integers(0, CELLS, len(scenes)), np.arange(len(scenes))
    texts = [f"at {'abc'[i // COLUMNS]}{i % COLUMNS + 1}?" for i in where]
    seen = zip(scenes.colour[each, where], scenes.shape[each, where], strict=True)
    return Asked(texts, ["no" if c < 0 else _COLOURS[c][0] + SHAPES[s][0] for c, s in seen])


KINDS: dict[str, Ask] = {
    "colour": _colour, "shape": _shape, "all": _all, "gap": _gap, "most": _most, "thing": _thing, "kinds": _kinds, "twins": _twins, "at": _at,
}  # fmt: skip


def _text(numbers: NDArray[np.integer]) -> list[str]:
    return [str(n) for n in numbers.tolist()]


@dataclass(frozen=True)
class SceneTask:
    """One question about one scene, which the cameras see in `pictures[scene]`."""

    kind: str
    scene: int
    text: str
    answer: str


def ask(scenes: Scenes, weights: Mapping[str, float], each: int, seed: int) -> list[list[SceneTask]]:
    """`each` questions about every scene, kinds in proportion to `weights`; where a scene has no answer to one, another kind is asked.

    Raises UnknownName for a kind that is none.
    """
    rng, n = np.random.default_rng([seed, 2]), len(scenes)
    for name in weights:
        if name not in KINDS:
            raise UnknownName("kind of question", name, KINDS)
    names, shares = list(weights), np.array([*weights.values()], float)
    asked = {name: [KINDS[name](scenes, rng) for _ in range(each)] for name in names}
    chosen = rng.choice(len(names), (n, each), p=shares / shares.sum())
    found = []
    for i in range(n):
        row = []
        for j in range(each):
            for turn in range(len(names)):
                kind = names[(chosen[i, j] + turn) % len(names)]
                text, answer = asked[kind][j].texts[i], asked[kind][j].answers[i]
                if answer:
                    break
            row.append(SceneTask(kind, i, text, answer))
        found.append(row)
    return found


def exam(names: list[str], split: str, count: int, seed: int) -> tuple[list[SceneTask], Pixels]:
    """`count` questions, kinds in turn, and the pictures of their scenes: each scene is asked every kind once. A suite's tasks."""
    scenes = draw(-(-count // len(names)) * 3, split, seed)
    rng = np.random.default_rng([seed, 3])
    for name in names:
        if name not in KINDS:
            raise UnknownName("kind of question", name, KINDS)
    asked = {name: KINDS[name](scenes, rng) for name in names}
    whole = [i for i in range(len(scenes)) if all(asked[name].answers[i] for name in names)][: -(-count // len(names))]
    tasks = [SceneTask(name, place, asked[name].texts[i], asked[name].answers[i]) for place, i in enumerate(whole) for name in names]
    return tasks[:count], pictures(scenes.take(np.array(whole)), seed)
