"""The judge on trial: the simulated worlds against enumeration, the trial against broken judges."""

from __future__ import annotations

import numpy as np
import pytest

from aiflow_agents.bench.judge import SURE, bench_judge, judged, try_graded, try_power, try_world, weigh
from aiflow_agents.bench.worlds import Runs, World, shown_exactly
from aiflow_agents.evals import statistics, verdict
from aiflow_agents.evals.statistics import power_mcnemar

FAR = World("far", 400, 0.4, (0.6, 0.4), (0.0,) * 9)


def missed(found, name):
    return [one.name for one in weigh([found], [], {"scipy": 0.0}) if not one.passed and name in one.name]


def test_a_world_is_what_it_says():
    world = World("x", 1000, 0.3, (0.6, 0.55, 0.2), (0.1, 0.0, -0.05))
    assert world.shares.sum() == pytest.approx(1) and world.shares @ world.patterns == pytest.approx([0.6, 0.55, 0.2])
    assert world.accuracies == pytest.approx([0.7, 0.6, 0.55]) and world.better.tolist() == [True, False, False]
    best = world.patterns[:, 0]
    differs = np.where(best == 1, 1 - world.right, world.right) @ world.shares
    assert differs == pytest.approx([0.3] * 3)
    with pytest.raises(ValueError):
        _ = World("x", 10, 0.1, (0.6,), (0.2,)).right


def test_runs_written_out_task_by_task_have_the_counts_of_the_draw():
    world, rng = World("x", 150, 0.3, (0.6, 0.5), (0.1, 0.0)), np.random.default_rng(0)
    test = Runs.draw(world, 150, 4, rng)
    both, only = test.against_rivals(np.array([1, 0, 1, 0]), rng)
    scores = test.written_out(2, 1, both[2], only[2], rng)
    wins, losses = test.counts
    for t in range(2):
        own = scores[f"topology-{t}"]
        for m in range(2):
            other = scores[f"member-{m}"]
            assert (wins[2, t, m], losses[2, t, m]) == (np.sum(own > other), np.sum(own < other))
    assert np.sum((scores["topology-1"] == 1) & (scores["rival-0"] == 1)) == both[2, 0].sum()
    assert np.sum((scores["topology-1"] == 0) & (scores["rival-0"] == 1)) == only[2, 0].sum()


@pytest.mark.parametrize(("n", "discordance", "gain"), [(30, 0.4, 0.2), (200, 0.1, 0.05)])
def test_enumeration_agrees_with_the_sum_over_binomials(n, discordance, gain):
    assert shown_exactly(World("x", n, discordance, (0.6,), (gain,))) == pytest.approx(power_mcnemar(n, gain, discordance), abs=1e-10)


@pytest.mark.parametrize(("members", "gains"), [((0.6, 0.5), (0.4,)), ((0.6,), (0.4, 0.2))])
def test_power_of_intersection_union_and_holm_is_the_exact_one(members, gains):
    row = try_power(World("x", 16, 0.4, members, gains, rivals=0), 4000, seed=1)
    assert 0.1 < row["exact"] < 0.9 and abs(row["standard_errors"]) < 4


def test_an_honest_judge_passes():
    found = try_world(World("far", 400, 0.2, (0.6, 0.58, 0.4), (0.0,) * 3), 2000, seed=0)
    assert found["same"] and found["false_beats"] <= 0.04
    assert all(0.93 < share < 0.97 for share in found["covered"].values()) and set(found["covered"]) == {"difference", "accuracy", "capture"}
    assert not missed(found, "false")


def test_a_judge_without_holm_is_caught(monkeypatch):
    monkeypatch.setattr(statistics, "holm", lambda p: np.asarray(p))
    found = try_world(FAR, 2000, seed=0)
    assert found["false_beats"] > 0.07 and missed(found, "any topology")


def test_a_judge_that_is_content_with_one_member_is_caught(monkeypatch):
    monkeypatch.setattr(statistics, "iut", lambda p: np.asarray(p).min(axis=-1))
    assert missed(try_world(FAR, 1000, seed=0), "any topology")


def test_intervals_that_are_too_narrow_are_caught(monkeypatch):
    narrow = statistics.tango
    monkeypatch.setattr(statistics, "tango", lambda b, c, n: narrow(b, c, n, 0.9))
    found = try_world(FAR, 1000, seed=0)
    assert found["covered"]["difference"] < 0.92 and missed(found, "difference")


def test_choosing_on_the_test_split_is_caught():
    """Were the best topology chosen where it is measured, its interval would not hold the truth."""
    rng = np.random.default_rng(0)
    test = Runs.draw(FAR, FAR.tasks, 2000, rng)
    truth = 0.0

    def covered(dev):
        found, _, _ = judged(dev, test, rng)
        of_first = found.member == 0
        return np.mean((found.interval[0] <= truth) & (truth <= found.interval[1]), where=of_first)

    assert covered(Runs.draw(FAR, 200, 2000, rng)) > 0.93 > 0.9 > covered(test)


def test_a_copy_of_the_judge_that_says_otherwise_is_caught(monkeypatch):
    whole = verdict.judge
    monkeypatch.setattr(verdict, "judge", lambda *a, **k: [v.__class__(**{**vars(v), "p_holm": v.p_holm / 2}) for v in whole(*a, **k)])
    assert not try_world(World("far", 100, 0.4, (0.6,), (0.0,)), 100, seed=0)["same"]


def test_graded_scores_go_through_the_whole_judge():
    found = try_graded(World("far", 60, 0.4, (0.6, 0.4), (0.0,)), 200, seed=0)
    assert found["false_beats"] < 0.08 and found["covered"]["graded difference"] > 0.9


def test_the_whole_trial_is_repeatable_and_says_where():
    worlds = [World("far", 100, 0.2, (0.6,), (0.0,))]
    one, two = (bench_judge(100, 3, worlds) for _ in range(2))
    assert one == two and {c["name"] for c in one["criteria"]} >= {"power", "p-values", "the same judge", "false `loses`"}
    assert one["passed"] == all(c["passed"] for c in one["criteria"]) and SURE < 0.05
    assert one["pvalues"]["holm: statsmodels"] <= 1e-9
