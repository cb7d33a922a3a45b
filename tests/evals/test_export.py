"""Runs for other tools."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiflow_agents.cli import main as door
from aiflow_agents.errors import UserError
from aiflow_agents.evals.export import COLUMNS, to_csv, to_inspect
from aiflow_agents.evals.run_folder import read_samples
from aiflow_agents.models.protocol import CallError


@pytest.fixture
def run(room: Any) -> Path:
    """Thirty tasks twice over; one member fails on one of them, and one says what a spreadsheet would run."""
    def cat(request: Any) -> Any:
        question = request.messages[0].content
        return CallError("failed", "lost, \"quoted\"") if question.endswith("1003") else ('=1+1\n"two", lines', 0.5)

    room.say["cat"] = cat
    room.suite("sums", dev=12, test=30, topologies="[majority, weighted]")
    return room.evaluate("sums", repeats=2).folder


def test_the_table_has_what_the_samples_have(run: Path) -> None:
    text = to_csv(run)
    table, samples, summary = list(csv.DictReader(io.StringIO(text))), read_samples(run), json.loads((run / "summary.json").read_text())
    assert len(table) == len(samples) and list(table[0]) == list(COLUMNS)
    for row in table:
        sample = samples[row["arm"], row["task_id"], int(row["repeat"])]
        assert float(row["score"]) == sample["score"] and (row["correct"] == "true") == sample["correct"] and row["status"] == sample["status"]
        assert {key: float(row[key]) for key in sample["usage"]} == sample["usage"]
        assert row["question"] == sample["question"] and row["tags"] == "|".join(sample["tags"]) and row["error"] == (sample["error"] or "")
        assert row["answer"] == ("'" + sample["answer"] if (sample["answer"] or "").startswith("=") else sample["answer"] or "")
    for name, arm in summary["arms"].items():
        rows = [row for row in table if row["arm"] == name]
        assert {row["kind"] for row in rows} == {arm["kind"]} and len(rows) == arm["n"]
        assert np.mean([float(row["score"]) for row in rows]) == pytest.approx(arm["accuracy"])
        assert np.mean([float(row["energy_j"]) for row in rows]) == pytest.approx(arm["energy_j"])
    assert any(row["answer"].startswith("'=1+1\n") for row in table) and any(row["status"] == "failed" for row in table)
    assert to_csv(run) == text and {row["arm"] for row in csv.DictReader(io.StringIO(to_csv(run, ["ann", "random"])))} == {"ann", "random"}


def test_logs_have_every_sample_once_with_its_mark(run: Path) -> None:
    logs, samples, summary = to_inspect(run), read_samples(run), json.loads((run / "summary.json").read_text())
    assert set(logs) == set(summary["arms"])
    for arm, log in logs.items():
        own = {(s["id"], s["epoch"] - 1): s for s in log["samples"]}
        assert len(own) == len(log["samples"]) == 60 and log["version"] == 2 and log["eval"]["config"]["epochs"] == 2
        right = {key: s["scores"]["correct"]["value"] == "C" for key, s in own.items()}
        assert right == {(task, repeat): samples[arm, task, repeat]["correct"] for _, task, repeat in samples if _ == arm}
        assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == summary["arms"][arm]["accuracy"]
        assert log["results"]["completed_samples"] == 60 - summary["arms"][arm]["n_failed"]
    assert {s["id"] for s in logs["cid"]["samples"] if "error" in s} == {"test-3"}


def test_inspect_reads_them_back(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed: pip install 'aiflow-agents[inspect]'")
    assert door.main(["export", str(run), "--to", "inspect"]) == 0
    written, samples, summary = capsys.readouterr().out.split(), read_samples(run), json.loads((run / "summary.json").read_text())
    listed = {Path(info.name.removeprefix("file://")).resolve() for info in log.list_eval_logs(str(run / "inspect"))}
    assert listed == {Path(file).resolve() for file in written} and len(listed) == len(summary["arms"])
    for file in written:
        read = log.read_eval_log(file)
        arm = read.eval.model.rsplit("/", 1)[1]
        assert (read.version, read.status, read.eval.task, read.eval.dataset.samples) == (2, "success", "sums", 30)
        assert read.results.scores[0].metrics["accuracy"].value == summary["arms"][arm]["accuracy"]
        assert read.samples and len(read.samples) == read.results.total_samples == 60
        for sample in read.samples:
            ours = samples[arm, sample.id, sample.epoch - 1]
            score = sample.scores["correct"]
            assert (score.as_str() == "C") == ours["correct"] and (score.answer or "") == (ours["answer"] or "")
            assert sample.output.completion == (ours["answer"] or "") and sample.target == ours["expected"] and sample.input == ours["question"]
            assert sample.metadata["usage"] == ours["usage"] and sample.output.usage.input_tokens == ours["usage"]["tokens_in"]
            assert (sample.error.message if sample.error else None) == ours["error"]
        log.write_eval_log(read, str(run / "again.json"))  # what inspect writes of it, it can read, too
        assert log.read_eval_log(str(run / "again.json")).results == read.results


def test_where_files_go(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["export", str(run), "--to", "csv"]) == 0 and capsys.readouterr().out.strip() == str(run / "samples.csv")
    assert (run / "samples.csv").read_text() == to_csv(run)
    assert door.main(["export", str(run), "--to", "csv", "--arm", "ann", "--out", "-"]) == 0 and capsys.readouterr().out == to_csv(run, ["ann"])
    assert door.main(["export", str(run), "--to", "csv", "--out", str(run / "new" / "t.csv")]) == 0 and (run / "new" / "t.csv").is_file()
    assert door.main(["export", str(run), "--to", "inspect", "--arm", "ann", "--out", str(run / "one.json")]) == 0
    assert json.loads((run / "one.json").read_text()) == to_inspect(run, ["ann"])["ann"]
    assert door.main(["export", str(run), "--to", "inspect", "--out", str(run / "logs")]) == 0
    assert len(list((run / "logs").glob("20*T*_sums_self-consistency@*.json"))) == 2 and not list(run.rglob("*.part"))


@pytest.mark.parametrize(
    ("break_it", "arguments", "words"),
    [
        (lambda run: None, ["--to", "csv", "--arm", "annn"], "no arm of this run named 'annn'; did you mean ann"),
        (lambda run: None, ["--to", "inspect", "--out", "x.json"], "x.json is one file and this run has"),
        (lambda run: None, ["--to", "excel"], "'excel' is not one of 'csv', 'inspect'"),
        (lambda run: (run / "summary.json").unlink(), ["--to", "csv"], "is not finished: it has no summary.json"),
        (lambda run: (run / "config.json").unlink(), ["--to", "csv"], "is no run folder"),
        (lambda run: (run / "samples.jsonl").write_text("{}\n{"), ["--to", "csv"], "samples.jsonl:1: this line is damaged"),
        (lambda run: (run / "samples.jsonl").write_text(""), ["--to", "inspect"], "has no samples; go on with it"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_line(run: Path, break_it: Any, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    break_it(run)
    assert door.main(["export", str(run), *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_reading_a_run_does_not_touch_it(run: Path) -> None:
    with (run / "samples.jsonl").open("ab") as file:
        file.write(b'{"arm": "torn')  # another process is in mid-write
    before = (run / "samples.jsonl").read_bytes()
    to_csv(run), to_inspect(run)
    assert (run / "samples.jsonl").read_bytes() == before
    with pytest.raises(UserError):
        to_csv(run.parent)
