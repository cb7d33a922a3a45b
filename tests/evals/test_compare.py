"""Runs side by side: the statistics against statsmodels and scipy, what a side is, and what may be said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from aiflow_agents.errors import UserError
from aiflow_agents.evals.compare import compare_runs, read_side
from aiflow_agents.evals.statistics import equivalence, equivalence_graded, tango


def write(
    folder: Path, arms: dict[str, Any], *, best: str | None = None, flops: float = 100.0, first: int = 0, wire: float = 10.0, of: Any = lambda i: {}
) -> str:
    """A run folder with these scores: arm -> [tasks] or [tasks, repeats]. `of`: what else is said of a task."""
    folder.mkdir()
    chosen = {"arm": best or next(iter(arms)), "chosen_on": "dev"}
    (folder / "config.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps({"arms": {arm: {} for arm in arms}, "best_topology": chosen if best else None, "best_member": chosen}))
    with (folder / "samples.jsonl").open("w") as lines:
        for arm, scores in arms.items():
            for i, repeats in enumerate(np.asarray(scores, dtype=float).reshape(len(scores), -1), first):
                for r, score in enumerate(repeats):
                    usage = {"wire_bytes": wire, "flops": flops + i % 7, "latency_s": 0.1, "energy_j": 1.0}
                    lines.write(json.dumps({"arm": arm, "task_id": f"t{i}", "repeat": r, "question": f"q{i}", "score": score, "usage": usage, **of(i)}) + "\n")
    return str(folder)


def coins(n: int, share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(float)


def test_a_better_run_is_better_and_its_numbers_are_those_of_statsmodels(tmp_path):
    x, y = coins(400, 0.8, 1), coins(400, 0.6, 2)
    found = compare_runs([write(tmp_path / "a", {"vote": y, "ann": x}, best="vote"), write(tmp_path / "b", {"debate": x}, best="debate", flops=50)])
    row = found["comparisons"][0]
    b, c = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    assert (row["wins"], row["losses"], row["ties"]) == (b, c, 400 - b - c) and row["delta"] == pytest.approx((b - c) / 400)
    assert row["p"] == pytest.approx(mcnemar([[0, b], [c, 0]], exact=True).pvalue, abs=1e-12) and row["ci95"] == list(tango(b, c, 400))
    cost = row["costs"]["flops"]
    ours, theirs = 50 + np.arange(400) % 7, 100 + np.arange(400) % 7
    reference = bootstrap((ours, theirs), lambda p, q, axis: p.mean(axis) / q.mean(axis), paired=True, vectorized=True, n_resamples=4000,
                          method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert cost["ratio"] == pytest.approx(ours.mean() / theirs.mean()) and cost["ci95"] == pytest.approx(list(reference), abs=5e-4)
    assert row["says"] == "better" and found["tasks"] == 400
    assert row["sentence"].startswith("debate answers ") and "is real (p < 0.001): debate is better." in row["sentence"]
    assert row["sentence"].endswith("So: better, cheaper in FLOPs.")


def test_the_tasks_of_each_tag_alone(tmp_path):
    """Against statsmodels on a part of the tasks, Holm over the tags; with clusters as if the run had only these tasks."""
    x, y = coins(300, 0.8, 1), coins(300, 0.6, 2)
    kinds = [["even", "all"], ["odd", "all"]]
    runs = [write(tmp_path / name, {name: scores}, of=lambda i: {"tags": kinds[i % 2]}) for name, scores in (("a", y), ("b", x))]
    (row,) = compare_runs(runs, tagged=True)["comparisons"]
    assert list(row["tags"]) == ["even", "all", "odd"] and [one["tasks"] for one in row["tags"].values()] == [150, 300, 150]
    for tag, part in (("even", slice(0, None, 2)), ("odd", slice(1, None, 2)), ("all", slice(None))):
        a, b, one = y[part], x[part], row["tags"][tag]
        table = [[0, ((b == 1) & (a == 0)).sum()], [((b == 0) & (a == 1)).sum(), 0]]
        assert one["p"] == pytest.approx(mcnemar(table, exact=True).pvalue, abs=1e-12)
        assert one["delta"] == pytest.approx((b - a).mean()) and one["accuracy"] == pytest.approx([a.mean(), b.mean()])
    p = [one["p"] for one in row["tags"].values()]
    assert [one["p_holm"] for one in row["tags"].values()] == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert "tags" not in compare_runs(runs)["comparisons"][0]
    scene = {"tags": ["odd"]}
    whole = [write(tmp_path / f"c{n}", {n: s}, of=lambda i: {"tags": kinds[i % 2], "cluster": f"{i // 6}"}) for n, s in (("a", y), ("b", x))]
    part = [write(tmp_path / f"d{n}", {n: s[1::2]}, of=lambda i: scene | {"cluster": f"{(2 * i + 1) // 6}"}) for n, s in (("a", y), ("b", x))]
    clustered, alone = compare_runs(whole, tagged=True)["comparisons"][0]["tags"]["odd"], compare_runs(part)["comparisons"][0]
    assert clustered["p"] == alone["p"] and clustered["ci95"] == pytest.approx(alone["ci95"])
    assert clustered["equivalence"]["p"] == pytest.approx(alone["equivalence"]["p"])


def test_same_accuracy_for_less_is_said(tmp_path):
    x = coins(3000, 0.7, 1)
    y = x.copy()
    y[:20], y[20:38] = 1 - y[:20], 1 - y[20:38]
    row = compare_runs([write(tmp_path / "a", {"vote": x}), write(tmp_path / "b", {"mix": y}, flops=20)])["comparisons"][0]
    assert row["says"] == "same" and row["equivalence"]["p"] < 1e-3 and "They are equally accurate within 2.0 points (p < 0.001)" in row["sentence"]
    assert row["sentence"].endswith("So: same accuracy, cheaper in FLOPs.")


def test_few_tasks_show_neither(tmp_path):
    row = compare_runs([write(tmp_path / "a", {"vote": coins(60, 0.7, 1)}), write(tmp_path / "b", {"mix": coins(60, 0.7, 5)})])["comparisons"][0]
    assert row["says"] == "not shown" and "Neither a difference" in row["sentence"]


def test_only_common_tasks_count_by_id_and_question(tmp_path):
    one, two = write(tmp_path / "a", {"vote": coins(50, 0.5, 0)}), write(tmp_path / "b", {"vote": coins(50, 0.5, 0)}, first=20)
    found = compare_runs([one, two])
    assert found["tasks"] == 30 and [side["name"] for side in found["sides"]] == ["vote of a", "vote of b"]
    other = Path(write(tmp_path / "c", {"vote": coins(50, 0.5, 0)})) / "samples.jsonl"
    other.write_text(other.read_text().replace('"question": "q', '"question": "another q'))
    with pytest.raises(UserError, match="share no task .*'q0', .*'another q0'"):
        compare_runs([one, str(other.parent)])


def test_repeats_and_seeds_of_one_task_are_one_observation(tmp_path):
    x, y = coins(90, 0.5, 3).repeat(20).reshape(90, 20), coins(90, 0.5, 4).repeat(20).reshape(90, 20)  # one coin a task, seen 20 times
    many = compare_runs([write(tmp_path / "a", {"vote": x}), write(tmp_path / "b", {"vote": y})])["comparisons"][0]
    once = compare_runs([write(tmp_path / "c", {"vote": x[:, 0]}), write(tmp_path / "d", {"vote": y[:, 0]})])["comparisons"][0]
    assert (many["p"], many["ci95"], many["wins"]) == (once["p"], once["ci95"], once["wins"])
    pooled = read_side(f"{tmp_path / 'c'},{tmp_path / 'd'}:vote")
    assert pooled.runs == ("c", "d") and pooled.tasks["t0", "q0"][:, 0].tolist() == [x[0, 0], y[0, 0]]
    graded = compare_runs([f"{tmp_path / 'c'},{tmp_path / 'd'}", str(tmp_path / "c")])["comparisons"][0]
    assert graded["delta"] == pytest.approx((x[:, 0] - y[:, 0]).mean() / 2) and 0 < graded["p"] <= 1


def test_holm_runs_over_the_comparisons(tmp_path):
    runs = [write(tmp_path / str(i), {"vote": coins(300, share, i)}) for i, share in enumerate((0.6, 0.68, 0.7, 0.6))]
    rows = compare_runs(runs)["comparisons"]
    for kind in (rows, [row["equivalence"] for row in rows]):
        assert [row["p_holm"] for row in kind] == pytest.approx(list(multipletests([row["p"] for row in kind], method="holm")[1]))


def test_which_arm_and_the_last_line_of_a_repeat_counts(tmp_path):
    run = Path(write(tmp_path / "a", {"ann": [0, 0], "vote": [1, 0]}, best="vote"))
    assert read_side(str(run)).arms == ("vote",) == read_side(str(run / "summary.json")).arms and read_side(f"{run}:ann").arms == ("ann",)
    usage = {"wire_bytes": 1, "flops": 1, "latency_s": 1, "energy_j": 1}
    again = json.dumps({"arm": "vote", "task_id": "t1", "repeat": 0, "question": "q1", "score": 1.0, "usage": usage})
    with (run / "samples.jsonl").open("a") as lines:
        lines.write(again + "\n" + again[:30])  # torn
    assert read_side(str(run)).tasks["t1", "q1"].tolist() == [[1, 1, 1, 1, 1]]
    free = compare_runs([write(tmp_path / "free", {"ann": [0, 1]}, wire=0.0), str(run)])["comparisons"][0]
    assert free["costs"]["wire_bytes"] is None and "bytes" not in free["sentence"]


def test_mistakes_are_one_line(tmp_path):
    run = write(tmp_path / "a", {"vote": [1, 0]})
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    for said, given, margin in (("at least two", [run], 0.02), ("no arm 'voet'; it has vote", [run, f"{run}:voet"], 0.02), ("between 0 and 1", [run, run], 2),
                                ("no run folder", [run, "nowhere"], 0.02), ("go on with it: aiflow eval --resume", [run, str(tmp_path / "begun")], 0.02)):
        with pytest.raises(UserError, match=said):
            compare_runs(given, margin)
    with (tmp_path / "a" / "samples.jsonl").open("a") as lines:
        lines.write("{}\n")
    with pytest.raises(UserError, match=r"samples.jsonl:3: this line is damaged"):
        compare_runs([run, run])


def test_equivalence_is_the_interval_within_the_margin():
    rng = np.random.default_rng(0)
    for n, b, c in rng.integers(0, 60, size=(40, 3)) + [200, 0, 0]:
        low, high = tango(int(b), int(c), int(n), 0.9)
        edge = max(-low, high)
        if edge < 0.99:
            assert equivalence(int(b), int(c), int(n), edge) == pytest.approx(0.05, abs=1e-6)


def test_equivalence_of_graded_scores_is_that_of_statsmodels():
    from statsmodels.stats.weightstats import ttost_paired

    x, y = np.random.default_rng(0).random((2, 80))
    assert equivalence_graded(x - y, 0.1) == pytest.approx(ttost_paired(x, y, -0.1, 0.1)[0], abs=1e-12)
    assert equivalence_graded(np.zeros(9), 0.01) == 0 and equivalence_graded(np.ones(9), 0.01) == 1


def test_equivalence_keeps_its_size():
    """At a true difference of the margin it is found in at most about 5 %."""
    rng = np.random.default_rng(1)
    table = rng.multinomial(4000, [0.08, 0.05, 0.87], size=4000)
    assert 0.04 < np.mean(equivalence(table[:, 0], table[:, 1], 4000, 0.03) <= 0.05) < 0.062


def test_clusters_are_the_unit_where_tasks_have_some(tmp_path):
    from statsmodels.regression.linear_model import OLS

    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(60), 5)
    x = (rng.random(60)[scene] * 0.7 + rng.random(300) * 0.3 > 0.4).astype(float)
    y = (rng.random(60)[scene] * 0.7 + rng.random(300) * 0.3 > 0.5).astype(float)
    runs = [write(tmp_path / "a", {"vote": y}), write(tmp_path / "b", {"debate": x})]
    apart = compare_runs(runs)["comparisons"][0]
    for run in runs:
        lines = [json.loads(line) | {"cluster": f"scene {scene[i]}"} for i, line in enumerate((Path(run) / "samples.jsonl").read_text().splitlines())]
        (Path(run) / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare_runs(runs)
    row = found["comparisons"][0]
    fitted = OLS(x - y, np.ones(300)).fit(cov_type="cluster", cov_kwds={"groups": scene}, use_t=True)
    assert row["ci95"] == pytest.approx(list(fitted.conf_int()[0]), abs=1e-9) and row["delta"] == apart["delta"]
    assert row["p"] > 5 * apart["p"] and row["p"] == pytest.approx(float(fitted.pvalues[0]), abs=0.02)
    assert row["equivalence"]["p"] == pytest.approx(equivalence_graded((x - y).reshape(60, 5).mean(1), 0.02), abs=1e-9)
    assert found["sides"][0]["ci95"][1] - found["sides"][0]["ci95"][0] > 1.3 * (2 * 1.96 * np.sqrt(y.mean() * (1 - y.mean()) / 300))


def test_an_arm_may_have_a_comma_in_its_name(tmp_path):
    arm = "joint-view(send=captions, letters=4)"
    one, other = (write(tmp_path / name, {arm: coins(20, 0.5, seed)}, best=arm, first=100 * seed) for seed, name in enumerate(("a", "b")))
    assert read_side(f"{one}:{arm}").arms == (arm,)
    assert read_side(f"{one}:{arm},{other}:{arm}").arms == (arm, arm)
