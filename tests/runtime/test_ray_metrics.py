"""What a run counts as metrics of Ray is what its samples say."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter as Count
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents import evaluate
from aiflow_agents.runtime.ray_metrics import METRICS, RayMetrics


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Count[tuple[str, ...]]:
    """What reaches Ray's counters."""
    from ray.util.metrics import Counter

    found: Count[tuple[str, ...]] = Count()

    def inc(self: Any, value: float, tags: dict[str, str]) -> None:
        assert value > 0 and set(tags) == set(METRICS[self.info["name"]][1])
        found[self.info["name"], *tags.values()] += int(value)

    monkeypatch.setattr(Counter, "inc", inc)
    return found


def test_counters_add_up_to_the_samples(counted: Count[tuple[str, ...]], tmp_path: Path) -> None:
    report = evaluate("specialists", topologies=["debate"], limit=4, path=tmp_path / "run", hooks=[RayMetrics()])
    samples = [json.loads(line) for line in (report.folder / "samples.jsonl").read_text().splitlines()]
    ours = [sample for sample in samples if sample["arm"] == "debate"]
    # dev and rivals are counted, too
    assert counted["aiflow_tasks_total", "debate", "done"] >= len(ours)
    tokens = sum(count for (name, *_), count in counted.items() if name == "aiflow_tokens_total")
    assert tokens >= sum(sample["usage"]["tokens_in"] + sample["usage"]["tokens_out"] for sample in ours) > 0
    links = {key[1:]: count for key, count in counted.items() if key[0] == "aiflow_link_bytes_total"}
    assert links and all(to in link.split(" - ") for link, to in links)


@pytest.mark.ray
def test_a_node_publishes_them() -> None:
    pytest.importorskip("opencensus", reason="Ray publishes no metrics: pip install 'ray[default]'")
    import time

    import ray
    from ray.util.metrics import Counter

    ray.init(num_cpus=1, include_dashboard=False, _system_config={"metrics_report_interval_ms": 500})
    try:
        hook = RayMetrics()
        hook.on_run_start(None)  # type: ignore[arg-type]
        assert all(isinstance(counter, Counter) for counter in hook._of.values())
        hook._count("aiflow_tokens_total", 42, member="ann", node="phone", way="out")
        [node] = ray.nodes()
        said, end = "", time.monotonic() + 30
        while "ray_aiflow_tokens_total" not in said and time.monotonic() < end:
            time.sleep(0.5)
            said = urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=5).read().decode()
        [line] = [line for line in said.splitlines() if line.startswith("ray_aiflow_tokens_total{")]
        assert 'member="ann"' in line and line.endswith(" 42.0")
    finally:
        ray.shutdown()
