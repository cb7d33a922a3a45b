"""Who will know this? A small logistic model over the form of a question, one output a member, learned on the dev split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated
from zlib import crc32

import numpy as np
from pydantic import BeforeValidator, PlainSerializer
from scipy.optimize import minimize

BUCKETS = 512
_WORD = re.compile(r"[A-Za-z]{3,}")


def _matrix(value: object) -> np.ndarray:
    """Raises ValueError for what is no list of equally long lists of numbers."""
    try:
        found = np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    if found.ndim != 2:
        raise ValueError("expected rows of numbers, as they are fitted on a dev split")
    return found


Weights = Annotated[np.ndarray, BeforeValidator(_matrix), PlainSerializer(np.ndarray.tolist, return_type=list)]


def features(questions: Sequence[str]) -> np.ndarray:
    """[questions, BUCKETS]: which one-, two- and three-character patterns occur, digits and letters alike being one; and the word it begins with."""
    rows = np.zeros((len(questions), BUCKETS))
    for row, question in zip(rows, questions, strict=True):
        form = "".join("0" if c.isdigit() else "a" if c.isalpha() else c for c in question)
        grams = {form[i : i + n] for n in (1, 2, 3) for i in range(len(form) - n + 1)}
        if word := _WORD.match(question):
            grams.add("^" + word.group())
        for gram in grams:
            row[crc32(gram.encode()) % BUCKETS] = 1.0
        row /= np.sqrt(row.sum()) or 1.0
    return rows


def fit(questions: Sequence[str], correct: np.ndarray, *, ridge: float = 0.02) -> np.ndarray:
    """Weights [BUCKETS + 1, members] of P(member is right | question). correct: [questions, members] of 0 and 1."""
    x = np.hstack([features(questions), np.ones((len(questions), 1))])
    count, members = x.shape[1], correct.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(count, members)
        z = x @ w
        value = float(np.mean(np.logaddexp(0, z) - correct * z)) + ridge / len(x) * float((w[:-1] ** 2).sum())
        slope = x.T @ (1 / (1 + np.exp(-z)) - correct) / (len(x) * members)
        slope[:-1] += 2 * ridge / len(x) * w[:-1]
        return value, slope.ravel()

    return minimize(loss, np.zeros(count * members), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x.reshape(count, members)


def predict(weights: np.ndarray, question: str) -> np.ndarray:
    """P(right) for every member: [members]."""
    z = np.hstack([features([question])[0], 1.0]) @ weights
    return 1 / (1 + np.exp(-z))
