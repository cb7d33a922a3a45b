"""What of a text is the answer. The cases beside a task of lm-evaluation-harness were marked by its own filters and metrics (0.4.13), too:
`test_the_harness_says_the_same` does so again where it is installed.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from aiflow_agents.evals.scorer import SCORERS
from aiflow_agents.evals.suite import load_suites
from aiflow_agents.runtime.extraction import Pattern, extraction, math
from aiflow_agents.runtime.latex import boxed, plain
from aiflow_agents.runtime.task import Task

# suite, text, expected, mark
CASES = [
    ("gsm8k", "48 * 3 = 144, and 144 + 17 = 161. The answer is 161.", "161", 1), ("gsm8k", "She has $1,260", "1260", 1), ("gsm8k", "-5", "-5", 1),
    ("gsm8k", "**42**", "42", 1), ("gsm8k", "nobody knows", "24", 0), ("gsm8k", "18 dollars, then 7", "18", 0), ("gsm8k", "5 or -5", "5", 0),
    ("gsm8k", "so 24 ...", "24", 0), ("gsm8k", "it is 3-5", "5", 0), ("gsm8k", "", "5", 0),
    ("mmlu", "B", "B", 1), ("mmlu", " B", "B", 1), ("mmlu", "B.\nbecause it is", "B", 1), ("mmlu", "(b)", "B", 1), ("mmlu", "C", "B", 0), ("mmlu", "B. Oslo", "B", 0),
    ("mmlu", "", "B", 0), ("mmlu", "Bergen", "B", 0),
    ("mmlu-pro", "2 + 2 is 4, so the answer is (D).", "D", 1), ("mmlu-pro", "the answer is D", "D", 1), ("mmlu-pro", "the answer is (D), no, the answer is (A)", "D", 1),
    ("mmlu-pro", "Answer: D", "D", 0), ("mmlu-pro", "D", "D", 0), ("mmlu-pro", "the answer is (K)", "D", 0),
    ("arc", " B", "B", 1), ("arc", "B.", "B", 1), ("arc", "b. A compass does", "B", 1), ("arc", "A compass", "A", 0), ("arc", "C", "B", 0),
]  # fmt: skip


def marked(suite: str, text: str, expected: str) -> float:
    [found] = load_suites(suite)
    return found.scorer(extraction(found.file.extract)(text), Task("t", "q", expected))


@pytest.mark.parametrize(("suite", "text", "expected", "mark"), CASES)
def test_answers_are_found_and_marked(suite: str, text: str, expected: str, mark: float) -> None:
    assert marked(suite, text, expected) == mark


@pytest.mark.parametrize(
    ("suite", "text", "expected"),
    [("mmlu", "The answer is B.", "B"), ("mmlu", "Answer: (B)", "B"), ("arc", "North is where a compass points. The best answer is B.", "B"),
     ("gsm8k", "It is 2.50", "2.5"), ("gsm8k", "$42.00", "42")],
)  # fmt: skip
def test_more_is_understood_than_the_harness_does(suite: str, text: str, expected: str) -> None:
    assert marked(suite, text, expected) == 1


def test_the_harness_says_the_same() -> None:
    np = pytest.importorskip("numpy")
    extract = pytest.importorskip("lm_eval.filters.extraction", reason="lm-eval is not installed: the marks above are what it gave")
    from lm_eval.api.metrics import exact_match_hf_evaluate

    tasks: dict[str, tuple[list[Any], dict[str, Any]]] = {  # filters and metric as in its yaml files
        "gsm8k": ([extract.RegexFilter("(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)], dict(regexes_to_ignore=[",", r"\$", "(?s).*#### ", r"\.$"], ignore_case=True)),
        "mmlu": ([extract.RegexFilter(r"^(.*?)(?=\n|$)"), extract.WhitespaceFilter(), extract.RegexFilter(r"^(.*?)\s*$")], dict(ignore_case=True, ignore_punctuation=True)),
        "mmlu-pro": ([extract.RegexFilter(r"answer is \(?([ABCDEFGHIJ])\)?")], dict(ignore_case=True, ignore_punctuation=True)),
        "arc": ([extract.WhitespaceFilter()], dict(ignore_case=True, ignore_punctuation=True)),
    }
    for suite, text, expected, mark in CASES:
        filters, metric = tasks[suite]
        found = [[text.split(".")[0] if suite == "arc" else text]]  # `until` of its arc task
        for each in filters:
            found = [list(part) for part in each.apply(found, [{}])]
        assert float(np.asarray(exact_match_hf_evaluate(found[0], [expected], **metric)["exact_match"])) == mark, (suite, text)


# two spellings, and whether they are one answer to Hendrycks' `is_equiv` or Minerva's
SPELLINGS = [
    (r"\frac12", r"\frac{1}{2}", True), ("0.5", r"\frac{1}{2}", True), ("1/2", r"\frac{1}{2}", True), (r"\dfrac{3}{4}", r"\tfrac34", True),
    (r"\sqrt3", r"\sqrt{3}", True), ("x=5", "5", True), ("k = 7", "7", True), (r"10\text{ cm}", "10", True), (r"108^\circ", "108", True), (r"108^{\circ}", "108", True),
    (r"50\%", "50", True), (r"\left(1,2\right)", "(1,2)", True), ("(3, 6)", "(3,6)", True), (".5", "0.5", True), (r"\frac1{72}", r"\frac{1}{72}", True),
    ("10,000", "10000", True), (r"10{,}000", "10000", True), (r"\text{blue}", "blue", True), (r"\$5", "5", True), ("x^2+1", "x^2 + 1", True),
    (r"\frac ab", r"\frac{a}{b}", True), ("12 inches", "12", True), ("0.25", r"\frac{1}{4}", True), ("5.0", "5", True), (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    (r"3\!,000", "3000", True), ("3", "4", False), ("(1,2)", "(2,1)", False), (r"\frac{1}{2}", r"\frac{2}{1}", False), ("x+1", "x-1", False), ("[1,4)", "(1,4)", False),
    ("-5", "5", False), ("1,2", "12", False),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "same"), SPELLINGS)
def test_one_answer_has_one_spelling(one: str, other: str, same: bool) -> None:
    assert (plain(one) == plain(other)) == same
    assert SCORERS["math"](one, Task("t", "q", other)) == same
    assert plain(plain(one)) == plain(one)


def test_hendrycks_or_minerva_say_the_same() -> None:
    hendrycks = pytest.importorskip("lm_eval.tasks.hendrycks_math.utils", reason="lm-eval is not installed: the table above is what it gave")
    minerva = pytest.importorskip("lm_eval.tasks.minerva_math.utils", reason="lm-eval[math] is not installed", exc_type=Exception)
    for one, other, same in SPELLINGS[:-1]:  # Minerva takes 1,2 for 12
        theirs = minerva.is_equiv(minerva.normalize_final_answer(one), minerva.normalize_final_answer(other)) or hendrycks.is_equiv(one, other)
        assert theirs == same, (one, other)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"We get $x = 3$. Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        (r"Final Answer: The final answer is 12", "12"),
        (r"So $\boxed{1}$, no: $\boxed{\frac{3}{\sqrt{2}}}$.", r"\frac{3}{\sqrt{2}}"), (r"thus \boxed 7$ it is", "7"), (r"\fbox{9}", "9"),
        ("The area is $6$ and the length $2\\sqrt{3}$.", r"2\sqrt{3}"), ("$$x + 1$$", "x+1"), ("It costs \\$5, so $n = 5$", "5"),
        ("42", "42"), ("I think\nit may be many things", ""), ("", ""), (r"it is \boxed{4", r"itis\boxed{4"),
    ],
)  # fmt: skip
def test_where_a_mathematical_answer_stands(text: str, answer: str) -> None:
    assert math(text) == answer


def test_boxes_may_hold_boxes() -> None:
    assert boxed(r"a \boxed{b \boxed{c}} d") == "c" and boxed("none") is None and boxed(r"\boxed{never closed") is None


def test_patterns() -> None:
    text = "first a7 then b8, at last c9"
    assert extraction(Pattern(first="([a-c])[0-9]"))(text) == "a" and extraction(Pattern(last="([a-c])[0-9]", upper=True))(text) == "C"
    assert extraction(Pattern(last="[a-c][0-9]"))(text) == "c9" and extraction(Pattern(first="z"))(text) == "" and extraction("text")(" x y\n") == "x y"
    for wrong in ({}, {"first": "a", "last": "b"}, {"first": "("}, {"frist": "a"}):
        with pytest.raises(ValidationError):
            Pattern(**wrong)
