"""Killed at random moments and resumed each time, an evaluation ends as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aiflow_agents.bench import resume
from aiflow_agents.bench.resume import bench_resume
from aiflow_agents.cli.main import main
from aiflow_agents.errors import AIFlowError
from tests.conftest import make_family

SUITE = """\
team: family
skills: [add, sort]
tasks: {dev: 24, test: 24}
topologies: [majority, feature-relay, exit-cascade: {thresholds: [0.5, 0.5]}]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny family that hands over hidden states, whose members introduce themselves once a run."""
    monkeypatch.chdir(tmp_path)
    make_family(tmp_path / "agents" / "models" / "bud", layers=6, exits=(1, 3, 5))
    places = ("leaf", "device", 1), ("bough", "edge", 3), ("trunk", "cloud", 5)
    members = "\n".join(f"  {name}: {{model: bud, tier: {tier}, exit: {e}, max_tokens: 4}}" for name, tier, e in places)
    (tmp_path / "agents" / "family.yaml").write_text(f"network: home-wifi\nmembers:\n{members}\n")
    (tmp_path / "evals" / "small").mkdir(parents=True)
    (tmp_path / "evals" / "small" / "eval.yaml").write_text(SUITE)
    return tmp_path


@pytest.mark.slow
def test_ten_kills_leave_no_mark(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["bench", "resume", "small", "--limit", "24", "--display", "none", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["passed"] and found["equal"] == {"samples.jsonl": True, "trace.jsonl": True, "summary.json": True}
    assert len(found["kills"]) >= 7  # one can come too late, where the run ends before a busy machine sees the moment
    stages = " ".join(kill["stage"] for kill in found["kills"])
    assert "on dev" in stages and "on test" in stages and any(kill["torn"] for kill in found["kills"])


def test_moments_are_spread_over_the_run_and_follow_from_the_seed() -> None:
    grown = [(1 + i / 100, {**dict.fromkeys(resume.GROWING, 0), "calls.sqlite": 100 * i, "samples.jsonl": 50 * max(0, i - 500)}) for i in range(1001)]
    drawn = [resume._moments(grown, 10, Random(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for moments in drawn:
        assert len(moments) == 10 and sum(one.seconds is not None for one in moments) == 2 and sum(one.tear is not None for one in moments) == 4
        samples = [one.size for one in moments if one.file == "samples.jsonl"]
        assert samples == sorted(samples) and all(0 < size <= 25_000 for size in samples)
        whole = [one.size for one in moments if one.file == "" and one.seconds is None]
        assert whole == sorted(whole) and max(whole) > 3 * min(whole)


def test_a_line_that_was_written_last_is_cut(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert not resume._tear(tmp_path, 0.5)
    (run / "trace.jsonl").write_text("first\nsecond\n")
    (run / "samples.jsonl").write_text("one\n0123456789\n")
    import os

    os.utime(run / "trace.jsonl", ns=(1, 1))
    assert resume._tear(tmp_path, 0.5) and (run / "samples.jsonl").read_text() == "one\n01234"
    assert (run / "trace.jsonl").read_text() == "first\nsecond\n"


def test_what_differs_is_named_and_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, score in (("one", 1), ("other", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.jsonl").write_text('{"a": 1}\n{"b": 2}\n' if score else '{"b": 2}\n{"a": 1}\n')
        (tmp_path / name / "trace.jsonl").write_text(f"{score}\n")
        (tmp_path / name / "summary.json").write_text(json.dumps({"run_id": name, "seed": 0}))
    equal = resume.same(tmp_path / "one", tmp_path / "other")
    assert equal == {"samples.jsonl": True, "trace.jsonl": False, "summary.json": True}
    told: dict[str, Any] = {"suite": "s", "runtime": "inline", "samples": 2, "equal": equal, "passed": False, "kills": []}
    monkeypatch.setattr(resume, "bench_resume", lambda *_, **__: told)
    assert main(["bench", "resume", "--display", "none"]) == 1 and "trace.jsonl DIFFERS" in capsys.readouterr().out


def test_a_run_that_fails_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AIFlowError, match="ended with exit code 2"):
        bench_resume("nowhere")
