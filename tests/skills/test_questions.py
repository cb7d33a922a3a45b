"""Every answer is checked by a way of its own: datetime, eval, a heap, a graph, ..., never by the skill's own arithmetic."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.skills.questions import LETTERS, SKILLS, TRAINED
from aiflow_agents.training.heard import MAX_ANSWER

TENS = ("", "x", "xx", "xxx", "xl", "l", "lx", "lxx", "lxxx", "xc")


def arithmetic(question: str) -> str:
    assert re.fullmatch(r"[0-9+*%()-]+=", question)
    return str(eval(question[:-1]))


def sort(question: str) -> str:
    rest, found = Counter(question.removeprefix("sort ").removesuffix(">")), ""
    while rest:
        found += min(rest)
        rest -= Counter(found[-1])
    return found


def caesar(question: str) -> str:
    _, shift, word = question.removesuffix(">").split()
    return word.translate(str.maketrans(LETTERS, LETTERS[int(shift) :] + LETTERS[: int(shift)]))


def most(question: str) -> str:
    (first, count), *others = Counter(question.removeprefix("most ").removesuffix(">")).most_common()
    assert all(other < count for _, other in others)  # or there would be two right answers
    return f"{first}{count}"


def rank(question: str) -> str:
    which, *numbers = question.removeprefix("top").removesuffix(">").split()
    return str(heapq.nlargest(int(which), map(int, numbers))[-1])


def date(question: str) -> str:
    day, plus = question.removesuffix("=").split("+")
    return f"{datetime.strptime(f'{day} 2023', '%b %d %Y') + timedelta(days=int(plus)):%b %-d}".lower()


def clock(question: str) -> str:
    time, plus = question.removesuffix("=").split("+")
    return f"{datetime.strptime(time, '%H:%M') + timedelta(minutes=int(plus)):%H:%M}"


def roman(question: str) -> str:
    """From right to left: a letter below one already seen is subtracted."""
    total = highest = 0
    numeral = question.removeprefix("roman ").removesuffix(">")
    for letter in reversed(numeral):
        value = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}[letter]
        total += value if value >= highest else -value
        highest = max(highest, value)
    # the numeral is the standard one: its digits, each written as the tens are, one place apart
    places = [str.maketrans("xlc", "".join(pair)) for pair in zip("ixcm", "vld?", "xcm?", strict=True)]
    assert numeral == "".join(TENS[int(digit)].translate(places[place]) for place, digit in zip(range(3, -1, -1), f"{total:04}", strict=True))
    return str(total)


def bits(question: str) -> str:
    a, first, b, second, c = re.fullmatch(r"\(([01]{5})([&|^])([01]{5})\)([&|^])([01]{5})=", question).groups()  # type: ignore[union-attr]
    gate = {"&": min, "|": max, "^": lambda x, y: "01"[x != y]}
    return "".join(gate[second](gate[first](x, y), z) for x, y, z in zip(a, b, c, strict=True))  # type: ignore[operator]


def hops(question: str) -> str:
    pairs, _, asked = question.removesuffix(">").partition(":")
    graph = nx.DiGraph(tuple(pair) for pair in pairs.split())
    (found,) = nx.descendants_at_distance(graph, asked[0], int(asked[1:]))
    return found


def chain(question: str) -> str:
    """All the steps without the modulus, and the modulus once at the end."""
    start, *steps = question.removesuffix(">").split()
    expression = start
    for step in steps:
        expression = f"({expression}){step}"
    return str(eval(expression) % 100)


ORACLES: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(("add", "mul", "mod", "nest", "bigmul"), arithmetic),
    "sort": sort, "caesar": caesar, "most": most, "rank": rank, "date": date, "clock": clock, "roman": roman,
    "bits": bits, "hops": hops, "chain": chain,
}  # fmt: skip


@pytest.mark.parametrize("name", SKILLS)
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_the_answer_is_right_and_the_only_one(name: str, seed: int) -> None:
    question, answer = SKILLS[name](Random(seed))
    assert answer == ORACLES[name](question)
    assert SKILLS[name](Random(seed)) == (question, answer)
    assert len(answer) < MAX_ANSWER  # with its end
    assert all(" " <= character <= "~" for character in question + answer)
    assert answer == answer.strip()


@pytest.mark.parametrize("name", SKILLS)
def test_a_right_answer_is_no_luck(name: str) -> None:
    rng = Random(1)
    answers = Counter(SKILLS[name](rng)[1] for _ in range(4000))
    assert len(answers) >= 20
    assert max(answers.values()) < 0.12 * 4000  # always saying the commonest answer does not pay


def test_examples_of_the_docstrings() -> None:
    for name in TRAINED:
        question, answer = re.search(r"`([^`]+)` -> `([^`]+)`", SKILLS[name].__doc__ or "").groups()  # type: ignore[union-attr]
        assert ORACLES[name](question) == answer


def test_at_least_ten_skills_and_a_control() -> None:
    assert len(TRAINED) >= 10
    assert set(SKILLS) - set(TRAINED) == {"bigmul"}
