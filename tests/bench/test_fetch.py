"""Payloads between hosts on raylets of their own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiflow_agents.bench import fetch as module
from aiflow_agents.cli.main import main
from aiflow_agents.errors import AIFlowError


@pytest.mark.ray
def test_a_payload_goes_from_host_to_host_and_never_to_the_driver(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["bench", "fetch", "--size", "300000", "--size", "2000", "--repeats", "2", "--display", "none", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["sizes"]
    assert [row["nbytes"] for row in rows] == [300_000, 2_000]
    for row in rows:
        assert row["copy_ms"] > 0 and row["overhead_ms"] == row["fetch_ms"] - row["copy_ms"]
        assert row["spread_ms"][0] <= row["overhead_ms"] <= row["spread_ms"][1]

    copied = module._timed

    def looked_at(work: Any, *payload: Any) -> Any:
        """A driver that fetches what it has a reference to."""
        import ray

        ray.get(list(payload))
        return copied(work, *payload)

    monkeypatch.setattr(module, "_timed", looked_at)
    with pytest.raises(AIFlowError, match="came to the driver"):
        module.bench_fetch((300_000,), repeats=1)
