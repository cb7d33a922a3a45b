"""`aiflow score`: marks anew, loses nothing, and says what changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.cli import main as door
from aiflow_agents.evals import rescore as module
from aiflow_agents.evals.rescore import rescore
from aiflow_agents.evals.run_folder import RunFolder, read_samples


@pytest.fixture
def run(room: Any) -> Path:
    """A finished run in which one member says numbers with a zero too many behind the point."""
    truth = room.truth
    room.say["bee"] = lambda request: (f"{truth(request.messages[0].content)}.0", 0.8)
    room.suite("sums", dev=12, test=30, topologies="[majority, weighted]")
    return room.evaluate("sums", repeats=2).folder


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("samples.jsonl", "summary.json", "config.json")}


def test_the_same_scorer_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    assert door.main(["score", str(run)]) == 0
    assert "marked by exact: 0 of " in capsys.readouterr().out
    after = files(run)
    assert after["samples.jsonl"] == before["samples.jsonl"]
    was, now = (json.loads(each["summary.json"]) for each in (before, after))
    assert now == was | {"scorer": "exact"}  # the whole of it, to the last digit of every interval


def test_another_scorer_marks_anew_and_says_what_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_samples(run)
    old = (run / "samples.jsonl").read_bytes()
    assert door.main(["score", str(run), "--scorer", "number", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["arms"]["bob"] == {"before": 0.0, "after": 1.0, "changed": 60} and told["arms"]["ann"]["changed"] == 0
    assert told["arms"]["oracle"]["after"] == 1.0 and (run / "samples.jsonl").read_bytes().startswith(old)
    after = read_samples(run)
    assert set(after) == set(before) and all({**after[key], "score": 0, "correct": 0} == {**before[key], "score": 0, "correct": 0} for key in before if key[0] != "oracle")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["scorer"] == "number" and summary["arms"]["bob"]["accuracy"] == 1.0
    assert summary["best_member"]["arm"] != "bob"  # chosen on dev, with the marks of then
    row = next(v for v in summary["verdicts"] if v["arm"] == "majority" and v["against"] == "members")
    scores = {arm: sum(after[arm, task, r]["score"] for a, task, r in after if a == arm) for arm in ("majority", summary["best_member"]["arm"])}
    assert row["delta"] == pytest.approx((scores["majority"] - scores[summary["best_member"]["arm"]]) / 60)
    assert "bob" in (run / "report.html").read_text()
    assert door.main(["score", str(run)]) == 0  # and back, by what the suite says
    assert read_samples(run) == before and json.loads((run / "summary.json").read_text())["arms"]["bob"]["accuracy"] == 0.0


def test_what_the_suite_says_now(run: Path, room: Any, capsys: pytest.CaptureFixture[str]) -> None:
    room.suite("sums", dev=12, test=30, topologies="[majority, weighted]", more="scorer: scorer.py\n")
    (room.root / "evals" / "sums" / "scorer.py").write_text("def score(answer, task):\n    return 0.5\n")
    assert door.main(["score", str(run)]) == 0
    out = capsys.readouterr().out
    assert "marked by scorer.py" in out and "50.0 %" in out and "\nbob" in out
    assert {arm["accuracy"] for arm in json.loads((run / "summary.json").read_text())["arms"].values()} == {0.5}


def test_a_kill_between_marks_and_summary_leaves_a_run_that_can_be_scored_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(run)
    with monkeypatch.context() as broken:
        broken.setattr(RunFolder, "summarise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rescore(run, "number")
    assert (run / "summary.json").read_bytes() == before["summary.json"]
    with (run / "samples.jsonl").open("ab") as file:
        file.write(b'{"arm": "bob", "ta')  # torn in mid-write
    done = rescore(run, "number")
    assert done.after["arms"]["bob"]["accuracy"] == 1.0 and read_samples(run)["bob", "test-0", 0]["score"] == 1.0


@pytest.mark.parametrize(
    ("break_it", "arguments", "words"),
    [
        (lambda run: None, ["--scorer", "numbr"], "no scorer named 'numbr'; did you mean number?"),
        (lambda run: None, ["--scorer", "none.py"], "none.py: no such file"),
        (lambda run: (run / "summary.json").unlink(), [], "is not finished: it has no summary.json; go on with it: aiflow eval --resume"),
        (lambda run: (run / "summary.json").write_text("{"), [], "summary.json is damaged"),
        (lambda run: (run / "config.json").unlink(), [], "is no run folder: it has no config.json"),
        (lambda run: (run / "samples.jsonl").write_text(""), [], "has no sample of any arm: finish it first"),
        (lambda run: (run / "samples.jsonl").write_text("{\n"), [], "samples.jsonl:1: this line is damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line(run: Path, break_it: Any, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    break_it(run)
    assert door.main(["score", str(run), *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_not_while_another_process_writes(run: Path) -> None:
    with RunFolder(run, json.loads((run / "config.json").read_text()), resume=True), pytest.raises(module.UserError, match="is being written by another process"):
        rescore(run)
