"""`evaluate` and `plan`: what is looked up where, what is found out before a run, and what a run folder can be gone on with."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import ConfigError, UnknownName, UserError
from aiflow_agents.evals.evaluate import evaluate, plan
from aiflow_agents.evals.rehearsal import calls_at_most
from aiflow_agents.evals.run_folder import OtherRun
from aiflow_agents.evals.start import start_hosts


def topology(room: Any, name: str, body: str, fields: str = "") -> str:
    file = room.root / f"{name.lower()}.py"
    file.write_text(f"from aiflow_agents import Topology, gather\n\nclass {name}(Topology):\n{fields}    async def run(self, task, team):\n{body}\n")
    return f"./{file.name}"


def test_names_are_settled_before_the_run_and_nothing_is_written(room: Any) -> None:
    for error, match, arguments in (
        (UnknownName, "no suite named 'quizz'; did you mean quiz", ["quizz"]),
        (UnknownName, "no team named 'tri'; did you mean trio", ["quiz", "tri"]),
        (UnknownName, "no topology named 'majorty'; did you mean majority", ["quiz", None, ["majorty"]]),
        (UserError, "named 'round'; did you mean rounds", ["quiz", None, [{"debate": {"round": 1}}]]),
        (UnknownName, "no member of team 'trio' named 'dan'", ["quiz", None, [{"single": {"member": "dan"}}]]),
        (UserError, "needs a member with role 'server'", ["quiz", None, ["star"]]),
    ):
        with pytest.raises(error, match=match):
            room.evaluate(*arguments)
    with pytest.raises(UserError, match="no remembered answers at"):
        room.evaluate(reuse=["nowhere"])
    (room.root / "evals" / "both").mkdir()
    (room.root / "evals" / "both" / "eval.yaml").write_text("suites: [quiz, quiz]\n")
    with pytest.raises(UserError, match="'both' is a group of suites"):
        room.evaluate("both")
    assert not (room.root / "logs").exists() and room.batches == 0


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ("team: trioo", "1: team", "no team named 'trioo'; did you mean trio?"),
        ("network: home-wify", "3: network", "no network named 'home-wify'; did you mean home-wifi?"),
        ("topologies:\n- majority\n- weihgted", "5: topologies[1]", "no topology named 'weihgted'; did you mean weighted?"),
        ("topologies:\n- debate: {round: 2}", "4: topologies[0]", "no parameter of topology 'debate' named 'round'; did you mean rounds?"),
        ("topologies:\n- debate: {rounds: many}", "4: topologies[0]", "topology 'debate', parameter rounds: expected a valid integer"),
    ],
)
def test_what_a_suite_names_wrongly_is_said_with_file_line_and_key(room: Any, line: str, place: str, words: str) -> None:
    team, _, rest = "team: trio\ndata: data.jsonl\n".partition("\n")
    file = room.root / "evals" / "quiz" / "eval.yaml"
    file.write_text(f"{line}\n{rest}" if line.startswith("team") else f"{team}\n{rest}{line}\n")
    with pytest.raises(ConfigError) as caught:
        plan("quiz")
    assert str(caught.value).startswith(f"{file}:{place}: {words}")
    if line.startswith(("team", "network")):  # it is not asked for where another one is given
        assert plan("quiz", "trio", ["majority"], network="home-wifi").test


def test_a_mistake_in_a_file_that_a_suite_names_keeps_its_own_place(room: Any) -> None:
    (room.root / "torn.py").write_text("x = 1\ndef run(:\n")
    room.suite("quiz", dev=36, test=45, topologies="[../../torn.py]")
    with pytest.raises(ConfigError, match=r"^[^:]*torn\.py:2: not valid Python"):
        plan("quiz")


def test_the_rehearsal_finds_what_could_never_work_and_costs_no_model(room: Any) -> None:
    missing = topology(room, "Judge", '        return await team["judge"].ask(task.question)')
    with pytest.raises(UserError, match="no member of team 'trio' named 'judge'"):
        plan("quiz", None, [missing])
    unsure = topology(room, "Unsure", "        a, b, *_ = await team.ask(task.question)\n        return await team[(await b.to(team.home)).answer].ask('x')")
    with pytest.raises(UserError, match="no member of team 'trio' named '"):  # only after an answer is there
        plan("quiz", None, [unsure])
    reads = topology(room, "Reads", "        drafts = await team.ask(task.question)\n        drafts[1].text\n        return drafts[0]")
    with pytest.raises(UserError, match="Reads: message .* is at tablet, not at phone"):
        plan("quiz", None, [reads])
    assert room.batches == 0


@pytest.mark.parametrize("more", ["", ", sampling=Sampling(1.0), sample=i"])
def test_a_rehearsal_ends_though_a_topology_would_not(room: Any, more: str) -> None:
    """It asks until somebody is sure, which a pretender never is; with the same question, and with ever new samples."""
    body = f"        for i in range(10**9):\n            m = await team['ann'].ask(task.question{more})\n            if m.confidence > 0.3: return m"
    patient = topology(room, "Patient", body)
    file = room.root / "patient.py"
    file.write_text(file.read_text().replace("Topology, gather", "Sampling, Topology"))
    began = time.monotonic()
    found = plan("quiz", None, [patient], limit=6)
    with pytest.raises(UserError, match="cannot be counted.* more than 2,000 times"):
        calls_at_most(found)
    assert time.monotonic() - began < 20
    assert room.evaluate(topologies=[patient], limit=6).n_failed == 0


def test_the_calls_of_a_dry_run_are_the_most_there_can_be(room: Any) -> None:
    twice = topology(room, "Twice", "        drafts = await team.ask(task.question)\n        return await team['ann'].ask(task.question, heard=drafts)")
    rating = {"reply": "ratings", "decide": "pooled"}
    names = ["majority", {"debate": {"rounds": 2}}, {"debate": rating}, "router", "cascade", twice]
    counted = calls_at_most(plan("quiz", None, names, limit=12))
    calls = {name: arm["calls"] for name, arm in counted["arms"].items()}
    assert room.batches == 0
    assert calls | {"ann": 1, "majority": 3, "debate(rounds=2)": 9, "debate(reply=ratings, decide=pooled)": 9, "router": 1, "cascade": 3, "twice": 4, "self-talk": 2, "random": 1} == calls
    assert counted["calls_at_most"]["all"] == counted["calls_at_most"]["dev"] + counted["calls_at_most"]["test"]
    report = room.evaluate("quiz", None, names, limit=12)
    assert {*counted["arms"]} >= {*report.summary["arms"]} - {"oracle"}
    for name, arm in report.summary["arms"].items():
        assert name == "oracle" or arm["calls"] <= calls[name]
    asked = len(room_calls(report.folder))
    assert 12 * 2 * 3 < asked <= counted["calls_at_most"]["all"]
    assert calls_at_most(plan("quiz", None, names, limit=12, repeats=3))["calls_at_most"]["test"] == 3 * counted["calls_at_most"]["test"]


def test_calls_that_depend_on_what_members_say_are_counted_as_the_topology_says(room: Any) -> None:
    fields = "    def most_calls(self):\n        return 9\n\n"
    patient = topology(room, "Patient", "        return await team['ann'].ask(task.question)", fields)
    plain = topology(room, "Plain", "        return await team['ann'].ask(task.question)")
    more, less = (calls_at_most(plan("quiz", None, [one], limit=12)) for one in (patient, plain))
    assert (more["arms"]["patient"]["calls"], less["arms"]["plain"]["calls"]) == (9, 1)
    assert all(more["calls_at_most"][split] == less["calls_at_most"][split] + 12 * 8 for split in ("dev", "test"))


def room_calls(folder: Path) -> list[Any]:
    import sqlite3

    with sqlite3.connect(folder / "calls.sqlite") as store:
        return store.execute("select digest from calls").fetchall()


def test_config_says_all_that_is_needed_to_repeat_the_run(room: Any) -> None:
    mine = topology(room, "Mine", "        return await list(team)[self.place].ask(task.question)", "    place: int = 0\n")
    report = room.evaluate("quiz", "trio", [{mine: {"place": "1"}}, "majority"], network="metro-5g", seed=4, limit=9, repeats=2)
    config = json.loads((report.folder / "config.json").read_text())
    assert config["topologies"] == [{str(room.root / "mine.py"): {"place": 1}}, {"majority": {}}]
    assert (config["suite"], config["team"], config["network"]) == ("quiz", "trio", "metro-5g")
    asked = {key: config[key] for key in ("suite", "team", "topologies", "network", "seed", "limit", "repeats")}
    again = evaluate(**asked, hosts=room.hosts(), log_dir=room.root / "logs")
    assert again.folder != report.folder and again.summary["arms"] == report.summary["arms"]
    assert again.summary["repeats"] == 2 and again.summary["network"] == "metro-5g"


def test_going_on_is_refused_where_anything_has_changed(room: Any, models: list[Path]) -> None:
    room.stop_at = 4
    path = room.root / "run"
    with pytest.raises(KeyboardInterrupt):
        room.evaluate(path=path)
    room.stop_at = None

    def differ(**options: Any) -> set[str]:
        with pytest.raises(OtherRun) as refused:
            room.evaluate(path=path, resume=True, **options)
        return {*refused.value.differ}

    assert differ(seed=1) == {"seed", "tasks"} or differ(seed=1) == {"seed"}  # a file's questions are the same for every seed
    assert differ(limit=9) == {"limit", "tasks"}
    assert differ(topologies=["majority"]) == {"topologies"}
    assert differ(team="copies") == {"team", "members"}
    data = room.root / "evals" / "quiz" / "data.jsonl"
    was = data.read_text()
    data.write_text(was.replace(room.truth("alpha 1000"), "0"))
    assert differ() == {"tasks"}
    data.write_text(was)
    room.team("trio", {"ann": "bee", "bob": "bee", "cid": "cat"})  # other weights under the same name
    assert differ() == {"members"}
    room.team("trio", {"ann": "ant", "bob": "bee", "cid": "cat"})
    with pytest.raises(UserError, match="already holds a run"):
        room.evaluate(path=path)
    assert room.evaluate(path=path, resume=True).summary["arms"] == room.evaluate().summary["arms"]


def test_answers_of_another_run_are_not_asked_again(room: Any) -> None:
    first = room.evaluate()
    before = room.batches
    second = room.evaluate(reuse=[first.folder], network="metro-5g")
    assert room.batches == before > 0
    assert second.accuracy("majority") == first.accuracy("majority")
    assert second.summary["arms"]["majority"]["latency_s"] != first.summary["arms"]["majority"]["latency_s"]


def test_ctrl_c_while_ray_starts_is_not_lost_and_leaves_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start in which an interrupt would be swallowed, as those of a fork are."""
    opened, ended = [], []

    def slow(runtime: str, **options: Any) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            opened.append("lost")
        opened.append("open")

    monkeypatch.setattr("aiflow_agents.evals.start.open_hosts", slow)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append(True))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start_hosts("ray")
    assert opened == ["open"] and ended == [True] and signal.getsignal(signal.SIGINT) is before


def test_no_cluster_at_that_address_is_said_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="no Ray cluster at 127.0.0.1:1: .*refused.*ray start --head"):
        start_hosts("ray", "127.0.0.1:1")
    assert time.monotonic() - began < 15


def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(runtime: str, **options: Any) -> Any:
        raise Exception("The current node timed out during startup. This could happen because some of the raylet failed to startup")

    monkeypatch.setattr("aiflow_agents.evals.start.open_hosts", slow)
    with pytest.raises(UserError, match="Ray did not start in time.*--runtime inline"):
        start_hosts("ray")
