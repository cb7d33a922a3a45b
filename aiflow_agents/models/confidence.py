"""How sure somebody is: made to mean what it says, and said to others in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Calibration:
    """Makes a confidence mean what it says: sigmoid(slope * logit(p) + bias). 1 / slope is the temperature."""

    slope: float = 1.0
    bias: float = 0.0

    def __call__(self, p: float) -> float:
        p = min(max(p, 1e-6), 1 - 1e-6)
        logit = self.slope * math.log(p / (1 - p)) + self.bias
        return 1.0 / (1.0 + math.exp(min(-logit, 700.0)))  # beyond that `exp` refuses


AS_IT_IS = Calibration()


def calibrate(confidences: Sequence[float | None], correct: Sequence[bool]) -> Calibration:
    """Slope and bias of logit(p) by maximum likelihood, with a weak pull to leave p as it is (Platt 1999; Guo et al. 2017)."""
    from scipy.optimize import minimize

    pairs = [(p, right) for p, right in zip(confidences, correct, strict=True) if p is not None]
    if len(pairs) < 20:
        return AS_IT_IS
    p = np.clip([pair[0] for pair in pairs], 1e-6, 1 - 1e-6)
    z, y = np.log(p / (1 - p)), np.array([pair[1] for pair in pairs], dtype=float)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        s = w[0] * z + w[1]
        error = 1 / (1 + np.exp(-s)) - y
        pull = w - np.array([1.0, 0.0])
        return float(np.sum(np.logaddexp(0, s) - y * s) + 0.5 * pull @ pull), np.array([error @ z, error.sum()]) + pull

    slope, bias = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]).x
    return Calibration(float(slope), float(bias))


def told(text: str, confidence: float | None) -> str:
    """What a listener hears that was taught to hear how sure others are: `296~97`, or `296` of one who does not say."""
    return text if confidence is None else f"{text}~{min(99, max(0, int(100 * confidence))):02d}"
