"""A whole evaluation with models whose skills are known, so that the outcome is known before."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiflow_agents.errors import UserError
from aiflow_agents.evals import runner
from aiflow_agents.evals.runner import new_run_path
from aiflow_agents.evals.statistics import wilson
from aiflow_agents.models.protocol import CallError

ARM = {"kind", "n", "n_failed", "accuracy", "ci95", "flops", "tokens_in", "tokens_out", "wire_bytes", "latency_s", "energy_j"}
VERDICT = {"arm", "against", "delta", "ci95", "p", "mde", "wins", "losses", "ties", "capture", "says"}
USAGE = {"flops", "tokens_in", "tokens_out", "calls", "wire_bytes", "latency_s", "energy_j"}


def samples(report: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (report.folder / "samples.jsonl").read_text().splitlines()]


def by_task(report: Any, arm: str, key: str = "correct") -> dict[str, Any]:
    return {s["task_id"]: s[key] for s in samples(report) if s["arm"] == arm}


def says(report: Any, arm: str, against: str = "members") -> str:
    return next(v["says"] for v in report.summary["verdicts"] if (v["arm"], v["against"]) == (arm, against))


@pytest.fixture
def specialists(room: Any) -> Any:
    return room.evaluate()


def test_complementary_specialists_beat_every_member(room: Any, specialists: Any) -> None:
    summary = specialists.summary
    for arm in ("router", "weighted"):
        assert says(specialists, arm) == "beats" and specialists.accuracy(arm) > 0.9
    assert summary["best_topology"]["arm"] in ("router", "weighted") and summary["best_topology"]["chosen_on"] == "dev"
    assert specialists.says == "beats" and specialists.gain > 0.3
    assert says(specialists, summary["best_topology"]["arm"], "self-consistency@flops") == "beats"
    right = {name: by_task(specialists, name) for name in ("ann", "bob", "cid", "oracle", "router")}
    for task in right["oracle"]:  # what the models know is known
        question = f"{room.SKILLS[int(task[5:]) % 3]} {1000 + int(task[5:])}"
        knows = {"ann": room.knows["ant"](question), "bob": room.knows["bee"](question), "cid": room.knows["cat"](question)}
        assert {name: right[name][task] for name in knows} == knows
        assert right["oracle"][task] == any(knows.values())


def test_the_folder_holds_what_was_promised(room: Any, specialists: Any) -> None:
    summary, folder = specialists.summary, specialists.folder
    assert json.loads((folder / "summary.json").read_text()) == summary
    best, weighted = summary["best_member"]["arm"], summary["arms"]["weighted"]["measures"]
    row = next(v for v in summary["verdicts"] if (v["arm"], v["against"]) == ("weighted", "members"))
    assert weighted["synergy"]["strong"] == pytest.approx(row["delta"]) and weighted["capture"] == pytest.approx(row["capture"][0])
    assert (weighted["flips"]["wrong_to_right"], weighted["flips"]["right_to_wrong"]) == (row["wins"] / 45, row["losses"] / 45)
    assert weighted["message_density"] == 0 and weighted["traced"] == runner.TRACED and weighted["coordination_overhead"] == 2
    assert summary["arms"]["self-talk"]["measures"]["message_density"] == 0.5, "the second of two calls hears the first"
    assert summary["arms"][best]["measures"]["error_amplification"] == 1 and summary["measures"]["co_failure"] == 1 - summary["arms"]["oracle"]["accuracy"]
    assert {"schema", "run_id", "suite", "seed", "split", "git", "packages", "n_tasks", "arms", "best_member", "best_topology", "verdicts"} <= {*summary}
    assert (summary["suite"], summary["seed"], summary["split"], summary["n_tasks"], summary["run_id"]) == ("quiz", 0, "test", 45, folder.name)
    members, topologies = {"ann", "bob", "cid"}, {"majority", "weighted", "router"}
    rivals = {"self-consistency@flops", "self-consistency@tokens", "self-talk", "random", "vote", "vote@weighted", "vote@most-confident"}
    rivals |= {"vote@flops", "oracle"}
    rivals -= {"vote@weighted"} if summary["best_topology"]["arm"] == "weighted" else set()
    assert {name: arm["kind"] for name, arm in summary["arms"].items()} == (
        dict.fromkeys(members, "member") | dict.fromkeys(rivals, "rival") | dict.fromkeys(topologies, "topology")
    )
    assert summary["packages"]["torch"] and {v["against"] for v in summary["verdicts"]} == {"members"} | rivals - {"oracle"}
    lines = samples(specialists)
    assert len(lines) == 45 * len(summary["arms"]) == len({(s["arm"], s["task_id"], s["repeat"]) for s in lines})
    for line in lines:
        assert {"arm", "task_id", "repeat", "answer", "expected", "score", "correct", "status", "error", "confidence", "seed", "tags", "usage"} <= {*line}
        assert {*line["usage"]} == USAGE and line["correct"] == (line["answer"] == line["expected"]) == (line["score"] == 1.0)
    for name, arm in summary["arms"].items():  # every number of an arm follows from its lines
        own = [line for line in lines if line["arm"] == name]
        assert ARM <= {*arm} and arm["n"] == 45 and arm["n_failed"] == 0
        assert arm["accuracy"] == pytest.approx(np.mean([line["score"] for line in own]))
        assert arm["ci95"] == list(wilson(sum(line["correct"] for line in own), 45))
        for key in ("flops", "tokens_in", "tokens_out", "wire_bytes", "energy_j"):
            assert arm[key] == pytest.approx(np.mean([line["usage"][key] for line in own]))
        latencies = [line["usage"]["latency_s"] for line in own]
        assert arm["latency_s"] == {"p50": pytest.approx(np.percentile(latencies, 50)), "p95": pytest.approx(np.percentile(latencies, 95))}
        assert arm["flops"] > 0 or name == "oracle"
    assert all(VERDICT <= {*v} for v in summary["verdicts"])
    assert "per token" not in (folder / "report.html").read_text()
    traces = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    assert {trace["arm"] for trace in traces} == {*summary["arms"]} - {"oracle"} and all(trace["spans"] for trace in traces)
    assert (folder / "report.html").stat().st_size > 5000 and "dev done" in (folder / "run.log").read_text()


def test_when_answers_were_at_home_is_said_of_arms_that_stream(room: Any) -> None:
    from rich.console import Console

    from aiflow_agents.evals.report import show

    room.team("trio", {"ann": "ant", "bob": "bee", "cid": "cat"}, network="metro-5g")
    room.suite("brief", dev=6, test=9, topologies="[majority, stream: {member: bob}]")
    report = room.evaluate("brief")
    streamed, lines = report.summary["arms"]["stream(member=bob)"], samples(report)
    own = [line for line in lines if line["arm"] == "stream(member=bob)"]
    assert all(line["delivery"]["first_token_s"] <= line["usage"]["latency_s"] and line["delivery"]["tokens"] == 5 for line in own) and len(own) == 9
    for line in own:  # four tokens follow the first, and the last of them ends the answer
        gap_s = line["usage"]["latency_s"] - line["delivery"]["first_token_s"]
        assert line["delivery"]["ms_per_token"] == pytest.approx(250 * gap_s, abs=1e-3)
    firsts = [line["delivery"]["first_token_s"] for line in own]
    assert streamed["first_token_s"] == {"p50": pytest.approx(np.percentile(firsts, 50)), "p95": pytest.approx(np.percentile(firsts, 95))}
    assert streamed["ms_per_token"] == pytest.approx(np.mean([line["delivery"]["ms_per_token"] for line in own]))
    others = [arm for name, arm in report.summary["arms"].items() if name != "stream(member=bob)"]
    assert not any({"first_token_s", "ms_per_token"} & {*arm} for arm in others)
    assert not any("delivery" in line for line in lines if line["arm"] != "stream(member=bob)")
    shown = io.StringIO()
    show(report.summary, Console(width=250, file=shown))
    assert "per token" in shown.getvalue() and "per token" in (report.folder / "report.html").read_text()


def test_copies_of_one_model_never_beat_it(room: Any) -> None:
    room.suite("same", dev=24, test=45, team="copies", topologies="[single, majority, weighted, debate, mixture]")
    report = room.evaluate("same")
    assert {v["says"] for v in report.summary["verdicts"] if v["against"] == "members"} == {"not shown"}
    assert len({arm["accuracy"] for name, arm in report.summary["arms"].items() if "self" not in name}) == 1
    assert all(v["ties"] == 45 for v in report.summary["verdicts"] if v["against"] == "members") and report.gain == 0.0


CRAMMER = """
from aiflow_agents.topology.base import Topology

class Crammer(Topology):
    notes: dict[str, str] = {}

    def fit(self, trial):
        knows = {q: next((m for m in trial.correct if trial.correct[m][i]), "ann") for i, q in enumerate(trial.questions)}
        return self.model_copy(update={"notes": knows})

    async def run(self, task, team):
        return await team[self.notes.get(task.question, "ann")].ask(task.question)
"""


def test_who_has_learned_dev_by_heart_is_not_chosen_for_it(room: Any) -> None:
    """On dev itself it is right wherever anyone is; on what it has not seen it is ann."""
    (room.root / "topologies").mkdir()
    (room.root / "topologies" / "crammer.py").write_text(CRAMMER)
    room.suite("exam", dev=60, test=60, topologies="[router, crammer]")
    summary = room.evaluate("exam").summary
    assert summary["best_topology"]["arm"] == "router"
    assert summary["arms"]["router"]["accuracy"] > summary["arms"]["crammer"]["accuracy"] + 0.2


SHAM = """
from aiflow_agents.topology.base import Topology

class Sham(Topology):
    @property
    def control(self):
        return True

    async def run(self, task, team):
        return await team[{"alpha": "ann", "bravo": "bob", "carol": "cid"}[task.question[:5]]].ask(task.question)
"""


def test_a_control_is_judged_apart_and_never_chosen(room: Any) -> None:
    (room.root / "topologies").mkdir()
    (room.root / "topologies" / "sham.py").write_text(SHAM)
    room.suite("trick", dev=24, test=45, topologies="[majority, sham]")
    summary = room.evaluate("trick").summary
    assert summary["arms"]["sham"]["kind"] == "placebo" and summary["arms"]["sham"]["accuracy"] == 1.0
    assert summary["best_topology"]["arm"] == "majority"
    rows = [v for v in summary["verdicts"] if v["against"] == "members"]
    assert [v["arm"] for v in rows] == ["majority", "sham"]
    assert all(v["p_holm"] == v["p"] for v in rows)  # each alone in its family: a control makes nothing harder to show


@pytest.mark.parametrize("know", [True, False])
def test_where_all_know_all_or_nothing_there_is_nothing_to_show(room: Any, know: bool) -> None:
    room.knows = dict.fromkeys(room.knows, lambda question: know)
    report = room.evaluate(limit=24)
    assert {v["says"] for v in report.summary["verdicts"]} == {"not shown"}
    assert {arm["accuracy"] for arm in report.summary["arms"].values()} == {float(know)}


def test_what_is_chosen_is_chosen_on_dev_alone(room: Any) -> None:
    """Dev and test disagree about everything. Whatever is right on test, the same is chosen and learned, and it is what dev says."""

    def dev(question: str) -> bool:
        return int(question.split()[1]) < 1000

    def run(right_on_test: bool) -> Any:
        def ant(request: Any) -> tuple[str, float]:
            question, warm = request.messages[0].content, request.sampling.temperature
            if dev(question):
                right = warm in (0.0, 0.3)  # 0.3 is the best temperature, and only on dev
            else:
                right = right_on_test and warm in (0.0, 1.0)
            return (room.truth(question) if right else f"wrong {request.seed}", 0.6)

        room.say = {"ant": ant}
        room.knows["bee"] = lambda question: room.luck(1, question) < 0.5 if dev(question) else not right_on_test
        room.knows["cat"] = lambda question: False
        return room.evaluate("choice")

    topologies = "[{single: {member: ann}}, {single: {member: bob}}, self-consistency, cascade, router, weighted]"
    room.suite("choice", dev=45, test=24, topologies=topologies)
    one, other = run(True), run(False)
    assert one.accuracy("bob") == 0.0 and other.accuracy("bob") == 1.0  # the two test sets could not differ more
    for report in (one, other):
        assert report.summary["best_member"] == {"arm": "ann", "chosen_on": "dev"}
        assert report.summary["learned"]["self-consistency"]["temperature"] == 0.3
        assert report.summary["learned"]["self-talk"]["member"] == "ann"
    assert one.summary["learned"] == other.summary["learned"] and one.summary["best_topology"] == other.summary["best_topology"]
    assert other.summary["best_topology"]["arm"] == "single(member=ann)" and other.accuracy("single(member=ann)") == 0.0  # as dev says, though it fails
    # ann says 0.6 and is always right on dev; so she counts as surer than that on test, where she is always wrong
    assert min(by_task(other, "weighted", "confidence").values()) > 0.6
    assert by_task(one, "ann", "confidence") == by_task(other, "ann", "confidence")


def test_self_consistency_gets_the_flops_of_the_best_topology_or_is_greedy(room: Any) -> None:
    def unsure(request: Any) -> tuple[str, float]:
        """Right nine times out of ten when sampled, on a skill on which the greedy answer is wrong."""
        question, warm = request.messages[0].content, request.sampling.temperature > 0
        right = room.luck(request.seed, "s") < 0.9 if warm else room.luck("g", question) < 0.3
        return (room.truth(question) if right else f"n{request.seed % 1000:03}", 0.5)  # as long as the truth, so that luck costs nothing

    room.say = {"ant": unsure}
    room.knows |= {"bee": lambda question: room.luck(1, question) < 0.1, "cat": lambda question: room.luck(2, question) < 0.1}
    report = room.evaluate(topologies=["debate"])
    rival = report.summary["learned"]["self-consistency@flops"]
    assert rival["member"] == "ann" == report.summary["best_member"]["arm"] and rival["samples"] > 2
    assert report.summary["arms"]["self-consistency@flops"]["flops"] >= 0.98 * report.summary["arms"]["debate"]["flops"]  # chosen on dev
    assert report.accuracy("self-consistency@flops") > 0.9 > report.accuracy("ann")
    room.say = {"ant": lambda request: (room.truth(request.messages[0].content) if request.sampling.temperature == 0 else "no", 0.5)}
    greedy = room.evaluate(topologies=["debate"])
    assert "samples" not in greedy.summary["learned"]["self-consistency@flops"] and greedy.accuracy("self-consistency@flops") == greedy.accuracy("ann")


def test_talking_is_held_against_the_vote_of_the_same_members_at_equal_flops(room: Any) -> None:
    def unsure(request: Any) -> tuple[str, float]:
        """Asked alone, right six times out of ten when sampled, on questions of which the greedy answer is hardly ever right."""
        question, warm = request.messages[0].content, request.sampling.temperature > 0
        right = room.luck(request.seed, "s") < 0.6 if warm and len(request.messages) == 1 else room.luck(question) < 0.1
        return (room.truth(question) if right else f"n{request.seed % 1000:03}", 0.5)

    room.say = dict.fromkeys(room.knows, unsure)
    report = room.evaluate(topologies=["debate"])
    learned, arms = report.summary["learned"]["vote@flops"], report.summary["arms"]
    assert learned["samples"] > 1 and arms["vote@flops"]["calls"] == 3 * learned["samples"]
    assert 0.98 * arms["debate"]["flops"] <= arms["vote@flops"]["flops"] < 1.2 * arms["debate"]["flops"]  # chosen on dev, by whole samples
    assert arms["vote@flops"]["accuracy"] > arms["self-consistency@flops"]["accuracy"] - 0.1 > 0.7 > arms["vote"]["accuracy"]
    assert says(report, "debate", "vote@flops") == "loses"


def test_a_single_model_of_the_teams_size_is_a_rival(room: Any, models: list[Path]) -> None:
    from tests.conftest import make_model

    make_model(room.root / "dog", seed=9)
    room.knows["dog"] = lambda question: room.luck("dog", question) < 0.97
    report = room.evaluate(monolith="./dog", limit=30)
    row = report.summary["arms"]["monolith"]
    truth = {task: room.knows["dog"](f"{room.SKILLS[int(task[5:]) % 3]} {1000 + int(task[5:])}") for task in by_task(report, "monolith")}
    assert by_task(report, "monolith") == truth and row["kind"] == "rival" and row["calls"] == 1 and row["wire_bytes"] > 0
    assert says(report, report.summary["best_topology"]["arm"], "monolith") == "not shown"
    config = json.loads((report.folder / "config.json").read_text())
    assert config["monolith"] == str(room.root / "dog") and config["members"]["monolith"].startswith("dog ")
    make_model(room.root / "dog", seed=10)
    with pytest.raises(UserError, match="members was"):
        room.evaluate(monolith="./dog", limit=30, path=report.folder, resume=True)
    assert "monolith" not in room.evaluate(limit=6).summary["arms"]


def test_arms_that_do_the_same_are_run_once_and_each_has_its_samples(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: Counter[str] = Counter()

    def run_jobs(jobs: Any, *arguments: Any, **options: Any) -> None:
        some = list(jobs)
        ran.update(job.arm for job in some if job.task.id.startswith("test"))
        runtime_run_jobs(some, *arguments, **options)

    runtime_run_jobs = runner.run_jobs
    monkeypatch.setattr(runner, "run_jobs", run_jobs)
    report = room.evaluate(topologies=["majority", {"single": {"member": "bob"}}, "router"])
    assert report.summary["best_topology"]["arm"] == "router" and "vote" in report.summary["arms"]
    assert "vote" in ran and "majority" not in ran and "bob" in ran and "single(member=bob)" not in ran
    lines = samples(report)
    for one, other in (("vote", "majority"), ("bob", "single(member=bob)")):
        rows = [sorted(({**line, "arm": ""} for line in lines if line["arm"] == arm), key=lambda line: line["task_id"]) for arm in (one, other)]
        assert rows[0] == rows[1] and len(rows[0]) == 45
    whole = {arm: sorted(line["task_id"] for line in lines if line["arm"] == arm) for arm in report.summary["arms"]}
    # killed between the sample of the one and that of the other
    keep = [line for line in lines if not (line["arm"] == "majority" and line["task_id"] in ("test-3", "test-7"))]
    (report.folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in keep))
    ran.clear()
    again = room.evaluate(topologies=["majority", {"single": {"member": "bob"}}, "router"], path=report.folder, resume=True)
    assert ran == {"vote": 2} and again.summary == report.summary
    assert len(samples(again)) == len(lines), "what one of them had written is not written again"
    assert {arm: sorted({line["task_id"] for line in samples(again) if line["arm"] == arm}) for arm in whole} == whole


def test_failed_answers_are_wrong_and_listed_and_tried_again(room: Any) -> None:
    broken = {"on": True}

    def ant(request: Any) -> Any:
        question = request.messages[0].content
        if broken["on"] and question.endswith(("1003", "1010")):
            return CallError("failed", "out of memory")
        return (room.truth(question), 0.9) if room.knows["ant"](question) else ("?", 0.4)

    room.say = {"ant": ant}
    report = room.evaluate(limit=20)
    arm = report.summary["arms"]["ann"]
    assert arm["n_failed"] == 2 and arm["n"] == 20 and report.n_failed > 2
    failed = [line for line in samples(report) if line["status"] == "failed"]
    assert {line["task_id"] for line in failed} == {"test-3", "test-10"} and "majority" in {line["arm"] for line in failed}
    assert all(line["score"] == 0 and not line["correct"] and line["answer"] is None for line in failed)
    assert all("ann: out of memory" in line["error"] for line in failed)
    assert "ann failed on test-10: MemberFailed: ann: out of memory" in (report.folder / "run.log").read_text()
    assert "out of memory" in (report.folder / "report.html").read_text() and "failed" in str(report)
    assert not by_task(report, "oracle")["test-3"]  # ann alone would have known
    broken["on"] = False
    again = room.evaluate(limit=20, path=report.folder, resume=True)
    assert again.n_failed == 0 and again.accuracy("oracle") > report.accuracy("oracle")
    fresh = room.evaluate(limit=20)
    assert {**again.summary, "run_id": ""} == {**fresh.summary, "run_id": ""}


def test_who_has_met_before_a_kill_need_not_meet_again(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of a family introduce themselves once a run, and the first task pays for it: also where the run was stopped in between."""
    from aiflow_agents import evaluate
    from aiflow_agents.evals.run_folder import RunFolder
    from aiflow_agents.models.family.model import FamilyModel
    from aiflow_agents.runtime.hosts import InlineHosts
    from tests.conftest import exits_team, make_family

    team = exits_team(make_family(room.root / "bud", layers=6, exits=(1, 3, 5)), room.root, max_tokens=3)
    room.suite("talk", dev=6, test=12, topologies="[feature-relay]")
    monkeypatch.setattr(runner, "SLICE", 4)

    def run(name: str, **options: Any) -> list[dict[str, Any]]:
        hosts = InlineHosts(load=lambda folder: FamilyModel.load(Path(folder)))
        report = evaluate("talk", team, path=room.root / name, hosts=hosts, **options)
        return sorted(samples(report), key=lambda line: (line["arm"], line["task_id"]))

    whole, add = run("whole"), RunFolder.add

    def stopped(folder: RunFolder, rows: Any) -> None:
        if len(folder.samples) == 70:
            raise KeyboardInterrupt
        add(folder, rows)

    monkeypatch.setattr(RunFolder, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.setattr(RunFolder, "add", add)
    assert run("cut", resume=True) == whole
    assert [line["task_id"] for line in whole if "met" in line] == ["test-0"], "of twelve tasks one pays"


def test_repeats_are_samples_of_one_task(room: Any) -> None:
    def ant(request: Any) -> tuple[str, float]:
        return (room.truth(request.messages[0].content) if room.luck(request.seed) < 0.5 else "no", 0.5)

    room.say = {"ant": ant}
    report = room.evaluate(topologies=[{"self-consistency": {"member": "ann", "samples": 1, "temperature": 0.7}}], limit=12, repeats=3)
    lines = [line for line in samples(report) if line["arm"].startswith("self-consistency(")]
    assert len(lines) == 36 and {line["repeat"] for line in lines} == {0, 1, 2}
    assert len({(line["task_id"], line["correct"]) for line in lines}) > 12  # the draws of one task differ
    assert report.summary["n_tasks"] == 12 and report.summary["repeats"] == 3


def test_a_run_is_the_same_every_time_and_another_seed_is_another_run(room: Any) -> None:
    room.suite("sums", dev=8, test=8)
    (room.root / "evals" / "sums" / "eval.yaml").write_text("team: trio\nskills: [add]\ntasks: {dev: 8, test: 8}\ntopologies: [majority]\n")
    runs = [samples(room.evaluate("sums", seed=seed)) for seed in (0, 0, 1)]
    order = [sorted(run, key=lambda s: (s["arm"], s["task_id"])) for run in runs]
    assert order[0] == order[1]
    assert {s["question"] for s in runs[0]}.isdisjoint(s["question"] for s in runs[2])


def test_arms_have_names_of_their_own(room: Any) -> None:
    room.team("odd", {"vote": "ant", "bob": "bee"})
    with pytest.raises(UserError, match="member of team 'odd' is called 'vote', which is the name of another arm"):
        room.evaluate(team="odd")
    room.team("odder", {"majority": "ant", "bob": "bee"})
    with pytest.raises(UserError, match="two arms would be called 'majority'"):
        room.evaluate(team="odder")
    (room.root / "mine.py").write_text((Path(__file__).parents[2] / "topologies" / "majority.py").read_text())
    with pytest.raises(UserError, match="two arms would be called 'majority'"):
        room.evaluate(topologies=["majority", "./mine.py"])
    assert not (room.root / "logs").exists()


def test_folders_that_begin_in_the_same_second(tmp_path: Path) -> None:
    made = set()
    for _ in range(3):
        path = new_run_path(tmp_path, "s")
        path.mkdir()
        made.add(path)
    assert len(made) == 3
