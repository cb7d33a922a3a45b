"""The curves as a picture: one SVG that needs nothing else. Bytes of a camera to the right, logarithmic; right answers upwards, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from aiflow_agents.evals.report.scatter import linear_ticks
from aiflow_agents.evals.verdict import percent, quantity

WIDTH, HEIGHT = 820, 480
LEFT, TOP, RIGHT, BOTTOM = 70, 56, 660, 420  # of the plot itself
COLOURS = {"float": "#7a7a7a", "int": "#b5651d", "klt": "#1f77b4", "merge": "#1a7f37", "jpeg": "#c0392b", "text": "#8a5fbf"}


def views_svg(found: Mapping[str, Any]) -> str:
    """found: what `bench_views` returns. Points of one family are joined; the dashed line is the edge by itself."""
    points = [point | {"nbytes": max(point["nbytes"], 1.0)} for point in found["points"]]
    low, high = (math.log2(edge(point["nbytes"] for point in points)) for edge in (min, max))
    low, high = low - 0.3, high + 0.3
    ticks = linear_ticks(min([found["alone"], *(point["ci95"][0] for point in points)]), max(point["ci95"][1] for point in points))

    def x(nbytes: float) -> float:
        return LEFT + (math.log2(nbytes) - low) / (high - low) * (RIGHT - LEFT)

    def y(accuracy: float) -> float:
        return BOTTOM - (accuracy - ticks[0]) / (ticks[-1] - ticks[0]) * (BOTTOM - TOP)

    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 24, f"{found['suite']}, {found['tasks']:,} questions", size=15),
        _text(LEFT, TOP - 12, "right answers"),
        _text((LEFT + RIGHT) / 2, BOTTOM + 40, "bytes that each camera sends for a question", "middle"),
        *(f'<path d="M{LEFT} {y(t):.1f}H{RIGHT}" stroke="#ddd"/>{_text(LEFT - 8, y(t) + 4, f"{100 * t:.0f} %", "end")}' for t in ticks),
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        parts += [f'<path d="M{x(2.0**power):.1f} {TOP}V{BOTTOM}" stroke="#eee"/>', _text(x(2.0**power), BOTTOM + 18, f"{2**power:,}", "middle")]
    alone = y(found["alone"])
    parts += [f'<path d="M{LEFT} {alone:.1f}H{RIGHT}" stroke="#999" stroke-dasharray="5 4"/>', _text(RIGHT + 14, alone + 4, "edge alone")]
    families: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        families.setdefault(family(point), []).append(point)
    for i, (name, members) in enumerate(families.items()):
        colour = COLOURS.get(name, "#333")
        places = [(x(point["nbytes"]), y(point["accuracy"])) for point in members]
        parts.append(f'<path d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in places)}" fill="none" stroke="{colour}" opacity="0.6"/>')
        for (a, b), point in zip(places, members, strict=True):
            upper, lower = (y(end) for end in point["ci95"][::-1])
            said = f"{point['what']}: {percent(point['accuracy'])} at {quantity(point['nbytes'], 'B')}"
            parts.append(f'<path d="M{a:.1f} {upper:.1f}V{lower:.1f}" stroke="{colour}" opacity="0.45"/>')
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"><title>{escape(said)}</title></circle>')
        parts.append(_text(RIGHT + 14, TOP + 20 * i + 8, name, fill=colour))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-family="sans-serif">'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def family(point: Mapping[str, Any]) -> str:
    """Points that belong on one line: a kind of codec, JPEG or text."""
    if point["kind"] != "features":
        return str(point["kind"])
    name = point["what"].partition(":")[0].partition("+")[0].rstrip("0123456789")
    return "float" if name in ("bfloat", "raw") else name


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12, fill: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(text)}</text>'
