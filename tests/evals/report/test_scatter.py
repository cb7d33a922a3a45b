"""Accuracy against cost: marks, labels, ticks and the frontier."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_agents.evals.report.arms import COSTS
from aiflow_agents.evals.report.scatter import FRAMES, LETTER, frontier, linear_ticks, scatter


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.name)
@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost[0])
def test_marks_lie_inside_and_labels_apart(run, frame, cost):
    summary, _ = run
    plot = scatter(summary, *cost, frame)
    dots = plot["dots"]
    assert {dot["name"] for dot in dots} == set(summary["arms"]) - {"oracle"}
    assert all(plot["left"] <= dot["x"] <= plot["right"] and plot["top"] <= dot["y"] <= plot["bottom"] for dot in dots)
    boxes = []
    for dot in dots:
        if dot["label"]:
            x, y, anchor = dot["label"]
            width = LETTER * len(dot["name"])
            left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
            boxes.append((left, left + width, y))
    assert len(boxes) >= len(dots) / 2
    for i, a in enumerate(boxes):
        assert all(a[1] < b[0] or b[1] < a[0] or abs(a[2] - b[2]) > 10 for b in boxes[:i])
    places = sorted(x for x, _ in plot["x_ticks"])
    assert len(places) >= 2 and all(b - a > 12 for a, b in zip(places, places[1:], strict=False))


def test_a_dearer_arm_lies_further_right(run):
    summary, _ = run
    dots = scatter(summary, *COSTS[1], FRAMES[0])["dots"]
    by_cost = sorted(dots, key=lambda dot: summary["arms"][dot["name"]]["flops"])
    assert [dot["x"] for dot in by_cost] == sorted(dot["x"] for dot in dots)


def test_whiskers_are_the_intervals_of_the_summary(run):
    summary, _ = run
    plot = scatter(summary, *COSTS[0], FRAMES[0])
    (low_y, low), (high_y, high) = plot["y_ticks"][0], plot["y_ticks"][-1]
    for dot in plot["dots"]:
        ends = [float(low) + (float(high) - float(low)) * (low_y - y) / (low_y - high_y) for y in dot["whisker"]]
        assert ends == pytest.approx([100 * end for end in summary["arms"][dot["name"]]["ci95"]], abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["member", "placebo"])), max_size=12))
def test_the_frontier_is_what_no_cheaper_arm_beats(rows):
    dots = [{"x": x, "y": y, "kind": kind} for x, y, kind in rows]
    real = [(x, y) for x, y, kind in rows if kind != "placebo"]
    best = {(x, y) for x, y in real if not any((u <= x and v < y) or (u < x and v <= y) for u, v in real)}
    stair = frontier(dots)
    assert set(stair[::2]) == best and all(a[0] == b[0] or a[1] == b[1] for a, b in zip(stair, stair[1:], strict=False))


@given(st.floats(0, 1), st.floats(0, 1))
def test_ticks_enclose(low, high):
    low, high = sorted((low, high))
    ticks = linear_ticks(low, high)
    assert ticks[0] <= low + 1e-9 and high - 1e-9 <= ticks[-1] and len(ticks) <= 9


def test_arms_without_a_cost_are_left_out(run):
    summary = copy.deepcopy(run[0])
    summary["arms"]["debate"]["energy_j"] = None
    assert "debate" not in {dot["name"] for dot in scatter(summary, "energy_j", "energy", "J", FRAMES[0])["dots"]}
