"""Worked answers are read backwards: every step is checked by itself, and the end against another way to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.skills.questions import LETTERS
from aiflow_agents.skills.worked import WORKED
from aiflow_agents.training.heard import MAX_WORKED
from tests.skills.test_questions import roman


def equations(answer: str) -> list[str]:
    """The left sides of all steps, each of which must be true."""
    steps = [step.split("=") for step in answer.split() if "=" in step]
    assert all(re.fullmatch(r"[-0-9+*]+", left) and str(eval(re.sub(r"\b0+(?=\d)", "", left))) == right for left, right in steps)
    return [left for left, _ in steps]


def ledger(question: str, answer: str) -> None:
    start, *entries = question.removesuffix(">").split()
    balance = start
    for left, entry in zip(equations(answer), entries, strict=True):
        assert left == balance + entry
        balance = str(eval(left))
    assert answer.endswith(f"={balance}")


def column(question: str, answer: str) -> None:
    *steps, total = answer.split()
    assert int(total) == eval(question[:-1])
    digits = [str(eval(left))[-1] for left in equations(answer)]
    assert total.endswith("".join(reversed(digits))) and [step[0] for step in steps] == list(reversed(question.split("+")[0]))


def product(question: str, answer: str) -> None:
    assert answer.endswith(f"={eval(question[:-1])}") and len(equations(answer)) == 3


def order(question: str, answer: str) -> None:
    numbers = list(map(int, answer.split()))
    assert all(a < b for a, b in pairwise(numbers)) and set(numbers) == set(map(int, re.findall(r"\d+", question)))


def timetable(question: str, answer: str) -> None:
    start, every = question.removesuffix(">").split(" every ")
    times = [datetime.strptime(start, "%H:%M") + timedelta(minutes=int(every)) * i for i in range(1, 7)]
    assert answer == " ".join(f"{time:%H:%M}" for time in times)


def cipher(question: str, answer: str) -> None:
    _, shift, text = question.removesuffix(">").split(" ", 2)
    assert answer == text.translate(str.maketrans(LETTERS, LETTERS[int(shift) :] + LETTERS[: int(shift)]))


def words(question: str, answer: str) -> None:
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    total = part = 0
    for word in answer.split():
        if word in ("thousand", "hundred"):
            total, part = total + part * {"thousand": 1000, "hundred": 100}[word], 0
        else:
            part += small.index(word) if word in small else 10 * tens.index(word) + 20
    assert total + part == int(question.removeprefix("words ").removesuffix(">"))


def diary(question: str, answer: str) -> None:
    start, every = question.removesuffix(">").split(" every ")
    first = datetime.strptime(f"{start} 2022", "%b %d %Y")
    assert answer == ", ".join(f"{first + timedelta(days=int(every)) * i:%b %-d}".lower() for i in range(1, 6))


def romans(question: str, answer: str) -> None:
    number = int(question.removeprefix("romans ").removesuffix(">"))
    assert [int(roman(f"roman {numeral}>")) for numeral in answer.split()] == list(range(number, number + 4))


ORACLES: dict[str, Callable[[str, str], None]] = {
    f.__name__: f for f in (ledger, column, product, order, timetable, cipher, words, diary, romans)
}  # fmt: skip


@pytest.mark.parametrize("name", WORKED)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_every_step_is_right(name: str, seed: int) -> None:
    question, answer = WORKED[name](Random(seed))
    ORACLES[name](question, answer)
    assert WORKED[name](Random(seed)) == (question, answer)
    assert 11 <= len(answer) < MAX_WORKED and all(" " <= character <= "~" for character in question + answer)


@pytest.mark.parametrize("name", WORKED)
def test_examples_of_the_docstrings(name: str) -> None:
    question, answer = re.search(r"`([^`]+)` -> `([^`]+)`", WORKED[name].__doc__ or "").groups()  # type: ignore[union-attr]
    ORACLES[name](question, answer)
