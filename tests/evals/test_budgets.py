"""Evaluations under a budget: what samples and summaries say, that one never reached changes nothing, resume, reuse and Ray."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiflow_agents import Budget
from aiflow_agents.errors import UserError
from aiflow_agents.evals import runner
from aiflow_agents.evals.export import to_inspect
from tests.evals.conftest import samples

TOPOLOGIES = ["majority", {"debate": {"rounds": 2}}, "cascade"]


def same(one: Any, other: Any) -> None:
    """Two runs said and cost the same, and were judged alike."""
    assert samples(one.folder) == samples(other.folder)
    assert {**one.summary, "run_id": "", "budget": None} == {**other.summary, "run_id": "", "budget": None}


def test_a_budget_that_is_never_reached_changes_nothing(room: Any) -> None:
    free = room.evaluate(topologies=TOPOLOGIES, limit=6)
    wide = room.evaluate(topologies=TOPOLOGIES, limit=6, budget=Budget(tokens=10**6, flops=1e15, bytes=10**6, seconds=1e3))
    same(free, wide)
    assert "budget" not in free.summary and wide.summary["budget"] == {"tokens": 10**6, "flops": 1e15, "bytes": 10**6, "seconds": 1e3}
    assert all(arm["n_over_budget"] == 0 for arm in wide.summary["arms"].values())


@pytest.mark.parametrize("kind", ["tokens", "seconds"])
def test_samples_say_that_they_were_stopped_and_are_scored_like_any_other(room: Any, kind: str) -> None:
    free = samples(room.evaluate(topologies=TOPOLOGIES, limit=6).folder)

    def spent(sample: dict[str, Any]) -> float:
        used = sample["usage"]
        return {"tokens": used["tokens_in"] + used["tokens_out"], "flops": used["flops"], "bytes": used["wire_bytes"], "seconds": used["latency_s"]}[kind]

    most = sorted(spent(s) for (arm, _), s in free.items() if arm == "debate(rounds=2)")[3] * 0.7
    limit = Budget(**{kind: most if kind in ("flops", "seconds") else int(most)})
    report = room.evaluate(topologies=TOPOLOGIES, limit=6, budget=limit)
    found = samples(report.folder)
    assert len(found) == 6 * len(report.summary["arms"]) and report.n_failed == 0
    debate = [s for (arm, _), s in found.items() if arm == "debate(rounds=2)"]
    assert {s["status"] for s in debate} == {"over budget"} and report.summary["arms"]["debate(rounds=2)"]["n_over_budget"] == 6
    for (arm, task), sample in found.items():
        assert spent(sample) <= most * (1 + 1e-5)  # rounded to six digits there
        assert (sample["status"] == "ok") == (sample["error"] is None) and sample["answer"] is not None
        assert sample["correct"] == (sample["answer"] == sample["expected"])
        if sample["status"] == "ok" and arm in ("ann", "bob", "cid", "majority"):
            assert sample == free[arm, task]
    for name, arm in report.summary["arms"].items():
        assert arm["n_over_budget"] == sum(s["status"] == "over budget" for (own, _), s in found.items() if own == name)
    if kind == "tokens":  # what other tools are told: answered, and no error
        log = to_inspect(report.folder, ["debate(rounds=2)"])["debate(rounds=2)"]
        assert log["results"]["completed_samples"] == 6 and not any("error" in sample for sample in log["samples"])
        assert [sample["metadata"]["over_budget"] for sample in log["samples"]] == [found["debate(rounds=2)", s["id"]]["error"] for s in log["samples"]]
    page = (report.folder / "report.html").read_text()
    assert "over budget" in page and "What failed" not in page and "over budget" in str(report)
    if report.summary["best_topology"]["arm"] == "debate(rounds=2)":
        assert "6 stopped by the budget" in report.sentence


def test_one_arm_may_have_a_budget_of_its_own(room: Any) -> None:
    room.suite("tight", dev=6, test=6, topologies="[debate, {debate: {rounds: 1, budget: {bytes: 150}}}]")
    report = room.evaluate("tight")
    whole, short = (report.summary["arms"][name] for name in ("debate", "debate(rounds=1, budget=150 bytes)"))
    assert whole["n_over_budget"] == 0 and whole["wire_bytes"] > 150 >= short["wire_bytes"] and short["n_over_budget"] == 6
    assert report.summary["learned"]["debate(rounds=1, budget=150 bytes)"]["budget"] == {"bytes": 150}
    assert json.loads((report.folder / "config.json").read_text())["topologies"][1] == {"debate": {"rounds": 1, "budget": {"bytes": 150}}}
    with pytest.raises(UserError, match="no parameter of topology 'debate' named 'budget.bites'"):
        room.evaluate("tight", topologies=[{"debate": {"budget": {"bites": 3}}}])


def test_a_stopped_run_goes_on_under_its_budget_and_its_answers_serve_any_other(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SLICE", 3)
    tight = Budget(bytes=160, tokens=90)
    whole = room.evaluate(topologies=TOPOLOGIES, limit=8, budget=tight)
    path = room.root / "logs" / "killed"
    room.batches, room.stop_at = 0, room.batches - 5  # the last three find out how likely the right answers are
    with pytest.raises(KeyboardInterrupt):
        room.evaluate(topologies=TOPOLOGIES, limit=8, budget=tight, path=path)
    room.stop_at = None
    assert 0 < len(samples(path)) < len(samples(whole.folder)) and any(s["status"] == "over budget" for s in samples(path).values())
    same(room.evaluate(topologies=TOPOLOGIES, limit=8, budget=tight, path=path, resume=True), whole)
    with pytest.raises(UserError, match="budget was {'tokens': 90, 'bytes': 160} and is None"):
        room.evaluate(topologies=TOPOLOGIES, limit=8, path=whole.folder, resume=True)
    free = room.evaluate(topologies=["majority"], limit=8)
    room.batches = 0
    room.evaluate(topologies=["majority"], limit=8, budget=Budget(bytes=60), reuse=[free.folder])
    assert room.batches == 0  # other limits ask nothing new


def test_from_the_command_line(room: Any, aiflow: Any) -> None:
    ask = ("eval", "quiz", "--limit", "6", "--topology", "majority", "--runtime", "inline", "--json", "--display", "none")
    code, out, _ = aiflow(*ask, "--max-bytes", "60", "--max-tokens-total", "500", "--max-flops", "1e9", "--max-seconds", "2.5")
    said = json.loads(out)
    assert code == 0 and said["budget"] == {"tokens": 500, "flops": 1e9, "bytes": 60, "seconds": 2.5}
    assert said["arms"]["majority"]["n_over_budget"] == 6 and said["arms"]["majority"]["wire_bytes"] <= 60
    again = json.loads(aiflow("eval", "--config", said["folder"], "--runtime", "inline", "--json")[1])
    assert again["budget"] == said["budget"] and again["arms"] == said["arms"]
    code, _, err = aiflow("eval", "--resume", said["folder"], "--max-bytes", "70", "--runtime", "inline")
    assert code == 2 and "was begun with other settings: budget was" in err
    code, out, err = aiflow("run", "alpha 1000", "--team", "trio", "--topology", "majority", "--max-bytes", "60", "--json")
    one = json.loads(out)
    assert (code, err, one["status"]) == (0, "", "over budget") and one["usage"]["wire_bytes"] <= 60 and "are left" in one["error"]
    assert one["answer"] == room.truth("alpha 1000")  # of ann, who is at home
    code, out, _ = aiflow("run", "bravo 1001", "--team", "trio", "--topology", "single", "-T", "member=bob", "--max-seconds", "0.000001")
    assert code == 0 and "\nno answer   after " in out and "over budget: 1e-06 seconds: the time is up" in out
    assert aiflow(*ask, "--max-bytes", "-1")[0] == 2
