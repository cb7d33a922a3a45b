"""What is timed beside an evaluation must be just what the evaluation asked."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from aiflow_agents.bench import overhead
from aiflow_agents.evals.evaluate import plan
from aiflow_agents.runtime.hosts import InlineHosts


def test_the_batches_alone_are_those_of_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, Counter[Any]] = {}
    generate = InlineHosts.generate

    def counted(self: InlineHosts, batches: Any) -> Any:
        calls = asked.setdefault(id(self), Counter())
        calls.update((model, request) for model, requests in batches.items() for request in requests)
        return generate(self, batches)

    monkeypatch.setattr(InlineHosts, "generate", counted)
    monkeypatch.setattr(overhead, "WARM", 1)
    evaluation = plan("specialists", topologies=["majority", "debate"], limit=3, seed=4)
    found = overhead.bench_overhead(evaluation, ["inline"], repeats=2)
    in_the_evaluation, alone = asked.values()
    assert in_the_evaluation == alone and sum(alone.values()) == 2 * found["runtimes"]["inline"]["calls"] + len(evaluation.team.agents)
    row = found["runtimes"]["inline"]
    assert row["cores"] == 1 and row["batches"] <= row["calls"] and len(row["ratios"]) == 2
    assert min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
    assert min(row["ratios"]) > 1  # an evaluation does everything that its batches take, and more
    assert json.loads(json.dumps(found)) == found and found["n_tasks"] == 3
