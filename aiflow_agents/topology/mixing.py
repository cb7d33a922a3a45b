"""What several members hold likely next, mixed into one distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.payload import Logits

Mean = Literal["probabilities", "logits"]


def likeliest(said: Sequence[Logits], weights: Sequence[float], mean: Mean = "probabilities") -> tuple[int, float]:
    """The likeliest token of the weighted mean, and its log-probability there. Where no weight is above 0 the first alone counts.

    said: from each member the log-probabilities of its likeliest tokens at one position. Those of one vocabulary.
    """
    share = np.array(weights if any(weights) else [1.0, *[0.0] * (len(said) - 1)])[:, None]
    logprobs, share = np.stack([spread(logits) for logits in said]), share / share.sum()  # [members, vocab], [members, 1]
    mixed = (share * logprobs).sum(0) if mean == "logits" else np.log((share * np.exp(logprobs)).sum(0))
    token = int(mixed.argmax())
    return token, float(mixed[token] - np.logaddexp.reduce(mixed))


def spread(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities of all tokens, [vocab]: those that came, and what they leave of 1 in equal parts for the rest."""
    came = logits.values[0].astype(np.float64)
    left = max(1.0 - np.exp(came).sum(), 1e-9) / max(logits.vocab - len(came), 1)
    found = np.full(logits.vocab, np.log(left))
    found[slice(None) if logits.indices is None else logits.indices[0]] = came
    return found
