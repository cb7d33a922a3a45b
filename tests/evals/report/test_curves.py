"""Accuracy against budget: lines, bands and names, and what the page says where there is no curve."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.evals.report import is_current, write_report
from aiflow_agents.evals.report.curves import LINE, _place_names, budget_plot
from aiflow_agents.evals.report.scatter import LETTER


@pytest.mark.parametrize("over", ["bytes", "tokens", "flops", "seconds"])
def test_lines_lie_inside_rise_with_accuracy_and_the_chosen_have_bands(run, curve, over):
    summary, _ = run
    made = curve(summary, over, (2e6, 8e6, 4e7) if over == "flops" else (0.0, 1, 20))
    plot = budget_plot(made)
    assert [row["name"] for row in plot["rows"]][:3] == ["debate", "self-consistency@budget", "generalist-cloud"] and len(plot["frames"]) == 2
    for frame in plot["frames"]:
        lines = frame["lines"]
        assert len(lines) == len(made["arms"]) and sum(line["band"] is not None for line in lines) == 3 == sum(line["marked"] for line in lines)
        for line in lines:
            xs, ys = [dot[0] for dot in line["dots"]], [dot[1] for dot in line["dots"]]
            assert xs == sorted(xs) and ys == sorted(ys, reverse=True)  # more budget is further right, and here never worse
            assert all(frame["left"] <= x <= frame["right"] for x in xs) and all(frame["top"] <= y <= frame["bottom"] for y in ys)
            assert frame["right"] + 9 + LETTER * len(line["name"]) <= frame["width"] + 1
            if line["band"]:
                n = len(xs)
                assert all(low >= y >= high for (_, low), y, (_, high) in zip(line["band"][:n], ys, line["band"][:n - 1:-1], strict=True))
        labels = sorted(line["label"] for line in lines if line["label"] is not None)
        assert len(labels) == len(lines) and all(b - a >= LINE - 1e-9 for a, b in zip(labels, labels[1:], strict=False))


@settings(deadline=None)
@given(st.lists(st.floats(10, 300), min_size=1, max_size=60))
def test_names_never_cover_each_other_and_the_first_ones_have_room(ends):
    lines = [{"dots": [(0.0, end, "")], "place": i} for i, end in enumerate(ends)]
    _place_names(lines, 10.0, 300.0)
    named = [line for line in lines if line["label"] is not None]
    assert [line["place"] for line in named] == list(range(min(len(ends), int(290 // LINE) + 1)))
    places = sorted(line["label"] for line in named)
    assert all(b - a >= LINE - 1e-6 for a, b in zip(places, places[1:], strict=False)) and places[0] >= 10 - 1e-6 and places[-1] <= 300 + 1e-6
    if len(named) == 1:
        assert named[0]["label"] == ends[0]


def test_the_page_shows_what_the_folder_holds(tmp_path, made, curve):
    make_run, _ = made
    summary = make_run(tmp_path, n=60)
    assert 'id="budget"' not in write_report(tmp_path).read_text() and is_current(tmp_path)
    (tmp_path / "curves.json").write_text(json.dumps({"bytes": curve(summary)}))
    assert not is_current(tmp_path)
    page = write_report(tmp_path).read_text()
    assert page.count('class="curve"') == 1 and "generalist-cloud x 5, 10 stopped" in page and "debate minus self-consistency@budget" in page
    (tmp_path / "curves.json").write_text("{")
    assert 'id="budget"' not in write_report(tmp_path).read_text()
