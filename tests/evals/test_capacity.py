"""Information Capacity: the formula, the shift that makes a series alike, and what a run says of its members."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.cli import main as door
from aiflow_agents.evals.measures import capacity, capacity_bias
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Turn
from aiflow_agents.runtime import hosts


@settings(deadline=None)
@given(st.floats(-2, 2), st.floats(-40, 5), st.lists(st.floats(1e5, 1e12), min_size=2, max_size=6, unique_by=lambda x: round(math.log2(x), 1)))
def test_sizes_of_a_series_that_lie_on_a_line_are_alike_under_its_bias(slope: float, shift: float, sizes: list[float]) -> None:
    series = [(slope * math.log2(flops) + shift, flops) for flops in sizes]
    bias = capacity_bias(series)
    assert bias == pytest.approx(-shift, abs=1e-6)
    assert [capacity(gain, 0.0, flops, bias) for gain, flops in series] == pytest.approx([slope] * len(sizes), abs=1e-6)


def test_one_size_has_no_series() -> None:
    assert capacity_bias([]) == capacity_bias([(3.0, 1e6)]) == capacity_bias([(3.0, 1e6), (4.0, 1e6)]) == 0.0
    assert capacity(8.0, 2.0, 2.0**20) == 0.3 and capacity(8.0, 2.0, 2.0**20, -2.0) == 0.2


def test_a_run_says_it_of_its_members_alone(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said is recomputed from the model's own logits, one question at a time."""
    import torch

    monkeypatch.setattr(hosts, "load_model", lambda folder: FamilyModel.load(folder))
    room.suite("short", dev=6, test=6, topologies="[majority]")
    report = room.evaluate("short", hosts=hosts.InlineHosts())
    assert all(arm["measures"]["information_capacity"] is None for arm in report.summary["arms"].values() if arm["kind"] != "member")
    tasks = {s["task_id"]: s for s in map(json.loads, (report.folder / "samples.jsonl").read_text().splitlines())}.values()
    for member, folder in zip(("ann", "bob", "cid"), room.models, strict=True):
        model, nats, tokens, flops = FamilyModel.load(folder), 0.0, 0, 0.0
        for task in tasks:
            prompt, text = model.chat.prompt((Turn("user", task["question"]),)), model.chat.ids(task["expected"])
            logits = torch.log_softmax(model.engine.decoder.logits(torch.tensor([prompt + text]))[0].double(), -1)
            nats -= sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(text))
            tokens += len(text)
            shape = model.info.shape
            for context in range(len(prompt), len(prompt) + len(text)):  # a step of decoding
                flops += 2.0 * (shape.block_params + shape.head_params) + 4.0 * shape.layers * shape.heads * shape.head_dim * (context + 1)
        bits = 8 * sum(len(task["expected"].encode()) for task in tasks) / tokens
        row = report.summary["arms"][member]["measures"]["information_capacity"]
        assert (row["text_bits"], row["bias"]) == (bits, 0.0) and row["flops"] == pytest.approx(flops / tokens, rel=1e-3)
        assert row["nll_bits"] == pytest.approx(nats / math.log(2) / tokens, rel=1e-3)
        assert row["value"] == pytest.approx((bits - row["nll_bits"]) / math.log2(row["flops"]), abs=2e-4)
    assert "Information Capacity (b = 0): " in str(report) and 'id="capacity"' in (report.folder / "report.html").read_text()
    before = report.summary["arms"]["ann"]["measures"]["information_capacity"]
    assert door.main(["score", str(report.folder), "--scorer", "folded"]) == 0
    assert json.loads((report.folder / "summary.json").read_text())["arms"]["ann"]["measures"]["information_capacity"] == before


def test_there_is_none_where_nobody_says_how_likely_a_text_is(room: Any) -> None:
    report = room.evaluate(limit=6)  # these minds answer whatever they are asked
    assert all(arm["measures"]["information_capacity"] is None for arm in report.summary["arms"].values())
    assert "Information Capacity" not in str(report) and 'id="capacity"' not in (report.folder / "report.html").read_text()
    assert np.isfinite(report.gain)
