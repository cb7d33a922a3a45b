"""The trade as a picture: one SVG that needs nothing else. Bits a number to the right, tokens that differ upwards, both logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 460
LEFT, TOP, RIGHT, BOTTOM = 90, 56, 600, 400  # of the plot itself
FLOOR = 1e-4  # some thousand places cannot tell a smaller share
TARGET_BITS, TARGET = 1.5, 0.01
COLOURS = {
    "raw": "#7a7a7a",
    "int": "#b5651d",
    "hadamard": "#8a5fbf",
    "outliers": "#c0392b",
    "klt": "#1f77b4",
    "klt by output": "#0b9a8d",
    "predict": "#1a7f37",
}


def wire_svg(rows: Sequence[dict[str, Any]], title: str) -> str:
    """rows: what `bench_codec` returns. Points of one family of codecs are joined; the green corner is where a codec should be."""
    bits = [row["bits"] for row in rows] + [1.0, 2.0]
    low, high = math.log2(min(bits)) - 0.2, math.log2(max(bits)) + 0.2

    def x(bits: float) -> float:
        return LEFT + (math.log2(bits) - low) / (high - low) * (RIGHT - LEFT)

    def y(differ: float) -> float:
        return TOP + math.log10(max(differ, FLOOR)) / math.log10(FLOOR) * (BOTTOM - TOP)

    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{LEFT} {y(TARGET):.1f}H{x(TARGET_BITS):.1f}V{BOTTOM}H{LEFT}Z" fill="#1a7f37" opacity="0.1"/>',
        _text(LEFT, 24, title, size=15),
        _text(LEFT, TOP - 10, "answer tokens that differ"),
        _text((LEFT + RIGHT) / 2, BOTTOM + 40, "bits a number, all bytes of a message counted", "middle"),
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        parts += [f'<path d="M{x(2.0**power):.1f} {TOP}V{BOTTOM}" stroke="#ddd"/>', _text(x(2.0**power), BOTTOM + 18, f"{2.0**power:g}", "middle")]
    for power in range(0, -5, -1):
        label = ("" if power > -4 else "≤ ") + f"{100 * 10.0**power:g} %"
        parts += [f'<path d="M{LEFT} {y(10.0**power):.1f}H{RIGHT}" stroke="#ddd"/>', _text(LEFT - 8, y(10.0**power) + 4, label, "end")]

    families: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["bits"]):
        families.setdefault(family(row["codec"]), []).append(row)
    for i, (name, points) in enumerate(sorted(families.items())):
        colour, packed = COLOURS.get(name.removesuffix(", packed"), "#333"), name.endswith("packed")
        places = [(x(row["bits"]), y(1 - row["agreement"]["answers"])) for row in points]
        dash = ' stroke-dasharray="4 3"' if packed else ""
        parts.append(f'<path d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in places)}" fill="none" stroke="{colour}"{dash}/>')
        parts += [_dot(a, b, colour, packed, row) for (a, b), row in zip(places, points, strict=True)]
        parts.append(_text(RIGHT + 14, TOP + 20 * i + 8, name, fill=colour))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-family="sans-serif">'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def family(spec: str) -> str:
    """Codecs whose points belong on one line."""
    name = spec.partition(":")[0].partition("+")[0]
    name = "raw" if name in ("float32", "float16", "bfloat16") else name.rstrip("0123456789")
    coded = spec.endswith("+range") or name == "predict"
    return name + (" by output" if "by=output" in spec else "") + ("" if coded else ", packed")


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12, fill: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(text)}</text>'


def _dot(x: float, y: float, colour: str, hollow: bool, row: dict[str, Any]) -> str:
    """A point that says what it is when it is pointed at."""
    agree, lost = 100 * row["agreement"]["answers"], 100 * row["accuracy"]["lost"]
    said = escape(f"{row['codec']}: {row['bits']:.2f} bits, {agree:.2f} % agree, {lost:.2f} points lost")
    fill = "white" if hollow else colour
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"><title>{said}</title></circle>'
