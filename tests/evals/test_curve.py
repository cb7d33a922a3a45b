"""Accuracy against budget: each point is what a run under that limit says, and no model is asked twice."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents import Budget
from aiflow_agents.cli import main as door
from aiflow_agents.errors import UserError
from aiflow_agents.evals.curve import RIVAL, curve, gains, ladder
from aiflow_agents.evals.run_folder import read_curves
from aiflow_agents.evals.statistics import holm, mcnemar_exact, wilson

TOPOLOGIES = ["weighted", {"debate": {"rounds": 1}}]
LIMITS = (20, 60, 300, 5000)


@pytest.fixture
def run(room: Any) -> Any:
    room.suite("short", dev=9, test=15)
    return room.evaluate("short", topologies=TOPOLOGIES)


def test_each_point_is_what_the_whole_evaluation_says_under_that_limit(room: Any, run: Any) -> None:
    before, room.batches = (run.folder / "samples.jsonl").read_bytes(), 0
    found = curve(run.folder, "bytes", LIMITS, hosts=room.hosts())
    assert found["limits"] == list(LIMITS) and {*found["arms"]} == {"ann", "bob", "cid", "weighted", "debate(rounds=1)", RIVAL}
    samples = {(s["arm"], s["task_id"]): s for s in map(json.loads, before.splitlines())}
    alone = {limit: room.evaluate("short", topologies=[], budget=Budget(bytes=limit)) for limit in LIMITS[:2]}
    for arm in ("ann", "bob", "cid"):  # dev chooses nothing for these, so a run of their own under the limit must say the same
        for limit, point in list(zip(LIMITS, found["arms"][arm]["points"], strict=True))[:2]:
            limited = alone[limit].summary["arms"][arm]
            assert (point["accuracy"], point["ci95"], point["n_over_budget"]) == (limited["accuracy"], limited["ci95"], limited["n_over_budget"])
            assert point["spent"] == pytest.approx(limited["wire_bytes"])
    for name in ("weighted", "debate(rounds=1)"):
        points = found["arms"][name]["points"]
        over = [sum(s["usage"]["wire_bytes"] > limit for (arm, _), s in samples.items() if arm == name) for limit in LIMITS]
        assert [point["n_over_budget"] for point in points] == over and over[0] == 15 and over[-1] == 0
        assert points[-1]["accuracy"] == run.accuracy(name) and all(p["spent"] <= limit for p, limit in zip(points, LIMITS, strict=True))
        assert all(p["ci95"] == list(wilson(round(15 * p["accuracy"]), 15)) for p in points)
    assert [gain["delta"] for gain in found["gains"]] == pytest.approx(
        [a["accuracy"] - b["accuracy"] for a, b in zip(found["arms"][found["best_topology"]]["points"], found["arms"][RIVAL]["points"], strict=True)]
    )
    assert (run.folder / "samples.jsonl").read_bytes() == before and read_curves(run.folder) == {"bytes": found}
    room.batches = 0
    assert curve(run.folder, "bytes", LIMITS, hosts=room.hosts()) == found and room.batches == 0  # all is remembered, the rival's samples too
    curve(run.folder, "tokens", points=2, hosts=room.hosts())
    assert [*read_curves(run.folder)] == ["bytes", "tokens"]
    page = (run.folder / "report.html").read_text()
    assert page.count('class="curve"') == 2 and 'href="#budget"' in page and "bytes on the wire per question, at most" in page


def test_the_rival_draws_as_many_samples_as_are_best_on_dev_under_the_limit(room: Any) -> None:
    def ant(request: Any) -> tuple[str, float]:  # greedily always wrong, right in two of three samples
        right = request.sampling.temperature > 0 and room.luck(request.seed) < 0.67
        return (room.truth(request.messages[0].content) if right else "no", 0.5)

    room.say = {"ant": ant, "bee": lambda request: ("?" * 9, 0.5), "cat": lambda request: ("?" * 9, 0.5)}
    room.suite("drawn", dev=18, test=12)
    run = room.evaluate("drawn", topologies=["majority"])
    cost = next(s["usage"] for s in map(json.loads, (run.folder / "samples.jsonl").read_text().splitlines()) if s["arm"] == "ann")
    one = cost["tokens_in"] + cost["tokens_out"]
    found = curve(run.folder, "tokens", [one, one + 12, 20 * one], hosts=room.hosts())
    points = found["arms"][RIVAL]["points"]
    assert points[2]["samples"] > 3 and points[2]["accuracy"] > 0.8 and points[0]["accuracy"] < 0.9
    assert all(point["spent"] <= limit for point, limit in zip(points, found["limits"], strict=True))


def test_limits_reach_from_the_cheapest_member_to_the_dearest_arm(room: Any, run: Any) -> None:
    samples = {(s["arm"], s["task_id"], 0): s for s in map(json.loads, (run.folder / "samples.jsonl").read_text().splitlines())}
    steps = ladder(run.summary, samples, "flops", 5)
    costs = {arm: [s["usage"]["flops"] for key, s in samples.items() if key[0] == arm] for arm in ("ann", "bob", "cid", "weighted", "debate(rounds=1)")}
    assert len(steps) == 5 and steps == sorted(steps) and all(float(f"{step:.2g}") == step for step in steps)
    assert steps[0] == pytest.approx(min(map(np.median, costs.values())), rel=0.1)
    assert steps[-1] == pytest.approx(max(np.percentile(values, 95) for values in costs.values()), rel=0.1)
    near = {**run.summary, "arms": {"ann": run.summary["arms"]["ann"]}}
    with pytest.raises(UserError, match="no arm of this run spends any bytes"):
        ladder(near, samples, "bytes", 5)


def test_mistakes_and_what_a_new_mark_means_for_a_curve(room: Any, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def aiflow(*args: str) -> tuple[int, str, str]:
        return (door.main(args), *capsys.readouterr())

    code, out, _ = aiflow("curve", str(run.folder), "--over", "seconds", "--points", "2", "--display", "none")
    assert code == 0 and "right, % of 15 questions" in out and f"\n{RIVAL}  " in out and "after Holm over the limits" in out
    code, out, _ = aiflow("curve", str(run.folder), "--at", "60,20", "--json", "--display", "none")
    assert code == 0 and json.loads(out)["limits"] == [20, 60]
    for wrong in ("a,b", "-3", "nan"):
        code, _, err = aiflow("curve", str(run.folder), "--at", wrong, "--display", "none")
        assert code == 2 and len(err.splitlines()) == 1
    code, _, err = aiflow("curve", "logs", "--display", "none")
    assert code == 2 and "is no run folder" in err
    assert {*read_curves(run.folder)} == {"seconds", "bytes"}
    assert aiflow("score", str(run.folder), "--scorer", "folded")[0] == 0 and read_curves(run.folder) == {}


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_gains_are_paired(pairs: Any) -> None:
    own, other = np.array(pairs, dtype=float).T
    rows = gains([own, other], [other, own])
    wins, losses = int((own > other).sum()), int((own < other).sum())
    assert [row["p"] for row in rows] == [mcnemar_exact(wins, losses)] * 2 and [row["p_holm"] for row in rows] == holm([rows[0]["p"]] * 2).tolist()
    assert rows[0]["delta"] == pytest.approx((wins - losses) / len(pairs)) == pytest.approx(-rows[1]["delta"])
    assert rows[0]["ci95"][0] <= rows[0]["delta"] <= rows[0]["ci95"][1]
