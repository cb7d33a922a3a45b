from __future__ import annotations

from typing import Any

import pytest
import torch

from aiflow_agents.training import corpus
from aiflow_agents.training.recipe import Recipe

# phases of five and four chunks once a chunk is `small`
TINY: dict[str, Any] = {
    "name": "ada",
    "description": "Knows sums and order.",
    "architecture": "qwen3",
    "tier": "device",
    "size": {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64},
    "seed": 5,
    "skills": {"add": 2, "sort": 1},
    "phases": [
        {"kind": "answer", "tokens": 4800, "lr": 0.02, "batch": 32},
        {"kind": "hear", "tokens": 4800, "lr": 0.01, "batch": 32, "peers": ["ada", "bob"]},
    ],
}


def same(one: Any, other: Any) -> bool:
    """Of two trainings: every weight, every optimizer state and every count, bit for bit."""
    ours, theirs = one._tensors(), other._tensors()
    counts = [{key: value for key, value in training.state.items() if key != "seconds"} for training in (one, other)]
    return counts[0] == counts[1] and ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    return Recipe.model_validate(TINY)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 questions instead of 2,048."""
    monkeypatch.setattr(corpus, "CHUNK", 64)
