"""Public benchmarks by their own columns. The rows in data/ were made for these tests; no data set is quoted."""

from __future__ import annotations

import csv
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import ConfigError, UserError
from aiflow_agents.evals.source import open_source
from aiflow_agents.evals.suite import Suite, load_suites

DATA = Path(__file__).parent / "data"
SUITES = {"gsm8k": (5, 7), "math-500": (5, 9), "mmlu": (3, 7), "mmlu-pro": (3, 9), "arc": (3, 8)}  # dev, test


def suite(name: str, data: Path | str | None = None) -> Suite:
    return load_suites(name)[0].reading(str(data or DATA / name))


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", SUITES)
def test_tasks_of_a_folder(name: str) -> None:
    one = suite(name)
    dev, test = one.tasks("dev", 0), one.tasks("test", 0)
    assert (len(dev), len(test)) == SUITES[name]
    assert not {task.question for task in dev} & {task.question for task in test}
    assert sorted(one.tasks("test", 1), key=lambda task: task.id) == sorted(test, key=lambda task: task.id)  # a seed draws the order, not the split
    assert any(one.tasks("test", seed) != test for seed in range(1, 4)) and one.tasks("test", 0, 4) == test[:4]
    assert all(one.scorer(task.expected or "", task) == 1 for task in dev + test)


def test_prompts_and_what_is_expected() -> None:
    by_id = {name: {task.id: task for task in suite(name).tasks("test", 0)} for name in SUITES}
    gsm8k = next(task for task in suite("gsm8k").tasks("dev", 0) if "36 weeks" in task.question)
    assert gsm8k.expected == "1260" and gsm8k.question.startswith("Q: Nadia") and gsm8k.question.endswith("?\nA: Let's think step by step.")
    coins = next(task for task in (*by_id["math-500"].values(), *suite("math-500").tasks("dev", 0)) if "coin" in task.question)
    assert coins.question == "Problem:\nA fair coin is thrown twice. What is the probability of two heads?\n\nSolution:"
    assert (coins.expected, coins.tags) == (r"\frac14", ("Counting & Probability", "level 2"))
    assert by_id["mmlu"]["test-00000"].question == (
        "The following are multiple choice questions (with answers) about elementary mathematics.\n\nWhich of these is a prime?\nA. 9\nB. 15\nC. 17\nD. 21\nAnswer:"
    )
    assert (by_id["mmlu"]["test-00000"].expected, by_id["mmlu"]["test-00000"].tags) == ("C", ("elementary_mathematics",))
    assert "Options:\nA. 46\nB. 42\n" in by_id["mmlu-pro"]["100"].question and by_id["mmlu-pro"]["100"].expected == "D"
    ice = by_id["arc"]["OWN_001"]  # labelled by numbers
    assert ice.expected == "A" and "\nA. melted\nB. frozen\n" in ice.question and "one of A, B, C or D." in ice.question
    assert "three candidate answers (A, B and C)" in by_id["arc"]["OWN_002"].question


@pytest.mark.parametrize("name", SUITES)
def test_the_same_rows_in_any_kind_of_file(name: str, tmp_path: Path) -> None:
    [file] = [file for file in (DATA / name).rglob("test.jsonl") if "Easy" not in str(file)]
    items = rows(file)
    wanted = suite(name, file).tasks("test", 0)
    (tmp_path / "rows.json").write_text(json.dumps(items))
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(items[0]))
        writer.writeheader()
        writer.writerows({key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()} for row in items)
    for kind in ("json", "csv"):
        assert suite(name, tmp_path / f"rows.{kind}").tasks("test", 0) == wanted


@pytest.mark.parametrize("name", SUITES)
def test_parquet_as_the_hub_keeps_it(name: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'aiflow-agents[data]'")
    from pyarrow import parquet

    for file in (DATA / name).rglob("*.jsonl"):
        target = (tmp_path / file.relative_to(DATA / name)).with_name(f"{file.stem}-00000-of-00001.parquet")
        target.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows(file)), target)
    for split in ("dev", "test"):
        assert suite(name, tmp_path).tasks(split, 2) == suite(name).tasks(split, 2)


def test_one_file_serves_both_splits_and_a_question_stays_where_it_is(tmp_path: Path) -> None:
    items = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(200)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "fewer.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items[50:]))
    dev, test = ({task.question for task in suite("math-500", tmp_path / "m.jsonl").tasks(split, 0)} for split in ("dev", "test"))
    assert len(dev) + len(test) == 200 and not dev & test and 25 <= len(dev) <= 55  # a fifth of them, by binomial chance
    assert {task.question for task in suite("math-500", tmp_path / "fewer.jsonl").tasks("dev", 5)} <= dev


def test_several_configurations_in_one_folder(tmp_path: Path) -> None:
    assert len(suite("arc", DATA / "arc").tasks("test", 0)) == 8  # the one that the suite names
    assert {task.id for task in suite("arc", DATA / "arc" / "ARC-Easy").tasks("test", 0)} <= {"OWN_000", "OWN_001"}
    shutil.copytree(DATA / "arc" / "ARC-Easy", tmp_path / "one")
    shutil.copytree(DATA / "arc" / "ARC-Easy", tmp_path / "two")
    with pytest.raises(UserError, match=r"has test files in several folders \(one, two\)"):
        suite("arc", tmp_path).tasks("test", 0)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("gsm8k", {"question": "q"}, "answer: missing; the columns of gsm8k are question, answer"),
        ("gsm8k", {"question": "q", "answer": "42"}, "answer: expected a solution that ends in #### and the number"),
        ("gsm8k", {"question": "q", "answer": "#### "}, "answer: expected a solution"),
        ("math-500", {"problem": "p", "answer": ""}, "answer: String should have at least 1 character"),
        ("mmlu", {"question": "q", "choices": ["a", "b", "c"], "answer": 0}, "choices: List should have at least 4 items after"),
        ("mmlu", {"question": "q", "choices": list("abcd"), "answer": 4}, "answer: Input should be less than or equal to 3"),
        ("mmlu", {"question": "q", "choices": "abcd", "answer": 4}, "choices: Input should be a valid list"),
        ("mmlu-pro", {"question": "q", "options": ["a", "b"], "answer": "C"}, "answer: C is not among 2 options"),
        ("arc", {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}, "answerKey: C is not among the labels A, B"),
        ("arc", {"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}, "choices: 2 texts have 1 labels"),
        ("arc", "[1]", "expected an object"),
        ("arc", '{"a": ', "not valid JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_line_and_column(name: str, row: Any, words: str, tmp_path: Path) -> None:
    [good] = [rows(file)[0] for file in (DATA / name).rglob("test.jsonl") if "Easy" not in str(file)]
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(good)}\n\n{row if isinstance(row, str) else json.dumps(row)}\n")
    with pytest.raises(ConfigError) as caught:
        suite(name, tmp_path / "t.jsonl").tasks("test", 0)
    assert f"{tmp_path / 't.jsonl'}:3: {words}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("t.json", "[{}, 3]", "row 2: expected an object"), ("t.json", "[{]", "t.json:1: not valid JSON"), ("t.csv", "problem,answer\n1+1,2\nonly\n", "t.csv:3: this row has not the 2 columns"),
        ("t.csv", 'problem,answer\n"1+1",2\n"two\nlines",\n', "t.csv:3: answer: "), ("t.txt", "x", "t.txt: a data file is one of .jsonl, .json, .csv, .parquet"),
        ("t.jsonl", "", "no questions for test"), ("t.json", '[{"problem": "p"}]', "row 1: answer: missing"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(file: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError) as caught:
        suite("math-500", tmp_path / file).tasks("test", 0)
    assert words in str(caught.value) and str(tmp_path) in str(caught.value) + str(tmp_path) * (not text) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no data files whose names say train, validation, dev or test"):
        suite("arc", tmp_path).tasks("test", 0)
    (tmp_path / "a.jsonl").rename(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match="no test split, only train"):
        suite("arc", tmp_path).tasks("test", 0)
    with pytest.raises(UserError, match=r"there is no file or folder .*/gone\.jsonl; give one"):
        suite("arc", tmp_path / "gone.jsonl").tasks("test", 0)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no file or folder 'openai/gsm8k:main', and .*; .*give a local file or folder with the columns of openai/gsm8k: --data PATH") as caught:
        load_suites("gsm8k")[0].tasks("test", 0)
    assert "\n" not in str(caught.value)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` gives, by a stand-in that keeps its interface: no test reaches the hub."""
    import sys
    from types import SimpleNamespace

    asked: list[tuple[str, str | None]] = []

    def load(name: str, configuration: str | None) -> dict[str, Any]:
        asked.append((name, configuration))
        if name == "who/knows":
            raise ConnectionError("no such\nthing")
        return {"train": rows(DATA / "gsm8k/main/train.jsonl"), "test": rows(DATA / "gsm8k/main/test.jsonl"), "auxiliary_train": []}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_suites("gsm8k")[0].tasks("test", 0) == suite("gsm8k").tasks("test", 0) and asked == [("openai/gsm8k", "main")]
    assert set(open_source("openai/gsm8k", Path())) == {"train", "test"}
    with pytest.raises(UserError, match=r"^who/knows cannot be loaded from the Hugging Face hub \(ConnectionError: no such\); give a local file"):
        open_source("who/knows", Path())


def test_only_suites_that_read_data_take_other_data() -> None:
    with pytest.raises(UserError, match="suite 'specialists' draws its questions from skills and reads no data"):
        load_suites("specialists")[0].reading("x")


def test_a_benchmark_is_run_from_a_local_copy(room: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Members reason in many words and agree in none of them: votes and marks are of the numbers found there, which are what travels."""
    from aiflow_agents.cli import main as door

    truth = {task.question: task.expected for split in ("dev", "test") for task in suite("gsm8k").tasks(split, 0)}
    seen: set[int] = set()

    def solver(name: str, wrong: str) -> Any:
        def say(request: Any) -> tuple[str, float]:
            seen.add(request.max_tokens)
            right = truth[request.messages[0].content] if wrong not in request.messages[0].content else "7"
            return f"{name} thinks of 3, and of 14 more.\nThe answer is {right}.", 0.9

        return say

    room.say.update(ant=solver("ant", "crate"), bee=solver("bee", "clock"), cat=solver("cat", "tank"))
    code = door.main(["eval", "gsm8k", "--data", str(DATA / "gsm8k"), "--team", "trio", "--topology", "majority", "--runtime", "inline", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert code == 0 and summary["n_tasks"] == 7 and summary["n_dev"] == 5 and seen == {512}
    accuracy = {name: arm["accuracy"] for name, arm in summary["arms"].items()}
    assert accuracy["ann"] == accuracy["bob"] == accuracy["cid"] == pytest.approx(6 / 7) and accuracy["majority"] == 1
    samples = [json.loads(line) for line in (Path(summary["folder"]) / "samples.jsonl").read_text().splitlines()]
    assert {sample["answer"] for sample in samples if sample["arm"] == "majority"} == {truth[sample["question"]] for sample in samples}
    assert json.loads((Path(summary["folder"]) / "config.json").read_text())["data"] == str(DATA / "gsm8k")
    assert door.main(["eval", "--resume", summary["folder"], "--runtime", "inline"]) == 0


def test_where_no_answer_is_found_there_is_none(stage: Any) -> None:
    from aiflow_agents.runtime.extraction import number

    team = stage.team(ann=("tower", lambda request: "so it is 12, or no: 13"), bob=("phone", lambda request: "who knows")).extracting(number)

    async def run(team: Any) -> Any:
        ann, bob = await team.ask("q")
        assert (bob.answer, bob.text) == ("", "who knows")
        return await ann.as_("answer").to(team.home)

    result = stage.do(team, run)
    assert (result.answer, result.text) == ("13", "13") and result.error is None  # the number alone has travelled
