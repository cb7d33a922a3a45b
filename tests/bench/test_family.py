"""Exits beside each other: counts against transformers, p against statsmodels, and a plain model beside an exit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from aiflow_agents.bench import family as module
from aiflow_agents.bench.family import Rival, bench_family, questions_for
from aiflow_agents.cli.main import main
from aiflow_agents.errors import UserError
from aiflow_agents.models.family.export import export_branch
from aiflow_agents.skills.splits import Question, balanced, split_of
from tests.conftest import make_family, make_model, transformers_says


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Question], dict[int, np.ndarray]]:
    """A random family, questions that some exits answer right, and who is right by transformers."""
    root = tmp_path_factory.mktemp("room")
    folder = make_family(root / "fam")
    drawn = balanced(["add", "sort"], "test", 48, 5)
    said = {e: transformers_says(export_branch(folder, e, root / f"plain{e}"), [q.text for q in drawn]) for e in (0, 1, 2)}
    whose = [0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    questions = [question._replace(answer=said[whose[i % 12]][i]) for i, question in enumerate(drawn)]
    return folder, questions, {e: np.array([a == q.answer for a, q in zip(said[e], questions, strict=True)]) for e in said}


def p_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    table = [[int((ours & theirs).sum()), int((ours & ~theirs).sum())], [int((theirs & ~ours).sum()), int((~ours & ~theirs).sum())]]
    return float(mcnemar(table, exact=True).pvalue)


def test_counts_and_p(room: Any) -> None:
    folder, questions, right = room
    found = bench_family(folder, questions)
    rows = found["exits"]
    assert [(row["exit"], row["right"]) for row in rows] == [(e, int(right[e].sum())) for e in (0, 1, 2)]
    assert rows[0]["over"] is None
    for row, before in zip(rows[1:], (0, 1), strict=True):
        over = row["over"]
        ours, theirs = right[row["exit"]], right[before]
        assert over["exit"] == before and over["wins"] - over["losses"] == ours.sum() - theirs.sum() and over["wins"] == (ours & ~theirs).sum()
        assert over["p"] == pytest.approx(p_of(ours, theirs))
    assert found["every_exit_better"] == pytest.approx(max(row["over"]["p"] for row in rows[1:]))
    skills = np.array([q.skill for q in questions])
    assert rows[2]["skills"] == {s: pytest.approx(right[2][skills == s].mean()) for s in ("add", "sort")}


def test_an_exit_that_is_no_better_is_said(room: Any) -> None:
    folder, questions, right = room
    only_shallow = [q for i, q in enumerate(questions) if right[0][i]]
    assert bench_family(folder, only_shallow)["every_exit_better"] is None


def test_a_plain_model_beside_an_exit(room: Any, tmp_path: Path) -> None:
    """Its own export is as good as an exit, to the question; another model is a ratio of counts."""
    folder, questions, right = room
    twin = Rival("twin", folder.parent / "plain1", 1)
    deep = Rival("deep", folder.parent / "plain2", 1)
    blank = Rival("blank", make_model(tmp_path / "blank", seed=77, layers=1), 1)
    same, other, none = bench_family(folder, questions, [twin, deep, blank])["against"]
    assert same["ratio"] == 1 and same["ratio_ci95"] == [1, 1] and same["wins"] == same["losses"] == 0 and same["p"] == 1
    assert other["ratio"] == pytest.approx(right[1].sum() / right[2].sum()) and other["ratio_ci95"][0] < other["ratio"] < other["ratio_ci95"][1]
    assert other["p"] == pytest.approx(p_of(right[1], right[2])) and other["accuracy"] == right[2].mean()
    assert none["right"] == 0 and none["ratio"] is None
    with pytest.raises(UserError, match="twin: fam has no exit 4; it has 0, 1, 2"):
        bench_family(folder, questions, [twin._replace(exit=4)])


def test_questions_are_different_test_questions_of_its_skills(room: Any, tmp_path: Path) -> None:
    questions = questions_for(room[0], 60, 3)
    assert len({q.text for q in questions}) == 60 and {split_of(q.text) for q in questions} == {"test"} and {q.skill for q in questions} == {"add", "sort"}
    assert questions != questions_for(room[0], 60, 4)
    with pytest.raises(UserError, match="no recipe.yaml that names skills"):
        questions_for(make_model(tmp_path / "bare"), 10, 0)


def test_the_command(room: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, questions, right = room
    monkeypatch.setattr(module, "questions_for", lambda *_: questions)
    words = ["bench", "family", str(folder), "--against", f"small={folder.parent / 'plain2'}@1", "--display", "none"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exits"][1]["right"] == right[1].sum() and found["against"][0]["name"] == "small"
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fam: 48 test questions, greedy" and lines[3].split()[:2] == ["0", "1"] and lines[-1].startswith("exit 1 has ") and "of small's accuracy" in lines[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no model named 'nowhere'"),
        (["tally", "--against", "small=tally"], "--against small=tally: expected NAME=FOLDER@EXIT"),
        (["tally", "--against", "small=taly@1"], "no model named 'taly'; did you mean tally?"),
        (["tally", "--against", "small=tally@0"], "small: tally has no exit 0"),
        (["tally", "--questions", "1"], "Invalid value for '--questions'"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "family", *words, "--display", "none"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and captured.err.count("\n") == 1
