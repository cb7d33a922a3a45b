"""Accuracy against one cost: the geometry. The template draws it, once for wide windows and once for narrow ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiflow_agents.evals.report.arms import chosen, cost, is_ceiling, sorted_arms
from aiflow_agents.evals.verdict import percent, quantity

ZERO = 46  # on a logarithmic axis, room for arms that cost nothing
LETTER = 6.7  # width of one, in a label
Axis = tuple[Callable[[float], float], list[tuple[float, str]]]  # position of a cost, and [(position, label)]


@dataclass(frozen=True)
class Frame:
    """A drawing and its margins, in SVG units."""

    name: str
    width: int
    height: int
    left: int = 46
    right: int = 24
    top: int = 16
    bottom: int = 50


FRAMES = (Frame("wide", 860, 460), Frame("narrow", 380, 400, left=36, right=14))


def scatter(summary: Mapping[str, Any], key: str, title: str, unit: str, frame: Frame) -> dict[str, Any]:
    """Points, ticks, labels that do not overlap, and the frontier (nothing cheaper is better)."""
    arms = [(name, arm, price) for name, arm in sorted_arms(summary) if not is_ceiling(name) and (price := cost(arm, key)) is not None]
    ceiling = next(((name, arm["accuracy"]) for name, arm in summary["arms"].items() if is_ceiling(name)), None)
    heights = [y for _, arm, _ in arms for y in (arm["ci95"] or [arm["accuracy"]])] + ([ceiling[1]] if ceiling else [])
    y_ticks = linear_ticks(min(heights, default=0.0), max(heights, default=1.0))
    x_of, x_ticks = cost_axis([price for *_, price in arms], unit, frame)
    low, high, floor = y_ticks[0], y_ticks[-1], frame.height - frame.bottom

    def y_of(accuracy: float) -> float:
        return frame.top + (floor - frame.top) * (high - accuracy) / (high - low)

    marked = {chosen(summary, "best_member"), chosen(summary, "best_topology")}
    dots = [{"name": name, "kind": arm["kind"], "x": x_of(price), "y": y_of(arm["accuracy"]), "marked": name in marked,
             "whisker": [y_of(end) for end in arm["ci95"]] if arm["ci95"] else None,
             "title": f"{name}: {percent(arm['accuracy'])}{_interval(arm)} at {quantity(price, unit)}"} for name, arm, price in arms]
    front = frontier(dots)
    corners = {(round(x, 6), round(y, 6)) for x, y in front}
    for dot in dots:
        dot["front"] = (round(dot["x"], 6), round(dot["y"], 6)) in corners and dot["kind"] != "placebo"
    _place_labels(dots, frame)
    dots.sort(key=lambda dot: (dot["marked"], dot["front"]))  # what is drawn last lies on top
    return {"dots": dots, "frontier": front, "x_ticks": x_ticks, "y_ticks": [(y_of(t), f"{100 * t:.0f}") for t in y_ticks],
            "ceiling": (y_of(ceiling[1]), f"{ceiling[0]} {percent(ceiling[1])}") if ceiling else None, "title": title, "name": frame.name,
            "width": frame.width, "height": frame.height, "left": frame.left, "right": frame.width - frame.right, "top": frame.top, "bottom": floor}


def _interval(arm: Mapping[str, Any]) -> str:
    return f" ({100 * arm['ci95'][0]:.1f} to {100 * arm['ci95'][1]:.1f})" if arm["ci95"] else ""


def linear_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers that enclose [low, high]."""
    span = max(high - low, 1e-9)
    scale = 10.0 ** math.floor(math.log10(span / wanted))
    step = next((scale * m for m in (1, 2, 5, 10) if span / (scale * m) <= wanted), scale * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def cost_axis(costs: Sequence[float], unit: str, frame: Frame) -> Axis:
    """Logarithmic where costs span more than a factor of eight; zeros then sit apart, at the left."""
    positive = [price for price in costs if price > 0]
    start, stop = float(frame.left), float(frame.width - frame.right)
    if not positive or max(positive) / min(positive) <= 8:
        ticks = linear_ticks(0.0, max(positive, default=1.0))
        return (lambda c: start + (stop - start) * c / ticks[-1]), _apart(
            [(start + (stop - start) * t / ticks[-1], quantity(t, unit)) for t in ticks], [])
    zero: list[tuple[float, str]] = []
    if len(positive) < len(costs):
        zero, start = [(start + ZERO / 2, "0")], start + ZERO
    low, high = math.log10(min(positive)) - 0.1, math.log10(max(positive)) + 0.1

    def x_of(price: float) -> float:
        return start - ZERO / 2 if price <= 0 else start + (stop - start) * (math.log10(price) - low) / (high - low)

    decades = range(math.floor(low), math.ceil(high) + 1)
    first, second = [[(x_of(m * 10.0**d), quantity(m * 10.0**d, unit)) for d in decades for m in steps if low <= d + math.log10(m) <= high]
                     for steps in ((1,), (2, 5))]
    return x_of, _apart(second, _apart(first, zero))


def _apart(ticks: Sequence[tuple[float, str]], kept: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those of the ticks whose labels leave room to each other, beside those already kept."""
    kept = list(kept)
    for x, label in ticks:
        if all(abs(x - other) > LETTER * (len(label) + len(text)) / 2 + 8 for other, text in kept):
            kept.append((x, label))
    return kept


def frontier(dots: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Corners of the stair that no arm beats at its cost or less; placebos aside. y grows downwards."""
    stair: list[tuple[float, float]] = []
    for dot in sorted((d for d in dots if d["kind"] != "placebo"), key=lambda d: (d["x"], d["y"])):
        if not stair or dot["y"] < stair[-1][1]:
            if stair:
                stair.append((dot["x"], stair[-1][1]))
            stair.append((dot["x"], dot["y"]))
    return stair


def _place_labels(dots: list[dict[str, Any]], frame: Frame) -> None:
    """Give each dot a label where one fits without covering another; the best arms choose first. Where none fits, hovering still names it."""
    taken = [(d["x"] - 6, d["y"] - 6, d["x"] + 6, d["y"] + 6) for d in dots]
    for i in sorted(range(len(dots)), key=lambda i: (not dots[i]["marked"], not dots[i]["front"], dots[i]["y"])):
        dot, width = dots[i], LETTER * len(dots[i]["name"])
        dot["label"] = None
        for dx, dy, anchor in ((10, 4, "start"), (-10, 4, "end"), (0, -11, "middle"), (0, 20, "middle"),
                               (8, -8, "start"), (8, 16, "start"), (-8, -8, "end"), (-8, 16, "end")):
            left = dot["x"] + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, dot["y"] + dy - 11, left + width, dot["y"] + dy + 3)
            inside = box[0] >= frame.left and box[2] <= frame.width and box[1] >= 0 and box[3] <= frame.height - frame.bottom
            clear = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for j, t in enumerate(taken) if j != i)
            if inside and clear:
                dot["label"] = (dot["x"] + dx, dot["y"] + dy, anchor)
                taken.append(box)
                break
