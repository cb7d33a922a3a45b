"""Columns say what the records said."""

from __future__ import annotations

import json

from aiflow_agents.evals.report import samples as module
from aiflow_agents.evals.report.samples import DIGITS, Samples


def read(folder, records):
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps({"arm": "a", "task_id": "t", "repeat": 0} | record) + "\n" for record in records))
    return Samples.read(path)


def test_every_answer_and_score_comes_back(run):
    summary, folder = run
    samples = Samples.read(folder / "samples.jsonl")
    arms = list(summary["arms"])
    columns = samples.columns(arms, samples.scores())
    place = {task: i for i, task in enumerate(columns["tasks"]["id"])}
    n = 0
    for record in map(json.loads, (folder / "samples.jsonl").read_text().splitlines()):
        arm, task = arms.index(record["arm"]), place[record["task_id"]]
        digit, scored = columns["answered"][arm][task], columns["scored"][arm][task]
        assert (None if digit == "-" else columns["tasks"]["said"][task][DIGITS.index(digit)]) == record["answer"]
        assert scored == ("!" if record["error"] else DIGITS[60] if record["score"] else DIGITS[0])
        assert [columns["tags"][tag] for tag in columns["tasks"]["tags"][task]] == record["tags"]
        assert columns["tasks"]["question"][task] == record["question"]
        n += 1
    assert n == len(arms) * len(place) and columns["cut"] is None


def test_a_score_short_of_one_is_not_right_and_repeats_are_averaged(tmp_path):
    samples = read(tmp_path, [{"score": 0.999}, {"task_id": "u", "score": 1.0}, {"task_id": "u", "repeat": 1, "score": 0.0}, {"arm": "b", "score": 1.0}])
    columns = samples.columns(["a", "b"], samples.scores())
    assert columns["scored"] == [DIGITS[59] + DIGITS[30], DIGITS[60] + "-"] and columns["answered"] == ["--", "--"]


def test_an_answer_that_is_no_text_is_said_as_json_and_more_answers_than_digits_are_marked(tmp_path):
    samples = read(tmp_path, [{"arm": f"a{i}", "answer": {"n": i}} for i in range(len(DIGITS) + 2)])
    columns = samples.columns([f"a{i}" for i in range(len(DIGITS) + 2)], samples.scores())
    assert columns["tasks"]["said"][0][3] == '{"n": 3}' and columns["answered"][-3:] == [DIGITS[-1], "~", "~"]


def test_texts_are_cut_where_all_of_them_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TEXTS", 3000)
    samples = read(tmp_path, [{"task_id": f"t{i}", "question": "q" * 500, "answer": "a" * 500} for i in range(5)])
    columns = samples.columns(["a"], samples.scores())
    texts = [*columns["tasks"]["question"], *(text for said in columns["tasks"]["said"] for text in said)]
    assert columns["cut"] == 300 and {len(text) for text in texts} == {300} and all(text.endswith("…") for text in texts)
