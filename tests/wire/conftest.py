"""States as a small model might have them: correlated channels, a few large ones, clusters by token, sequences that remember."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from aiflow_agents.wire.codecs import Sample

VOCAB = 12


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """make_sample(width, sequences=60, seed=0) -> a sample with gradients, token ids and lengths."""

    def make(width: int, sequences: int = 60, seed: int = 0) -> Sample:
        model, text = np.random.default_rng(width), np.random.default_rng(seed)  # the model depends on the width alone, so seeds give held-out text
        mix = model.normal(size=(width, width)) * np.exp(-np.arange(width) / max(width / 8, 1))[:, None]
        meaning, scale = model.normal(size=(VOCAB, width)) * 2, np.where(np.arange(width) % 17 == 3, 20.0, 1.0)
        lengths = text.integers(5, 20, sequences)
        ids = text.integers(0, VOCAB, lengths.sum())
        own = text.normal(size=(len(ids), width)) @ mix
        for i in range(1, len(ids)):
            own[i] += 0.6 * own[i - 1]
        states = (own + meaning[ids]) * scale + 3
        gradients = text.normal(size=states.shape) * np.exp(-np.arange(width) / 10) / scale
        return Sample(states.astype(np.float32), gradients.astype(np.float32), ids, lengths)

    return make
