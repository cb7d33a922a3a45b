"""`aiflow bench`: what it prints, and when it says that something is wrong."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from aiflow_agents.bench import engine, overhead
from aiflow_agents.cli.main import main


def test_the_list_of_benches_is_not_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_the_engine_beside_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["bench", "engine", "tally", "--prompts", "6", "--batch", "4", "--repeats", "1", "--no-memory", "--display", "none"]
    assert main([*wanted, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["models"][0]["batches"]
    assert found["models"][0]["model"] == "tally" and row["batch"] == 4 and row["prompts"] == 6 and row["identical"] + row["ties"] == 6
    assert found["suite"] == "specialists" and found["seed"] == 0 and "torch" in found["machine"]["packages"]
    assert main(wanted) == 0
    head, line, _, how, where = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["model", "batch"] and line.split()[:2] == ["tally", "4"] and "  6 of 6" in line
    assert how.startswith("float32, greedy") and found["machine"]["cpu"] in where


def test_another_text_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = engine._our_side

    def wrong(*args: Any, **options: Any) -> Any:
        run = real(*args, **options)
        return lambda prompts: [answer[::-1] for answer in run(prompts)]

    monkeypatch.setattr(engine, "_our_side", wrong)
    assert main(["bench", "engine", "tally", "--prompts", "4", "--batch", "4", "--repeats", "1", "--no-memory", "--display", "none"]) == 1
    said = capsys.readouterr()
    assert "4 of 4" not in said.out and "0 of 4" in said.out
    assert said.err.startswith("aiflow: tally at batch 4: another token at 0, where two logits lie ") and said.err.count("\n") == 3


def test_what_an_evaluation_adds(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["bench", "overhead", "controls-copies", "--limit", "2", "--runtime", "inline", "--repeats", "1", "--display", "none"]
    assert main([*wanted, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found["runtimes"]
    assert one["runtime"] == "inline" and one["n_test"] == 2 and one["wall_ratio"] > 1 and len(one["rounds"]) == 1 and found["machine"]["cores"]
    assert main(wanted) == 0
    _, line, _, said, where = capsys.readouterr().out.splitlines()
    wall_ratio, cpu_ratio = line.split()[-2:]
    assert line.split()[:2] == ["inline", "1"] and said.startswith(f"inline: {wall_ratio} ({cpu_ratio} in CPU seconds); {one['calls']} calls in ")
    assert said.endswith(f"{one['n_dev']} dev and 2 test tasks of controls-copies") and found["machine"]["cpu"] in where


def test_both_runtimes_are_measured_and_ray_counts_per_core(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(suite: str, *, runtime: str, limit: int, seed: int, repeats: int, watch: Any) -> dict[str, Any]:
        asked.append((suite, runtime, limit, seed, repeats))
        side = {"evaluation": {"wall_s": 9.0, "cpu_s": 5.0}, "alone": {"wall_s": 6.0, "cpu_s": 4.0}}
        ratios = {"wall_ratio": 1.5, "cpu_ratio": 1.25}
        counts = {"calls": 1234, "batches": 5, "n_dev": 6, "n_test": 7, "hosts": 2}
        return {"suite": suite, "runtime": runtime, "rounds": [side | ratios], **ratios, **counts}

    asked: list[Any] = []
    monkeypatch.setattr(overhead, "bench_overhead", measured)
    assert main(["bench", "overhead", "--limit", "7", "--seed", "3", "--repeats", "1", "--display", "none"]) == 0
    assert asked == [("specialists", "inline", 7, 3, 1), ("specialists", "ray", 7, 3, 1)]
    out = capsys.readouterr().out
    assert "\nray: 1.25x per core used, 1.50x on the clock over 2 hosts; 1,234 calls in 5 batches, 6 dev and 7 test tasks of specialists\n" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["engine", "taly"], "no model named 'taly'; did you mean tally?"),
        (["engine", "--suite", "controls"], "'controls' is a group of suites: give one of controls-copies"),
        (["engine", "--batch", "0"], "Invalid value for '--batch'"),
        (["engine", "--suite", "specialist"], "no suite named 'specialist'; did you mean specialists?"),
        (["overhead", "controls"], "'controls' is a group of suites: evaluate controls-copies, "),
        (["overhead", "specialist"], "no suite named 'specialist'; did you mean specialists?"),
        (["overhead", "--runtime", "rays"], "'rays' is not one of"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and captured.err.count("\n") == 1


def test_the_judge_on_trial_passes_or_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from aiflow_agents.bench import judge, worlds
    from aiflow_agents.evals import statistics

    far = worlds.World("far", 200, 0.4, (0.6, 0.4), (0.0,) * 9)
    monkeypatch.setattr(judge, "worlds", lambda: [far])
    monkeypatch.setattr(judge, "power_worlds", lambda: [worlds.World("one", 40, 0.4, (0.6,), (0.2,), rivals=0)])
    assert main(["bench", "judge", "--runs", "3000", "--worlds", "--display", "none"]) == 0
    out = capsys.readouterr().out
    assert "MISSED" not in out and "passed  power: at most" in out and "\nfar   " in out
    monkeypatch.setattr(statistics, "iut", lambda p: np.asarray(p).min(axis=-1))  # content with being better than any member
    assert main(["bench", "judge", "--runs", "1000", "--json", "--display", "none"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["criteria"] if not one["passed"]][0] == "false `beats`, any topology"
