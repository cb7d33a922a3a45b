"""The map of a sweep: where drafting beats streaming. The geometry; the template draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LEFT, TOP, WIDTH, HEIGHT, BOTTOM = 66, 4, 66, 42, 44
DEEPEST = 2.0  # doublings at which a cell is as dark as it gets


def sweep_map(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the template draws of `evals.sweep`'s result: a panel for each rate. None where there was no sweep."""
    if not found or not found.get("cells"):
        return None
    cells: Sequence[Mapping[str, Any]] = found["cells"]
    rates = sorted({cell["mbps"] for cell in cells})
    panels = [_panel(f"{rate:g} Mbit/s", [cell for cell in cells if cell["mbps"] == rate]) for rate in rates]
    return {**{key: found[key] for key in ("arm", "against", "team", "network", "n_questions")}, "panels": panels}


def _panel(title: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns, heats = sorted({cell["rtt_ms"] for cell in cells}), sorted({cell["heat"] for cell in cells})
    kept = {heat: [c["acceptance_rate"] for c in cells if c["heat"] == heat and c["acceptance_rate"] is not None] for heat in heats}
    rows = [f"{100 * sum(kept[heat]) / len(kept[heat]):.0f} % kept" if kept[heat] else "-" for heat in heats]
    return {
        "title": title,
        "left": LEFT,
        "width": LEFT + WIDTH * len(columns),
        "height": TOP + HEIGHT * len(heats) + BOTTOM,
        "cell_width": WIDTH,
        "cell_height": HEIGHT,
        "middle": LEFT + WIDTH * len(columns) / 2,
        "columns": [(LEFT + WIDTH * (i + 0.5), f"{rtt:g} ms") for i, rtt in enumerate(columns)],
        "rows": [(TOP + HEIGHT * (i + 0.5) + 4, label) for i, label in enumerate(rows)],
        "cells": [_cell(cell, columns.index(cell["rtt_ms"]), heats.index(cell["heat"])) for cell in cells],
    }


def _cell(cell: Mapping[str, Any], column: int, row: int) -> dict[str, Any]:
    doublings = math.log2(max(cell["speedup"], 1e-3))
    busy = "" if cell["busy_ratio"] is None else f"busy {cell['busy_ratio']:.2f}"
    return {
        "x": LEFT + WIDTH * column,
        "y": TOP + HEIGHT * row,
        "won": doublings >= 0,
        "opacity": f"{min(abs(doublings) / DEEPEST, 1.0) * 0.55 + 0.05:.2f}",
        "speedup": f"{cell['speedup']:.2f}x",
        "busy": busy,
        "title": f"{cell['ms_per_token']:.1f} ms a token, streaming {cell['stream_ms_per_token']:.1f} ms; {busy}",
    }
