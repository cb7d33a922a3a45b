"""`aiflow eval`: what is said, the exit codes, and that nothing stops a run for good."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.cli import main as door
from aiflow_agents.errors import AIFlowError
from aiflow_agents.evals import run_folder

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("room")


@pytest.fixture
def evaluate(aiflow: Call) -> Call:
    return lambda *args: aiflow("eval", *args, "--runtime", "inline")


def summary(call: tuple[int, str, str]) -> dict[str, Any]:
    code, out, _ = call
    assert code == 0
    return json.loads(out)


def outcome(folder: Path) -> dict[str, Any]:
    """What two equal runs have in common: all but the names and times."""
    found = json.loads((folder / "summary.json").read_text())
    found.pop("run_id")
    return found


def test_tables_a_sentence_and_where_the_report_is(evaluate: Call) -> None:
    code, out, err = evaluate("quiz", "--limit", "24")
    assert code == 0 and "best member on dev: " in err and "best topology on dev: " in err
    assert re.search(r"^router +topology +\d", out, re.M) and "beats" in out
    report = Path(re.findall(r"^report: (.*)$", out, re.M)[0])
    assert report.is_file() and report.parent.parent == Path("logs")
    assert evaluate("quiz", "--limit", "6", "--display", "none")[2] == ""


def test_json_is_the_summary_and_nothing_else(evaluate: Call, room: Any) -> None:
    said = summary(evaluate("quiz", "--limit", "12", "--json"))
    assert said == json.loads((Path(said.pop("folder")) / "summary.json").read_text())
    room.suite("other", dev=6, test=6)
    (room.root / "evals" / "both").mkdir()
    (room.root / "evals" / "both" / "eval.yaml").write_text("suites: [quiz, other]\n")
    code, out, _ = evaluate("both", "--limit", "6", "--json")
    assert code == 0 and [one["suite"] for one in json.loads(out)] == ["quiz", "other"]


def test_what_a_run_would_do(evaluate: Call, room: Any) -> None:
    code, out, err = evaluate("quiz", "--dry-run", "--topology", "debate", "-T", "rounds=3", "--repeats", "2")
    assert (code, err) == (0, "") and "36 dev and 45 test tasks, each 2 times, seed 0" in out
    assert re.search(r"^debate\(rounds=3\) +topology +12$", out, re.M) and re.search(r"at most [\d,]+ calls, [\d,]+ on dev and [\d,]+ on test", out)
    plan = json.loads(evaluate("quiz", "--dry-run", "--json")[1])
    assert plan["members"] == {"ann": "phone", "bob": "tablet", "cid": "laptop"} and plan["arms"]["majority"] == {"kind": "topology", "calls": 3}
    assert room.batches == 0 and not Path("logs").exists()


def test_options_come_from_the_command_then_variables_then_config_then_the_suite(evaluate: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(summary(evaluate("quiz", "--limit", "9", "--seed", "2", "--topology", "debate", "-T", "rounds=2", "--json"))["folder"])
    config = str(folder / "config.json")

    def asked(*args: str) -> dict[str, Any]:
        return json.loads(evaluate(*args, "--dry-run", "--json")[1])

    assert (asked("--config", config)["seed"], asked("--config", str(folder))["n_test"]) == (2, 9)
    assert "debate(rounds=2)" in asked("--config", config)["arms"]
    assert asked("--config", config, "--seed", "0")["seed"] == 0  # the default, but said
    assert "majority" in asked("--config", config, "--topology", "majority")["arms"]
    assert "debate(rounds=2)" not in asked("--config", config, "--topology", "majority")["arms"]
    monkeypatch.setenv("AIFLOW_EVAL_SEED", "5")
    assert asked("--config", config)["seed"] == 5 and asked("--config", config, "--seed", "1")["seed"] == 1
    code, _, err = evaluate("--resume", str(folder))
    assert code == 2 and "seed was 2 and is 5 (AIFLOW_EVAL_SEED says so)" in err
    monkeypatch.delenv("AIFLOW_EVAL_SEED")
    before = json.loads((folder / "summary.json").read_text())
    again = summary(evaluate("--config", config, "--json"))
    assert again["arms"] == before["arms"] and again["run_id"] != before["run_id"]


def test_mistakes_are_one_line_and_exit_2(aiflow: Call, room: Any) -> None:
    def put(path: str, text: str) -> None:
        (room.root / path).parent.mkdir(parents=True, exist_ok=True)
        (room.root / path).write_text(text)

    put("agents/typo.yaml", "members:\n  ann: {model: ant, tier: device}\n  bob: {model: bee, teir: device}\n")
    put("agents/open.yaml", "members:\n  ann: {model: ant, tier: device\n")
    put("agents/kind.yaml", "members:\n  ann: {model: ant, tier: device, max_tokens: many}\n")
    put("agents/where.yaml", "members:\n  ann: {model: ant, tier: device, node: phome}\n")
    put("agents/alone.yaml", "members:\n  ann: {model: ant, tier: device}\n")
    put("agents/empty.yaml", "members:\n  ann: {model: hollow, tier: device}\n")
    put("agents/models/hollow/config.json", (room.models[0] / "config.json").read_text())
    put("topologies/networks/island.yaml", "home: phone\nnodes:\n" + "".join(
        f"  {name}: {{tier: device, flops_rate: 1000, bandwidth_Bps: 1000, overhead_s: 0.5, power_w: 2}}\n" for name in ("phone", "rock")
    ) + "links: []\n")  # fmt: skip
    put("evals/gap/eval.yaml", "team: trio\ndata: data.jsonl\ntopologies: [majority]\n")
    put("evals/gap/data.jsonl", '{"id": 1, "question": "q", "answer": "a", "split": "dev"}\n{"id": 2, "question": "q"}\n')
    put("evals/wrong/eval.yaml", "team: trio\ndata: data.jsonl\ntopolgies: [majority]\n")
    put("topologies/syntax.py", "class A(:\n")
    for said, *args in (
        (r"no suite named 'quzi'; did you mean quiz", "quzi"),
        (r"which suite\?",),
        (r"No such option: --limt", "quiz", "--limt", "3"),
        (r"'--limit': .*greater than or equal to 1", "quiz", "--limit", "0"),
        (r"'--runtime': 'rya' is not one of 'ray', 'inline'", "quiz", "--runtime", "rya"),
        (r"-T sets parameters of the topologies given", "quiz", "-T", "rounds=2"),
        (r"expected NAME=VALUE", "quiz", "--topology", "debate", "-T", "rounds"),
        (r"rounds is given twice", "quiz", "--topology", "debate", "-T", "rounds=1", "-T", "rounds=2"),
        (r"put it into quotes", "quiz", "--topology", "debate", "-T", "graph=[a"),
        (r"named 'round'; did you mean rounds", "quiz", "--topology", "debate", "-T", "round=2"),
        (r"parameter rounds: .*integer.*\(got 'x'\)", "quiz", "--topology", "debate", "-T", "rounds=x"),
        (r"agents/typo\.yaml:3: members\.bob\.teir: unknown key; did you mean 'tier'\?", "quiz", "--team", "typo"),
        (r"agents/open\.yaml:3: not valid YAML", "quiz", "--team", "open"),
        (r"agents/kind\.yaml:2: members\.ann\.max_tokens: expected a valid integer.*found 'many'", "quiz", "--team", "kind"),
        (r"agents/where\.yaml:2: members\.ann\.node: .*'phome'; did you mean phone", "quiz", "--team", "where"),
        (r"evals/wrong/eval\.yaml:3: topolgies: unknown key; did you mean 'topologies'\?", "wrong"),
        (r"needs at least 2 members; team 'alone' has 1", "quiz", "--team", "alone"),
        (r"agents/empty\.yaml:2: members\.ann\.model: .*hollow has no weights", "quiz", "--team", "empty"),
        (r"gap/data\.jsonl:2: answer: every task needs", "gap"),
        (r"no route from 'phone' to 'rock' in network 'island' \(.*island\.yaml\)", "quiz", "--network", "island"),
        (r"syntax\.py:1: not valid Python", "quiz", "--topology", "syntax"),
        (r"nowhere is no run folder", "--resume", "nowhere"),
        (r"nowhere: cannot be read", "--config", "nowhere"),
        (r"give one of them", "--resume", "nowhere", "--config", "nowhere"),
        (r"no remembered answers at nowhere", "quiz", "--reuse", "nowhere"),
    ):
        code, out, err = aiflow("eval", *args)
        assert (code, out) == (2, "") and re.search(said, err) and len(err.splitlines()) == 1 and err.startswith("aiflow: "), (args, err)
    assert not Path("logs").exists() and room.batches == 0


def test_failed_answers_and_missed_gates_exit_1(evaluate: Call, room: Any) -> None:
    gained = summary(evaluate("quiz", "--json"))
    row = next(v for v in gained["verdicts"] if (v["arm"], v["against"]) == (gained["best_topology"]["arm"], "members"))
    least, between = row["ci95"][0], (row["ci95"][0] + row["delta"]) / 2
    assert 0.1 < least < between < row["delta"]
    assert evaluate("quiz", "--require-gain", str(least - 0.001), "--reuse", gained["folder"])[0] == 0
    code, _, err = evaluate("quiz", "--require-gain", str(between), "--reuse", gained["folder"])  # found, but not shown
    assert code == 1 and f"quiz: a gain above {between:g} is required, and not shown: " in err and f"interval is {least:.3f}; " in err
    code, _, err = evaluate("quiz", "--team", "copies", "--topology", "majority", "--require-gain", "0")  # equal is not better
    assert code == 1 and "0.000, and" not in err and "it is not shown to beat every member" in err

    from aiflow_agents.models.protocol import CallError

    room.say = {"bee": lambda request: CallError("failed", "out of memory") if request.messages[0].content.endswith("1001") else ("?", 0.1)}
    code, out, err = evaluate("quiz", "--limit", "6", "--topology", "majority", "--log-dir", "my logs")
    assert code == 1 and err.count("majority failed on test-1: MemberFailed: bob: out of memory") == 1
    room.say = {}
    command = re.findall(r"`aiflow (eval --resume .*?)`", err)[0]
    assert door.main([*shlex.split(command), "--runtime", "inline"]) == 0


def test_another_run_is_not_gone_on_with(evaluate: Call) -> None:
    folder = summary(evaluate("quiz", "--limit", "9", "--json"))["folder"]
    code, out, err = evaluate("--resume", folder, "--limit", "12")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "limit was 9 and is 12; " in err and "tasks" not in err  # what follows from it is not said
    own, new = re.findall(r"(aiflow eval .*?)(?:;|$)", err.strip())
    assert own == f"aiflow eval --resume {folder} --runtime inline" and new == f"aiflow eval --config {folder}/config.json --limit 12 --runtime inline"
    assert evaluate(*shlex.split(own)[2:-2])[0] == 0
    assert json.loads(evaluate(*shlex.split(new)[2:-2], "--dry-run", "--json")[1])["n_test"] == 12
    data = Path("evals/quiz/data.jsonl")
    data.write_text(data.read_text().replace("alpha 0000", "alpha 9999"))
    code, _, err = evaluate("--resume", folder)
    assert code == 2 and "what it began with has changed: tasks was" in err and f"begin a new run with what is there now: aiflow eval --config {folder}" in err


@pytest.mark.parametrize("at", [0, 3, -4, -1])
def test_ctrl_c_says_the_command_that_goes_on(room: Any, evaluate: Call, at: int) -> None:
    """In the middle of dev, and of test: what is reached then is what an uninterrupted run reaches."""
    whole = Path(summary(evaluate("quiz", "--json"))["folder"])
    room.stop_at, room.batches = at if at >= 0 else room.batches + at, 0
    code, out, err = evaluate("quiz", "--log-dir", "cut off")
    assert (code, out) == (130, "") and "Traceback" not in err
    command = shlex.split(re.findall(r"interrupted; continue with: aiflow (.*)$", err.splitlines()[-1])[0])
    room.stop_at = None
    assert command[:2] == ["eval", "--resume"] and command[2].startswith("cut off") and door.main(command) == 0
    assert outcome(Path(command[2])) == outcome(whole)


def test_ctrl_c_in_a_group_says_what_is_left(room: Any, evaluate: Call) -> None:
    room.suite("other", dev=6, test=6)
    (room.root / "evals" / "both").mkdir()
    (room.root / "evals" / "both" / "eval.yaml").write_text("suites: [quiz, other]\n")
    room.stop_at = 2
    _, _, err = evaluate("both", "--limit", "6", "--topology", "majority")
    first, second = re.findall(r"continue with: (.*)$", err, re.M)[0].split(" && ")
    assert first.startswith("aiflow eval --resume logs/quiz-") and second == "aiflow eval other --topology majority --limit 6 --runtime inline"


@pytest.mark.parametrize("room_for", [0, 5_000, 60_000])
def test_a_full_disk_keeps_what_was_finished(room: Any, evaluate: Call, monkeypatch: pytest.MonkeyPatch, room_for: int) -> None:
    whole = Path(summary(evaluate("quiz", "--json"))["folder"])
    real, left = run_folder._Lines.add, room_for

    def add(lines: Any, text: str) -> None:
        nonlocal left
        left -= len(text)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(lines, text)

    with monkeypatch.context() as full:
        full.setattr(run_folder._Lines, "add", add)
        code, out, err = evaluate("quiz", "--log-dir", "full")
    assert (code, out) == (2, "") and "Traceback" not in err
    command = re.findall(r"the disk is full: free some space; what was finished is kept, go on with: aiflow (.*)$", err.splitlines()[-1])[0]
    assert door.main(shlex.split(command)) == 0 and outcome(Path(shlex.split(command)[2])) == outcome(whole)


def test_hosts_that_die_again_and_again_are_one_line(room: Any, evaluate: Call) -> None:
    def die(request: Any) -> Any:
        raise AIFlowError("three hosts died over the same 9 calls to ant: killed")

    room.say = {"ant": die}
    code, _, err = evaluate("quiz")
    assert code == 2 and re.search(r"three hosts died .*; what was finished is kept, go on with: aiflow eval --resume logs/quiz-\S+ --runtime inline$", err)


def test_two_processes_do_not_write_one_folder(room: Any, evaluate: Call) -> None:
    folder = Path(summary(evaluate("quiz", "--limit", "6", "--json"))["folder"])
    with run_folder.RunFolder(folder, json.loads((folder / "config.json").read_text()), resume=True):
        code, _, err = evaluate("--resume", str(folder))
    assert code == 2 and "is being written by another process" in err
    assert evaluate("--resume", str(folder))[0] == 0


def test_killed_in_the_middle_it_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Real processes: SIGKILL while samples are written, then Ctrl-C, then the rest."""
    words = ["eval", "specialists", "--topology", "majority", "--topology", "weighted", "--limit", "12", "--runtime", "inline", "--display", "none"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(*args: str) -> subprocess.Popen[str]:
        own = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
               "import sys; from aiflow_agents.cli.main import main; sys.exit(main())"]  # fmt: skip
        return subprocess.Popen([*own, *args], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        while not what() and process.poll() is None:
            time.sleep(0.01)

    def size(name: str) -> int:
        return sum(file.stat().st_size for file in (tmp_path / "cut").glob(f"*/{name}"))

    whole = start(*words, "--log-dir", "whole")
    killed = start(*words, "--log-dir", "cut")
    wait_for(lambda: size("samples.jsonl") > 0, killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    (run,) = (tmp_path / "cut").iterdir()
    with open(run / "samples.jsonl", "ab") as samples:
        samples.write(b'{"arm": "tall')  # the line it was about to write
    done = size("samples.jsonl")
    resumed = start("eval", "--resume", f"cut/{run.name}", "--runtime", "inline", "--display", "none", "--json")
    out, err = resumed.communicate()
    assert (resumed.returncode, err) == (0, "") and done < size("samples.jsonl")
    assert (whole.wait(), whole.communicate()[1]) == (0, "")
    (expected,) = (tmp_path / "whole").iterdir()
    assert outcome(run) == outcome(expected)
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == len({(line["arm"], line["task_id"]) for line in lines}) == len((expected / "samples.jsonl").read_text().splitlines())


def test_a_real_ctrl_c_is_130_and_no_traceback(tmp_path: Path) -> None:
    own = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nimport sys; from aiflow_agents.cli.main import main; sys.exit(main())"
    words = ["eval", "specialists", "--limit", "200", "--runtime", "inline", "--display", "plain"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", own, *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("logs/*/calls.sqlite")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert re.search(r"^aiflow: interrupted; continue with: aiflow eval --resume logs/specialists-\S+ --runtime inline --display plain$", err, re.M)
