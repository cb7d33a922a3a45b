"""Who will know this? The fit against its own definition, and what it can tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_agents.topology.selector import BUCKETS, features, fit, predict

KINDS = {"sum": lambda i: f"{i}+{2 * i}=", "sort": lambda i: "sort " + "".join("abcdefgh"[(i * j) % 8] for j in range(3, 7)), "date": lambda i: f"2024-01-{i % 28 + 1:02}>"}
QUESTIONS = [make(i) for make in KINDS.values() for i in range(20)]
KIND = np.repeat(np.arange(3), 20)


def test_kinds_that_look_different_are_told_apart_also_in_questions_never_seen() -> None:
    weights = fit(QUESTIONS, np.eye(3)[KIND])
    assert weights.shape == (BUCKETS + 1, 3)
    for kind, make in enumerate(KINDS.values()):
        for i in (23, 27):
            p = predict(weights, make(i))
            assert p.shape == (3,) and np.argmax(p) == kind and p[kind] > 0.8 and np.delete(p, kind).max() < 0.2


def test_where_the_form_says_nothing_the_base_rate_is_learned() -> None:
    rng = np.random.default_rng(0)
    questions = [f"{i:03}?" for i in range(400)]
    correct = (rng.random((400, 2)) < [0.7, 0.2]).astype(float)
    p = predict(fit(questions, correct), "999?")
    assert p == pytest.approx(correct.mean(0), abs=0.001)


def test_the_weights_are_those_of_the_least_loss() -> None:
    """Logistic loss per answer, plus ridge on all weights but the bias: its gradient, by differences of the definition, is zero there."""
    rng = np.random.default_rng(1)
    correct = (rng.random((60, 3)) < 0.25 + 0.5 * np.eye(3)[KIND]).astype(float)
    weights = fit(QUESTIONS, correct, ridge=0.05)
    x = np.hstack([features(QUESTIONS), np.ones((60, 1))])

    def loss(w: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-x @ w))
        return float(-np.mean(correct * np.log(p) + (1 - correct) * np.log(1 - p)) + 0.05 / 60 * (w[:-1] ** 2).sum())

    for _ in range(20):
        step = rng.normal(size=weights.shape) * (rng.random(weights.shape) < 0.05)
        slope = (loss(weights + 1e-4 * step) - loss(weights - 1e-4 * step)) / 2e-4
        assert abs(slope) < 1e-3
        assert loss(weights) <= loss(weights + 0.1 * step) + 1e-6


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4))
def test_features_are_of_length_one_and_those_of_each_question_alone(questions: list[str]) -> None:
    rows = features(questions)
    assert rows.shape == (len(questions), BUCKETS)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1) and (rows >= 0).all()
    for question, row in zip(questions, rows, strict=True):
        assert (features([question])[0] == row).all()


def test_digits_are_alike_and_letters_are_alike_but_not_both() -> None:
    a, b, c = features(["17+25=", "98+40=", "ab+cd="])
    assert (a == b).all() and not (a == c).all()
    sort, again, most = features(["sort kqz>", "sort abc>", "most kqz>"])  # but the word a question begins with tells its kind
    assert (sort == again).all() and not (sort == most).all()
