"""Drafting against streaming: every cell is what two runs on such a network say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from aiflow_agents.cli import main as door
from aiflow_agents.errors import UserError
from aiflow_agents.evals.evaluate import evaluate
from aiflow_agents.evals.sweep import distant, sweep
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    topologies = ["stream", "draft-verify", "majority"]
    return evaluate("worked", topologies=topologies, limit=9, seed=7, runtime="inline", log_dir=folder)


def test_a_cell_is_what_runs_on_that_network_say(run) -> None:
    found = sweep(run.folder, rtt_ms=(4.0, 400.0), mbps=(5.0,), heats=(0.0, 4.0), questions=9)
    assert found == json.loads((run.folder / "sweep.json").read_text())
    assert (found["arm"], found["against"], found["n_questions"], len(found["cells"])) == ("draft-verify", "stream", 9, 4)
    team = Team.load("cedar-large")
    far = replace(team, network=distant(team.network, 0.4, 5e6))
    asked = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    tasks = [Task(sample["task_id"], sample["question"]) for sample in asked if sample["arm"] == "stream"]
    cell = next(c for c in found["cells"] if (c["rtt_ms"], c["heat"]) == (400.0, 0.0))
    for name, key in (("draft-verify", "ms_per_token"), ("stream", "stream_ms_per_token")):
        results: list[Result] = []
        run_jobs([Job("arm", load_topology(name), task, far) for task in tasks], InlineHosts(), Memory(), results.append, seed=7)
        took, tokens = sum(result.usage.latency_s for result in results), sum(result.delivery.tokens for result in results if result.delivery)
        assert cell[key] == pytest.approx(1000 * took / tokens)
    cold = [c for c in found["cells"] if c["heat"] == 0.0]
    assert cold[0]["ms_per_token"] < cold[1]["ms_per_token"] and cold[0]["stream_ms_per_token"] < cold[1]["stream_ms_per_token"]
    assert all(c["speedup"] == pytest.approx(c["stream_ms_per_token"] / c["ms_per_token"]) and not c["different"] for c in found["cells"])
    warm = [c for c in found["cells"] if c["heat"] == 4.0]
    assert all(hot["acceptance_rate"] < 0.9 < c["acceptance_rate"] and hot["speedup"] < c["speedup"] for hot, c in zip(warm, cold, strict=True))
    assert 0 < cell["busy_ratio"] < 0.6
    page = (run.folder / "report.html").read_text()
    assert 'href="#sweep"' in page and page.count('class="drawing sweep"') == 1 and 'href="#decoding"' in page


def test_arms_say_how_true_they_are_and_what_a_token_took(run) -> None:
    arms = run.summary["arms"]
    assert arms["stream"]["fidelity"] == arms["draft-verify"]["fidelity"] == "exact" and "fidelity" not in arms["majority"]
    drafted, streamed = arms["draft-verify"]["decoding"], arms["stream"]["decoding"]
    assert streamed["acceptance_rate"] is None and 0.9 < drafted["acceptance_rate"] <= 1 and drafted["tokens_a_check"] > 1.5
    assert drafted["cloud_busy_ms_per_token"] < 0.6 * streamed["cloud_busy_ms_per_token"]
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    own = [sample for sample in samples if sample["arm"] == "stream"]
    tokens = sum(sample["decoding"]["tokens"] for sample in own)
    assert tokens == sum(sample["usage"]["tokens_out"] for sample in own)
    assert streamed["bytes_per_token"] == pytest.approx(sum(sample["usage"]["wire_bytes"] for sample in own) / tokens)
    texts = {sample["task_id"]: sample["answer"] for sample in own}
    assert all(texts[sample["task_id"]] == sample["answer"] for sample in samples if sample["arm"] == "draft-verify")


def test_the_way_to_the_cloud_is_as_long_as_asked() -> None:
    home = Team.load("cedar").network
    far = distant(home, 0.3, 2e6)
    there, back = far.latency_s(far.home, "cloud"), far.latency_s("cloud", far.home)
    assert there + back == pytest.approx(0.3) and far.latency_s(far.home, "edge") == home.latency_s(home.home, "edge")
    assert {link.up_bps for link in far.links if "cloud" in (link.a, link.b)} == {2e6}
    assert distant(home, 0.0, 2e6).latency_s(home.home, "cloud") == pytest.approx(home.latency_s(home.home, "edge"))  # no less than the first links take


def test_what_cannot_be_swept_is_said_in_one_line(run, capsys) -> None:
    with pytest.raises(UserError, match="arm 'majority' does not draft at a temperature"):
        sweep(run.folder, arm="majority")
    with pytest.raises(UserError, match="no arm of this run named 'streem'"):
        sweep(run.folder, against="streem")
    assert door.main(["sweep", str(run.folder), "--rtt", "far"]) == 2
    assert "--rtt far: expected numbers" in capsys.readouterr().err


def test_busy_time_is_that_of_the_ledger() -> None:
    team, found = Team.load("cedar-large"), list[Result]()
    job = Job("arm", load_topology("stream"), Task("1", "words 4827>"), team)
    run_jobs([job], InlineHosts(), Memory(), found.append)
    (result,) = found
    assert result.decoding is not None and result.decoding.cloud_busy_s == pytest.approx(result.members["bole"].busy_s)
    assert asdict(result.decoding)["drafted"] == 0 and result.decoding.acceptance_rate is None
