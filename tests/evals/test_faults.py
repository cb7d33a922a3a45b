"""Evaluations under faults: what is kept of them, answers of a calm run used again, resume, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents import Team
from aiflow_agents.errors import UserError
from aiflow_agents.evals import runner
from tests.evals.conftest import samples

STORM = ["any down 0.004 0.5", "device-edge loss 0.2", "laptop dies 0.508"]


@pytest.fixture(autouse=True)
def small(room: Any) -> None:
    room.suite("quiz", dev=9, test=12)


def test_a_calm_runs_answers_serve_under_any_faults_and_cost_no_model_time(room: Any) -> None:
    topologies = ["majority", {"weighted": {"quorum": 2}}, "debate"]
    calm = room.evaluate(topologies=topologies, limit=5)
    room.batches = 0
    slow = room.evaluate(topologies=topologies, limit=5, faults=["any down 0.001 0.5", "any loss 0.3", "any jitter 0.01"], reuse=[calm.folder])
    assert room.batches == 0
    before, after = samples(calm.folder), samples(slow.folder)
    for key, sample in after.items():
        assert (sample["answer"], sample["confidence"], sample["status"]) == (before[key]["answer"], before[key]["confidence"], "ok")
        if key[0] in ("bob", "majority", "debate"):  # what it costs: a link that is away for half a second, and frames that go again
            assert sample["usage"]["latency_s"] > 0.5 > before[key]["usage"]["latency_s"]
            assert sample["usage"]["wire_bytes"] >= before[key]["usage"]["wire_bytes"]
    assert slow.summary["arms"]["debate"]["wire_bytes"] > calm.summary["arms"]["debate"]["wire_bytes"]
    dead = room.evaluate(topologies=topologies, limit=5, faults=["laptop dies 0"], reuse=[calm.folder])
    assert room.batches == 0
    failed = {arm: {sample["status"] for (own, _), sample in samples(dead.folder).items() if own == arm} for arm in dead.summary["arms"]}
    # what has a quorum is the best on dev, and its rivals have it too
    assert {arm for arm, status in failed.items() if status == {"failed"}} == {"cid", "majority", "debate"} and failed["random"] == {"ok", "failed"}
    assert dead.summary["best_topology"]["arm"] == "weighted(quorum=2)" and failed["vote@flops"] == failed["vote"] == {"ok"}
    assert "vote@weighted" not in failed and dead.summary["learned"]["vote"]["quorum"] == 2
    assert "MemberFailed: cid: message q0 cannot get from phone to laptop: laptop died after 0 s, for good" in (dead.folder / "run.log").read_text()


def test_a_run_keeps_its_faults_and_goes_on_under_them_as_if_nobody_had_stopped_it(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SLICE", 3)
    options = dict(topologies=["majority", {"debate": {"quorum": 2}}], limit=8, faults=STORM)
    whole = room.evaluate(**options)
    assert json.loads((whole.folder / "config.json").read_text())["faults"] == whole.summary["faults"] == STORM
    assert whole.n_failed > 0 and whole.summary["arms"]["debate(quorum=2)"]["n_failed"] == 0
    path = room.root / "logs" / "killed"
    room.batches, room.stop_at = 0, room.batches - 5
    with pytest.raises(KeyboardInterrupt):
        room.evaluate(**options, path=path)
    room.stop_at = None
    assert 0 < len(samples(path)) < len(samples(whole.folder))
    again = room.evaluate(**options, path=path, resume=True)
    assert samples(path) == samples(whole.folder) and {**again.summary, "run_id": ""} == {**whole.summary, "run_id": ""}
    for faults, said in (([], "is None"), (STORM[:2], "is \\['any down 0.004 0.5', 'device-edge loss 0.2'\\]")):
        with pytest.raises(UserError, match=f"faults was .* and {said}"):
            room.evaluate(**{**options, "faults": faults}, path=whole.folder, resume=True)


def test_a_team_and_a_networks_file_bring_theirs(room: Any, tmp_path: Path) -> None:
    network = Path("topologies/networks/stormy.yaml")
    network.parent.mkdir(parents=True)
    from aiflow_agents import catalog

    network.write_text(catalog.find("network", "home-wifi").path.read_text() + "faults: [edge-cloud down 1 2]\n")
    report = room.evaluate(topologies=["majority"], limit=3, network="stormy", faults=["any jitter 0.01"])
    assert report.summary["faults"] == ["edge-cloud down 1.0 2.0", "any jitter 0.01"]
    team = Team.load("trio").with_faults("laptop dies 0.508")
    assert room.evaluate("quiz", team, ["majority"], limit=3, faults=["laptop dies 0.508"]).summary["faults"] == ["laptop dies 0.508"]
    with pytest.raises(UserError, match="a list of texts"):
        room.evaluate(topologies=["majority"], faults="laptop dies 0.508")


# --- the command line ---


EVAL = ("eval", "--runtime", "inline", "--display", "none", "--json")


def test_eval_takes_faults_repeats_them_and_resumes_under_no_others(room: Any, aiflow: Any) -> None:
    given = [word for fault in STORM for word in ("--fault", fault)]
    code, out, _ = aiflow(*EVAL, "quiz", "--limit", "3", "--topology", "majority", *given)
    first = json.loads(out)
    assert first["faults"] == STORM
    folder = first["folder"]
    repeated = json.loads(aiflow(*EVAL, "--config", folder, "--reuse", folder)[1])
    assert repeated["faults"] == STORM and repeated["arms"] == first["arms"]
    assert json.loads(aiflow(*EVAL, "--resume", folder)[1])["arms"] == first["arms"]
    code, _, err = aiflow(*EVAL, "--resume", folder, "--fault", "any loss 0.1")
    assert code == 2 and err.count("\n") == 1 and "faults was ['any down 0.004 0.5'" in err and "--fault 'any loss 0.1'" in err
    code, out, _ = aiflow("eval", "--config", folder, "--dry-run", "--fault", "any loss 0.1")
    assert code == 0 and "on home-wifi, any loss 0.1: ann" in out
    code, out, _ = aiflow("eval", "quiz", "--dry-run", "--topology", "majority", "--fault", "laptop dies 0.508")
    assert code == 0 and "team trio on home-wifi, laptop dies 0.508: ann at phone" in out
    for fault, said in (("laptop dies", "NODE dies AT [FOR]"), ("labtop dies 1", "no node or tier 'labtop'"), ("phone dies 1", "is the home")):
        for command in (("run", "alpha 1001", "--team", "trio"), ("eval", "quiz")):
            code, out, err = aiflow(*command, "--fault", fault)
            assert code == 2 and out == "" and err.count("\n") == 1 and said in err


def test_run_takes_faults_and_says_them_as_data(room: Any, aiflow: Any) -> None:
    asked = ("run", "bravo 1001", "--team", "trio", "--topology", "weighted")
    calm = json.loads(aiflow(*asked, "--json")[1])
    slow = json.loads(aiflow(*asked, "--json", "--fault", "any down 0 0.5", "--fault", "any jitter 0")[1])
    assert slow["answer"] == calm["answer"] and slow["usage"]["latency_s"] > 0.5 > calm["usage"]["latency_s"]
    assert slow["faults"] == ["any down 0.0 0.5", "any jitter 0.0"] and "faults" not in calm
    code, out, err = aiflow(*asked, "--fault", "laptop dies 0")
    assert code == 1 and err == "aiflow: MemberFailed: cid: message q0 cannot get from phone to laptop: laptop died after 0 s, for good\n"
    assert aiflow(*asked, "-T", "quorum=2", "--fault", "laptop dies 0")[0] == 0
    code, out, err = aiflow(*asked, "--clock", "real", "--fault", "laptop dies 1")
    assert code == 2 and "give `pace` (`--pace`)" in err and err.count("\n") == 1
    code, out, err = aiflow(*asked, "--clock", "real", "--pace", "--json", "--fault", "any down 0 0.2")
    assert code == 0 and json.loads(out)["usage"]["latency_s"] >= 0.2


def test_show_prints_the_faults_of_a_network(room: Any, aiflow: Any) -> None:
    file = room.root / "topologies" / "networks" / "storm.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("home: a\nnodes:\n  a: {tier: device, flops_rate: 1, bandwidth_Bps: 1}\nfaults: [any loss 0.1]\n")
    assert "any loss 0.1" in aiflow("show", "storm")[1]
