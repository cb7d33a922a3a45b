"""`aiflow run`: the conversation, as it happens."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("room")


def test_who_said_what_where_when_and_what_moved(room: Any, aiflow: Call) -> None:
    code, out, err = aiflow("run", "bravo 1001", "--team", "trio", "--topology", "debate")
    assert (code, err) == (0, "")
    head, *lines, empty, last = out.splitlines()
    assert head.split() == ["time", "who", "where", "what"] and empty == ""
    truth = room.truth("bravo 1001")
    places = {"ann": "phone", "bob": "tablet", "cid": "laptop"}
    calls, moves, times = [], [], []
    for line in lines:
        time, who, what = re.fullmatch(r" *([\d.]+) ms  (\w+) +(.*)", line).groups()  # type: ignore[union-attr]
        times.append(float(time))
        (moves if "->" in what else calls).append((who, what))
    assert times == sorted(times)
    assert {who for who, _ in calls[:3]} == {*places} == {who for who, _ in calls[3:]} and len(calls) == 6
    for who, what in calls:
        assert what.split()[0] == places[who]
    assert re.search(rf"tablet +{truth}  90% sure$", dict(calls[:3])["bob"])
    assert all("heard" in what for _, what in calls[3:])
    heard = dict(calls[3:])["ann"].split("heard")[1]
    assert f"bob {truth}" in heard and "cid" in heard and "ann " not in heard
    asked = [re.fullmatch(r"phone -> (\w+) +bravo 1001, (\d+) bytes", what) for who, what in moves if who == "user"]
    assert {match[1] for match in asked if match} == {"tablet", "laptop"}
    total = 2 * sum(int(re.search(r"([\d,]+) bytes$", what)[1]) for _, what in moves)  # type: ignore[index]  # there and on from the Wi-Fi's router
    assert last.startswith(f"{truth}   after ") and f"6 calls, {total} bytes on links" in last


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_an_answer_is_printed_as_it_reaches_home(room: Any, aiflow: Call, clock: str) -> None:
    args = ("run", "bravo 1001", "--team", "trio", "--clock", clock)
    truth = room.truth("bravo 1001")
    code, out, err = aiflow(*args, "--topology", "stream", "-T", "member=bob", "--stream")
    match = re.fullmatch(rf"{truth}   after ([\d.]+) ms: 1 calls, .*; the first token after ([\d.]+) ms, then ([\d.]+) ms per token; text exact\n", out)
    assert (code, err) == (0, "") and match and 0 < float(match[2]) < float(match[1])
    code, out, _ = aiflow(*args, "--topology", "majority", "--stream")
    assert code == 0 and re.fullmatch(r"\S+   after [\d.]+ ms: 3 calls, [^;]*\n", out)
    code, out, _ = aiflow(*args, "--topology", "stream", "-T", "member=bob", "--stream", "--json")
    said = json.loads(out)
    assert code == 0 and said["delivery"]["tokens"] == 5 == sum(tokens for _, tokens in said["delivery"]["portions"])
    assert said["delivery"]["portions"][-1][0] <= said["usage"]["latency_s"] and said["delivery"]["portions"][0][0] == said["delivery"]["first_token_s"]


def test_as_data(room: Any, aiflow: Call) -> None:
    code, out, err = aiflow("run", "bravo 1001", "--team", "trio", "--topology", "debate", "-T", "rounds=2", "--network", "metro-5g", "--json")
    said = json.loads(out)
    assert (code, err, said["question"], said["team"], said["network"], said["topology"]) == (0, "", "bravo 1001", "trio", "metro-5g", "debate")
    calls = [span for span in said["spans"] if span["kind"] == "call"]
    assert said["answer"] == room.truth("bravo 1001") and said["usage"]["calls"] == len(calls) == 9
    assert said["usage"]["wire_bytes"] >= sum(span["nbytes"] for span in said["spans"]) > 0  # a message over two links is paid for twice


def test_a_seed_draws_other_samples_and_a_dash_reads_the_question(room: Any, aiflow: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    room.say = {"ant": lambda request: (str(request.seed), 0.5)}

    def ask(seed: int) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("alpha 1000\n"))
        code, out, _ = aiflow("run", "-", "--team", "trio", "--topology", "self-consistency", "-T", "samples=1", "--seed", str(seed), "--json")
        assert code == 0 and json.loads(out)["question"] == "alpha 1000"
        return json.loads(out)["answer"]

    assert ask(0) == ask(0) != ask(1)


def test_an_answer_of_several_lines_and_markup_is_printed_as_it_is(room: Any, aiflow: Call) -> None:
    room.say = {"ant": lambda request: ("[bold]one[/bold] :smile:\ntwo", 0.5)}
    code, out, _ = aiflow("run", "q", "--team", "trio", "--topology", "single")
    first = out.splitlines()[1]
    assert code == 0 and first.endswith("[bold]one[/bold] :smile:") and out.splitlines()[2].startswith(" " * first.index("[bold]") + "two")


def test_what_goes_wrong_is_one_line(room: Any, aiflow: Call) -> None:
    from aiflow_agents.models.protocol import CallError

    (room.root / "topologies").mkdir()
    for name, body in (("Judge", 'await team["judge"].ask(task.question)'), ("Reads", "(await team.ask(task.question))[1].text")):
        (room.root / "topologies" / f"{name.lower()}.py").write_text(
            f"from aiflow_agents import Topology\n\nclass {name}(Topology):\n    async def run(self, task, team):\n        return {body}\n"
        )
    room.team("alone", {"ann": "ant"})
    for code, said, *args in (
        (2, "the question is empty", " "),
        (2, "no team named 'tri'; did you mean trio", "q", "--team", "tri"),
        (2, "no topology named 'debat'; did you mean debate", "q", "--team", "trio", "--topology", "debat"),
        (2, "no network named 'home'; did you mean home-wifi", "q", "--team", "trio", "--network", "home"),
        (2, "needs at least 2 members; team 'alone' has 1", "q", "--team", "alone"),
        (2, "named 'round'; did you mean rounds", "q", "--team", "trio", "-T", "round=2"),
        (2, "expected NAME=VALUE", "q", "--team", "trio", "-T", "rounds"),
        (2, "must be fitted on a dev split first", "q", "--team", "trio", "--topology", "router"),
        (2, "no member of team 'trio' named 'judge'; known: ann, bob, cid", "q", "--team", "trio", "--topology", "judge"),
        (2, "of bob is at tablet, not at phone", "q", "--team", "trio", "--topology", "reads"),
    ):
        found, out, err = aiflow("run", *args)
        assert (found, out) == (code, "") and said in err and len(err.splitlines()) == 1, args
    room.say = {"bee": lambda request: CallError("failed", "out of memory")}
    code, out, err = aiflow("run", "q", "--team", "trio")
    assert code == 1 and "bob: out of memory" in err and len(err.splitlines()) == 1 and "ann" in out
    code, out, err = aiflow("run", "q", "--team", "trio", "--json")
    assert code == 1 and json.loads(out)["answer"] is None and "out of memory" in json.loads(out)["error"]


def test_the_clock_may_be_real(room: Any, aiflow: Call) -> None:
    question = ("run", "bravo 1001", "--team", "trio", "--topology", "majority", "--json")
    simulated, real, paced = (json.loads(aiflow(*question, *more)[1]) for more in ((), ("--clock", "real"), ("--clock", "real", "--pace")))
    assert real["answer"] == paced["answer"] == simulated["answer"] and (simulated["clock"], real["clock"]) == ("virtual", "real")
    assert real["usage"]["wire_bytes"] == paced["usage"]["wire_bytes"] == simulated["usage"]["wire_bytes"]
    moves = [max(span["end_s"] - span["start_s"] for span in said["spans"] if span["kind"] == "move") for said in (simulated, paced)]
    assert moves[1] >= moves[0] * 0.999
    code, out, err = aiflow(*question, "--pace")
    assert (code, out, err) == (2, "", "aiflow: --pace is for --clock real: virtual seconds keep the network's pace without being waited for\n")
