"""Accuracy against budget: the geometry of a line for each arm. The template draws it, once for wide windows and once for narrow ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiflow_agents.evals.report.samples import short
from aiflow_agents.evals.report.scatter import FRAMES, Frame, cost_axis, linear_ticks
from aiflow_agents.evals.verdict import percent, quantity

UNITS = {"bytes": "B", "seconds": "s"}
TITLES = {"tokens": "tokens", "flops": "FLOPs", "bytes": "bytes on the wire", "seconds": "seconds"}
LINE = 13  # between two labels
ROOM = {"wide": (196, 24), "narrow": (118, 14)}  # at the right, for names of so many letters


def budget_plot(curve: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of one curve (see `evals.curve`): its drawings, and rows for its table."""
    unit, names = UNITS.get(curve["over"], ""), _marked(curve)
    order = sorted(curve["arms"], key=lambda name: (name not in names, -curve["arms"][name]["points"][-1]["accuracy"], name))
    rows = [{"name": name, "kind": curve["arms"][name]["kind"], "marked": name in names, "points": curve["arms"][name]["points"]} for name in order]
    limits = [quantity(limit, unit) for limit in curve["limits"]]
    gains = {"name": curve["best_topology"], "rival": names[-1], "rows": curve["gains"]} if curve["gains"] else None
    return {"over": curve["over"], "title": TITLES[curve["over"]], "limits": limits, "rows": rows, "gains": gains, "n": curve["n_tasks"],
            "frames": [_drawing(curve, rows, unit, replace(frame, right=ROOM[frame.name][0])) for frame in FRAMES]}


def _marked(curve: Mapping[str, Any]) -> list[str]:
    """The best topology, the best member, and last the rival."""
    rival = [name for name, arm in curve["arms"].items() if arm["kind"] == "rival"]
    return [name for name in (curve["best_topology"], curve["best_member"], *rival) if name in curve["arms"]]


def _drawing(curve: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], unit: str, frame: Frame) -> dict[str, Any]:
    ends = [end for row in rows for point in row["points"] for end in (point["ci95"] if row["marked"] else [point["accuracy"]])]
    y_ticks = linear_ticks(min(ends), max(ends))
    x_of, x_ticks = cost_axis(curve["limits"], unit, frame)
    low, high, floor = y_ticks[0], y_ticks[-1], frame.height - frame.bottom

    def y_of(accuracy: float) -> float:
        return frame.top + (floor - frame.top) * (high - accuracy) / (high - low)

    places = [x_of(limit) for limit in curve["limits"]]
    lines = []
    for row in rows:
        dots = [(x, y_of(point["accuracy"]), f"{row['name']}: {percent(point['accuracy'])} ({100 * point['ci95'][0]:.1f} to "
                 f"{100 * point['ci95'][1]:.1f}) for at most {quantity(limit, unit)}")
                for x, limit, point in zip(places, curve["limits"], row["points"], strict=True)]
        band = [(x, y_of(p["ci95"][0])) for x, p in zip(places, row["points"], strict=True)]
        band += [(x, y_of(p["ci95"][1])) for x, p in reversed(list(zip(places, row["points"], strict=True)))]
        lines.append({"name": short(row["name"], ROOM[frame.name][1]), "kind": row["kind"], "marked": row["marked"], "dots": dots,
                      "band": band if row["marked"] else None})
    _place_names(lines, frame.top, floor)
    return {"lines": lines[::-1], "x_ticks": x_ticks, "y_ticks": [(y_of(t), f"{100 * t:.0f}") for t in y_ticks], "name": frame.name,
            "width": frame.width, "height": frame.height, "left": frame.left, "right": frame.width - frame.right, "top": frame.top, "bottom": floor}


def _place_names(lines: list[dict[str, Any]], top: float, floor: float) -> None:
    """A height for the name of each line beside its end, apart from the others; where not all have room, the first lines of the list have it."""
    named = sorted(lines[: int((floor - top) // LINE) + 1], key=lambda line: line["dots"][-1][1])
    heights: list[float] = []
    for line in named:  # each below the one before,
        heights.append(max(line["dots"][-1][1], heights[-1] + LINE if heights else top))
    for i in range(len(heights) - 1, -1, -1):  # and what hangs over is pushed up
        heights[i] = min(heights[i], floor if i == len(heights) - 1 else heights[i + 1] - LINE)
    for line in lines:
        line["label"] = None
    for line, height in zip(named, heights, strict=True):
        line["label"] = height
