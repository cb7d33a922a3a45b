"""The controls again and again: what is counted, what passes, and that a bench which was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binom

from aiflow_agents.bench.controls import bench_controls
from aiflow_agents.cli.main import main


@pytest.fixture
def rooms(room: Any) -> Any:
    """One room in which nothing can be won, and one in which a team is better: the judge must not be trusted with that one as a control."""
    room.suite("same", dev=24, test=45, team="copies", topologies="[single, majority, debate]")
    room.suite("won", dev=24, test=45, topologies="[majority, router]")
    for name, suites in (("null", "[same]"), ("both", "[same, won]")):
        folder = room.root / "evals" / name
        folder.mkdir()
        (folder / "eval.yaml").write_text(f"suites: {suites}\n")
    return room


def bench(rooms: Any, suite: str = "null", **options: Any) -> Any:
    settings = {"seeds": 3, "dev": 24, "tasks": 45, "folder": Path("kept"), "hosts": rooms.hosts()} | options
    return bench_controls(suite, **settings)


def test_a_room_passes_where_beats_is_no_more_frequent_than_chance_allows(rooms: Any) -> None:
    found = bench(rooms, "both")
    same, won = found["rooms"]
    assert (same["room"], same["seeds"], same["beats"], same["passed"]) == ("same", 3, 0, True)
    assert same["of"] == {"single": 0, "majority": 0, "debate": 0} and same["p"] == 1
    assert won["of"]["router"] == won["beats"] == 3 and won["p"] == pytest.approx(binom.sf(2, 3, 0.05)) and not won["passed"]
    assert not found["passed"] and won["best_member"] < 0.7


def test_what_is_judged_is_what_an_evaluation_says(rooms: Any) -> None:
    bench(rooms, "both", seeds=1, first_seed=5)
    lines = {line["arm"]: line for line in map(json.loads, Path("kept", "samples.jsonl").read_text().splitlines())}
    for suite in ("same", "won"):
        summary = rooms.evaluate(suite, seed=5).summary
        rows = {row["arm"]: {key: row[key] for key in ("says", "delta", "p_holm")} for row in summary["verdicts"] if row["against"] == "members"}
        assert lines[suite]["verdicts"] == rows and lines[suite]["best_member"] == summary["arms"][summary["best_member"]["arm"]]["accuracy"]


def test_stopped_it_goes_on_and_other_settings_are_refused(rooms: Any, capsys: pytest.CaptureFixture[str]) -> None:
    whole = bench(rooms, "both", folder=Path("whole"))
    asked = rooms.batches
    rooms.batches, rooms.stop_at = 0, asked // 2
    with pytest.raises(KeyboardInterrupt):
        bench(rooms, "both")
    rooms.stop_at = None
    done = len(Path("kept", "samples.jsonl").read_text().splitlines())
    assert bench(rooms, "both") == whole and rooms.batches <= asked and done < 6 == len(Path("kept", "samples.jsonl").read_text().splitlines())
    before = rooms.batches
    assert bench(rooms, "both") == whole and rooms.batches == before
    more = bench(rooms, "both", seeds=4)  # more seeds are the same bench
    assert [row["seeds"] for row in more["rooms"]] == [4, 4]
    assert main(["bench", "controls", "both", "--tasks", "30", "--dev", "24", "--out", "kept", "--display", "none"]) == 2
    assert "kept holds results of other settings: tasks was 45 and is 30" in capsys.readouterr().err


def test_the_table_and_the_exit_code(rooms: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "controls", "null", "--seeds", "2", "--dev", "24", "--tasks", "45", "--display", "none"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "same" in out and "0 of 2" in out and "seeds 1000 to 1001" in out and Path("logs", "controls", "samples.jsonl").is_file()
    assert main(["bench", "controls", "won", "--seeds", "2", "--dev", "24", "--tasks", "45", "--out", "won", "--display", "none", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rooms"][0]["beats"] == 2
