"""Suites: where tasks come from, and what is said about a file that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiflow_agents.errors import AIFlowError, ConfigError, UnknownName, UserError
from aiflow_agents.evals.suite import load_suites
from aiflow_agents.skills.splits import split_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name: str, text: str, *lines: object) -> Path:
    folder = Path("evals") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.yaml").write_text(text)
    if lines:
        rows = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        (folder / "data.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def row(i: int, split: str = "test", **more: object) -> dict[str, object]:
    return {"id": i, "question": f"q{i}", "answer": f"a{i}", "split": split} | more


DATA = "team: t\ndata: data.jsonl\n"


@pytest.mark.parametrize("name", ["specialists", "same-minds", "controls-copies", "controls-saturated", "controls-nobody"])
def test_shipped_suites_give_enough_tasks_of_their_skills(name: str) -> None:
    [suite] = load_suites(name)
    dev, test = suite.tasks("dev", 1), suite.tasks("test", 1)
    assert len(dev) == suite.file.tasks.dev and len(test) == suite.file.tasks.test >= 700
    assert {task.tags[0] for task in test} == set(suite.file.skills)
    assert all(split_of(task.question) == "test" for task in test) and all(split_of(task.question) == "dev" for task in dev)
    assert len({task.id for task in dev + test}) == len({task.question for task in dev + test}) == len(dev) + len(test)
    assert suite.tasks("test", 1) == test != suite.tasks("test", 2)


def test_controls_are_a_group() -> None:
    assert [suite.name for suite in load_suites("controls")] == ["controls-copies", "controls-saturated", "controls-nobody"]


def test_a_limit_takes_the_first_tasks_and_may_ask_for_more_test_tasks() -> None:
    put("s", "team: t\nskills: [add, sort]\ntasks: {dev: 6, test: 8}\n")
    [suite] = load_suites("s")
    assert suite.tasks("test", 0, 3) == suite.tasks("test", 0)[:3]
    assert suite.tasks("dev", 0, 3) == suite.tasks("dev", 0)[:3]
    assert len(suite.tasks("test", 0, 50)) == 50
    assert len(suite.tasks("dev", 0, 50)) == 6


def test_data_from_a_file() -> None:
    put("s", DATA, row(1, tags=["x", 2]), row(2, "dev"), {"id": "3", "question": "a\u2028b\x85c", "answer": 42})
    [suite] = load_suites("s")
    one, three = suite.tasks("test", 0)
    assert (one.id, one.question, one.expected, one.tags) == ("1", "q1", "a1", ("x", "2"))
    assert (three.question, three.expected) == ("a\u2028b\x85c", "42")  # line separators inside a text do not end the line
    assert [task.id for task in suite.tasks("dev", 0)] == ["2"]


def test_clusters_are_scenes_or_a_key_of_each_line() -> None:
    put("c", DATA + "cluster: passage\n", row(1, passage=3), row(2, passage="x"))
    assert [task.cluster for task in load_suites("c")[0].tasks("test", 0)] == ["3", "x"]
    put("d", DATA + "cluster: passage\n", row(1))
    with pytest.raises(ConfigError, match="passage: every task needs 'passage', by which"):
        load_suites("d")[0].tasks("test", 0)
    scenes = "team: partial-views\nscenes: [all, at]\ncameras: [a, b, c, d]\ntasks: {dev: 2, test: 4}\n"
    put("e", scenes)
    put("f", scenes + "cluster: scene\n")
    assert [[task.cluster for task in load_suites(name)[0].tasks("test", 0)] for name in "ef"] == [[""] * 4, ["scene 0"] * 2 + ["scene 1"] * 2]
    for bad in (scenes + "cluster: kind\n", "team: specialists\nskills: [add]\ncluster: scene\n", "team: specialists\nskills: [add]\nreleases: [answer]\n"):
        put("g", bad)
        with pytest.raises(ConfigError, match="`cluster` is|`releases` says"):
            load_suites("g")


def test_kinds_of_questions_can_have_further_tags() -> None:
    put("t", "team: specialists\nskills: [add, mul]\ntags: {sums: [add], plain: [add, mul]}\n")
    assert {task.tags for task in load_suites("t")[0].tasks("test", 0, 40)} == {("add", "sums", "plain"), ("mul", "plain")}
    put("u", "team: specialists\nskills: [add]\ntags: {sums: [mul]}\n")
    with pytest.raises(ConfigError, match="`tags` are for kinds of questions that the suite asks \\(add\\), not mul"):
        load_suites("u")


def test_a_file_is_taken_whole_unless_the_suite_says_how_many() -> None:
    rows = [row(i) for i in range(1200)]
    put("whole", DATA, *rows)
    put("part", DATA + "tasks: {dev: 5, test: 7}\n", *rows)
    [whole], [part] = load_suites("whole"), load_suites("part")
    assert (len(whole.tasks("test", 0)), len(whole.tasks("test", 0, 9)), len(part.tasks("test", 0))) == (1200, 9, 7)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"id": 2, "question": "q"}, "answer: every task needs an id, a question and an answer"),
        ({"id": 2, "question": "q", "answer": None}, "answer: every task"),
        ({"id": 2, "question": "q", "answer": " "}, "answer: every task"),
        ({"id": 2, "question": "q", "answer": ["a"]}, "answer: every task"),
        ({"question": "q", "answer": "a"}, "id: every task"),
        ({"id": 2, "answer": "a"}, "question: every task"),
        (row(1), "id: task id '1' occurs twice"),
        (row(2, "tset"), "split: expected dev or test, found 'tset'"),
        (row(2, tags="sums"), "tags: expected a list, found 'sums'"),
        ('{"id": 2', "not valid JSON"),
        ("[1, 2]", "expected an object"),
    ],
)
def test_a_bad_task_is_named_by_file_line_and_key(line: object, words: str) -> None:
    folder = put("s", DATA, row(1), "", line)
    [suite] = load_suites("s")
    with pytest.raises(ConfigError) as caught:
        suite.tasks("test", 0)
    assert f"{folder.absolute() / 'data.jsonl'}:3: {words}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_has_no_such_split() -> None:
    put("missing", DATA)
    put("empty", DATA, row(1))
    with pytest.raises(ConfigError, match=r"data\.jsonl: cannot be read"):
        load_suites("missing")[0].tasks("test", 0)
    with pytest.raises(UserError, match="no tasks in split 'dev'"):
        load_suites("empty")[0].tasks("dev", 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("team: t\nskils: [add]\n", ":2: skils: unknown key; did you mean 'skills'?"),
        ("team: t\nskills: [add]\ntasks: {dev: 0, test: 5}\n", ":3: tasks.dev: expected"),
        ("team: t\nskills: [add]\ntasks: 7\n", ":3: tasks: expected keys and values"),
        ("skills: [add]\n", "a suite names its default team"),
        ("team: t\n", "`skills` or from `data`"),
        ("team: t\nskills: [add]\ndata: x.jsonl\n", "`skills` or from `data`"),
        ("team: t\nskills: [add]\ntopologies: [{debate: {rounds: 2}, star: {}}]\n", "a name, or one name with its parameters"),
        ("team: [\n", "not valid YAML"),
    ],
)
def test_a_mistake_in_the_yaml_is_named_by_file_line_and_key(text: str, words: str) -> None:
    folder = put("s", text)
    with pytest.raises(ConfigError) as caught:
        load_suites("s")
    assert str(folder.absolute() / "eval.yaml") in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("skills:\n- add\n- subb\n", ":4: skills[1]: no skill named 'subb'; known: add, "),
        ("skills: [ad]", ":2: skills[0]: no skill named 'ad'; did you mean add"),
        ("skills: [add]\nscorer: exakt", ":3: scorer: no scorer named 'exakt'; did you mean exact?"),
    ],
)
def test_unknown_names_get_the_nearest(text: str, words: str) -> None:
    folder = put("s", f"team: t\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_suites("s")
    assert str(caught.value).startswith(f"{folder.absolute() / 'eval.yaml'}{words}")
    with pytest.raises(UnknownName, match="no suite named 'specialist'; did you mean specialists"):
        load_suites("specialist")


def test_groups_nest_and_may_not_hold_themselves() -> None:
    put("one", "team: t\nskills: [add]\n")
    put("inner", "suites: [one]\n")
    put("outer", "suites: [inner, one, ../one/eval.yaml]\n")
    assert [suite.name for suite in load_suites("outer")] == ["one"] * 3
    put("loop", "suites: [pool]\n")
    put("pool", "suites: [loop]\n")
    with pytest.raises(AIFlowError, match=r"pool/eval.yaml:1: suites\[0\]: the group 'loop' holds itself"):
        load_suites("loop")
    put("torn", "suites:\n  - one\n  - oen\n")
    with pytest.raises(ConfigError, match=r"torn/eval.yaml:3: suites\[1\]: no suite named 'oen'; did you mean one"):
        load_suites("torn")


def test_topologies_with_parameters() -> None:
    put("s", "team: t\nskills: [add]\ntopologies: [majority, {debate: {rounds: 2}}]\n")
    assert load_suites("s")[0].topologies() == [("majority", {}), ("debate", {"rounds": 2})]
