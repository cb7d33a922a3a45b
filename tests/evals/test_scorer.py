"""How answers are marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiflow_agents.errors import ConfigError, UnknownName, UserError
from aiflow_agents.evals.scorer import load_scorer
from aiflow_agents.runtime.task import Task


@pytest.mark.parametrize(
    ("name", "answer", "expected", "mark"),
    [
        ("exact", " 42\n", "42", 1), ("exact", "042", "42", 0), ("exact", "Apr 11", "apr 11", 0), ("exact", "", "42", 0),
        ("folded", "APR   11 ", "apr 11", 1), ("folded", "apr11", "apr 11", 0), ("folded", "STRASSE", "straße", 1),
        ("number", "so it is 1,234.50 in all", "1234.5", 1), ("number", "3 or 4", "3", 0), ("number", "-7", "7", 0), ("number", "none", "7", 0),
        ("number", "", "7", 0), ("number", "1200", "1,200", 1), ("number", "5", "no number", 0),
    ],
)  # fmt: skip
def test_built_in_scorers(name: str, answer: str, expected: str, mark: float, tmp_path: Path) -> None:
    assert load_scorer(name, tmp_path)(answer, Task("t", "q", expected)) == mark


def own(folder: Path, text: str):
    (folder / "scorer.py").write_text(text)
    return load_scorer("scorer.py", folder)


def test_a_suites_own_scorer(tmp_path: Path) -> None:
    score = own(tmp_path, "def score(answer, task):\n    return len(set(answer) & set(task.expected)) / len(set(task.expected))\n")
    assert score("abc", Task("t", "q", "abcd")) == 0.75


@pytest.mark.parametrize(
    ("text", "words"),
    [("def score(answer, task):\n    return (\n", r"scorer\.py:2: not valid Python"), ("def mark(a, t): return 1\n", "expected a function `score"),
     ("score = 1\n", "expected a function `score"), ("\nimport nothing_here\n", r"scorer\.py:2: ModuleNotFoundError: No module named 'nothing_here'")],
)  # fmt: skip
def test_a_scorer_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        own(tmp_path, text)


@pytest.mark.parametrize(
    ("body", "words"),
    [("1 / 0", "raised ZeroDivisionError"), ("1.5", "gave 1.5; expected a number from 0 to 1"), ("-1", "gave -1"), ("float('nan')", "gave nan"),
     ("'yes'", "raised ValueError"), ("None", "raised TypeError")],
)  # fmt: skip
def test_what_a_scorer_does_wrong_is_one_line_with_the_task_and_the_answer(body: str, words: str, tmp_path: Path) -> None:
    score = own(tmp_path, f"def score(answer, task):\n    return {body}\n")
    with pytest.raises(UserError, match=rf"scorer\.py: score\('ab', task t9\) {words}") as caught:
        score("ab", Task("t9", "q", "c"))
    assert "\n" not in str(caught.value)


def test_names_and_files_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean folded"):
        load_scorer("fold", tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        load_scorer("scorer.py", tmp_path)
