"""What the README promises of Python, taken from the README."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def test_the_script_in_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    script = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[0]
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    lines = ran.stdout.splitlines()
    assert re.fullmatch(r".* calls, [\d,]+ bytes, [\d.]+ ms, .* J\]", lines[0]), lines[0]
    assert re.match(r"(beats|not shown|loses) [+-]\d+\.\d% logs/specialists-", lines[-1]), lines[-1]
    for arm in ("majority", "weighted", "oracle", "self-consistency@flops"):
        assert re.search(rf"^{re.escape(arm)} ", ran.stdout, re.M)
    assert (tmp_path / lines[-1].split()[-1] / "report.html").is_file()


def test_inside_a_running_loop_as_in_a_notebook(room: Any) -> None:
    from aiflow_agents import Team, load_topology

    async def cell() -> tuple[Any, Any, int]:
        beats = 0

        async def heart() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0)
                beats += 1

        beating = asyncio.ensure_future(heart())
        team = Team.load("trio")
        result = await team.run(load_topology("debate"), "alpha 1000")
        beating.cancel()
        return result, room.evaluate("quiz", team, ["majority", {"debate": {"rounds": 2}}], limit=12), beats

    result, report, beats = asyncio.run(cell())
    outside = room.evaluate("quiz", "trio", ["majority", {"debate": {"rounds": 2}}], limit=12)
    assert result.answer == room.truth("alpha 1000") and result.usage.calls == 6
    assert beats > 0  # the notebook's own loop went on meanwhile
    assert report.summary["arms"] == outside.summary["arms"] and "debate(rounds=2)" in report.summary["arms"]


def test_results_print_well(room: Any) -> None:
    report = room.evaluate(limit=24)
    best = report.summary["best_topology"]["arm"]
    assert repr(report) == f"<Report quiz: {best} beats every member, {100 * report.gain:.1f} points, 24 questions; {report.folder}>"
    assert str(report).startswith("quiz, 24 questions") and report.sentence.split()[0] in str(report)
    assert not any(line != line.rstrip() for line in str(report).splitlines())
    html = report._repr_html_()
    assert html.count("<tr>") == 1 + len(report.summary["arms"]) and f"<b>{best}</b>" in html and "%" in report.sentence
    room.team("odd", {"<i>&": "ant", "bob": "bee"})
    odd = room.evaluate(team="odd", topologies=["majority"], limit=6)
    assert "<i>&<" not in odd._repr_html_() and "&lt;i&gt;&amp;" in odd._repr_html_()


def test_a_topology_of_ones_own(room: Any) -> None:
    """From a file it is repeated by path; what no file holds is run as it is, and the run can only be gone on with from Python."""
    from aiflow_agents import Topology, catalog, load_topology
    from aiflow_agents.errors import UserError

    file = room.root / "last.py"
    file.write_text("from aiflow_agents import Topology\n\n\nclass Last(Topology):\n    place: int = -1\n\n    async def run(self, task, team):\n")
    file.write_text(file.read_text() + "        return await list(team)[self.place].ask(task.question)\n")
    report = room.evaluate(topologies=[load_topology("./last.py", {"place": 1})], limit=12)
    assert report.accuracy("last(place=1)") == report.accuracy("bob")

    class Cell(Topology):  # as of a notebook's cell, or of a script, which must not be run again to find it
        place: int = 0

        async def run(self, task: Any, team: Any) -> Any:
            return await list(team)[self.place].ask(task.question)

    class After(Cell): ...  # the last class of its module, and not the one that is asked for

    report = room.evaluate(topologies=[Cell(place=1), Cell()], limit=12)
    assert report.accuracy("cell(place=1)") == report.accuracy("bob") and report.accuracy("cell") == report.accuracy("ann")
    config = json.loads((report.folder / "config.json").read_text())
    assert config["topologies"] == [{"python:cell": {"place": 1}}, {"python:cell": {}}]
    again = room.evaluate(topologies=[Cell(place=1), Cell()], limit=12, path=report.folder, resume=True)
    assert again.summary == report.summary
    with pytest.raises(UserError, match="topologies was .*python:cell.* and is"):
        room.evaluate(topologies=[Cell(place=2)], limit=12, path=report.folder, resume=True)
    with pytest.raises(UserError, match="'python:cell' was made in Python and is in no file"):
        catalog.find("topology", "python:cell")

    class Odd(Cell):
        what: object = None

    with pytest.raises(UserError, match="topology 'odd' has a parameter that cannot be written down"):
        room.evaluate(topologies=[Odd(what=object())])
    with pytest.raises(UserError, match="no runtime named 'rya'; did you mean ray"):
        room.evaluate(runtime="rya")


def test_topologies_by_class(room: Any) -> None:
    """Every file of the catalog, by the name of its class; one here wins over one of the library."""
    import aiflow_agents
    from aiflow_agents import catalog, load_topology, topologies
    from aiflow_agents.topologies import Debate, SelfConsistency

    assert aiflow_agents.topologies is topologies
    for entry in catalog.entries("topology"):
        found = getattr(topologies, next(name for name in dir(topologies) if name.lower() == entry.name.replace("-", "")))
        assert found is type(load_topology(entry.name)), entry
    assert Debate(rounds=3) == load_topology("debate", {"rounds": 3}) and SelfConsistency.name() == "self-consistency"
    report = room.evaluate(topologies=[Debate(rounds=2)], limit=6)
    assert json.loads((report.folder / "config.json").read_text())["topologies"] == [{"debate": {"rounds": 2}}]
    with pytest.raises(AttributeError, match="no topology named 'Debatte'; did you mean Debate?"):
        topologies.Debatte  # noqa: B018
    with pytest.raises(ImportError):
        from aiflow_agents.topologies import Nothing  # noqa: F401

    (room.root / "topologies").mkdir()
    (room.root / "topologies" / "my_own.py").write_text("from aiflow_agents import Topology\n\n\nclass Mine(Topology): ...\n")
    assert topologies.MyOwn.__name__ == "Mine"


def test_a_suite_made_in_python_is_judged_as_its_file_is(room: Any) -> None:
    from aiflow_agents import Suite, Task, catalog
    from aiflow_agents.errors import UserError

    rows = [json.loads(line) for line in (room.root / "evals/quiz/data.jsonl").read_text().splitlines()]
    of_file = room.evaluate("quiz", "trio", ["majority", "weighted"])
    given = room.evaluate(Suite.of(rows, name="rows"), "trio", ["majority", "weighted"])
    assert (given.summary["arms"], given.summary["verdicts"]) == (of_file.summary["arms"], of_file.summary["verdicts"])

    def lax(answer: str, task: Task) -> float:
        return 0.5 if answer == task.expected else 0.0

    tasks = [Task(row["id"], row["question"], row["answer"], tuple(row["tags"])) for row in rows]
    halved = room.evaluate(Suite.of(tasks[36:], lax, dev=tasks[:36]), "trio", ["majority"])
    assert [halved.accuracy(name) for name in ("ann", "bob")] == [of_file.accuracy(name) / 2 for name in ("ann", "bob")]
    held = room.evaluate((task for task in tasks), "trio", ["majority"], scorer=lax)
    assert held.summary["n_dev"] + held.summary["n_tasks"] == len(tasks) and 8 <= held.summary["n_dev"] <= 26  # a fifth of 81, by chance
    config = json.loads((held.folder / "config.json").read_text())
    assert config["suite"] == "python:tasks"
    with pytest.raises(UserError, match="made in Python"):
        catalog.find("suite", config["suite"])
    with pytest.raises(UserError, match="tasks was"):  # other questions than it began with
        room.evaluate(tasks[1:], "trio", ["majority"], scorer=lax, path=held.folder, resume=True)


@pytest.mark.parametrize("tasks, options, said", [
    ([{"question": "a", "answer": "b"}], {}, "suite 'tasks' has no tasks in split '(dev|test)', of 1 tasks"),
    ([], {}, "no tasks in split 'dev', of 0"),
    ([{"question": "a"}], {}, r"task 0 \(task-00000\) needs a question and an answer"),
    ([{"question": " ", "answer": "b"}], {}, "needs a question"),
    ([{"question": "a", "answer": "b", "id": 1}] * 2, {"dev": [{"question": "c", "answer": "d"}]}, "task id '1' occurs twice"),
    ([{"question": "a", "anwser": "b"}], {}, "unknown key 'anwser'"),
    ([{"question": "a", "answer": "b", "split": "train"}], {}, "expected the split dev or test, found 'train'"),
    ([], {"scorer": "exakt"}, "no scorer named 'exakt'; did you mean exact"),
    ([], {"scorer": 3}, "expected a scorer's name or a function"),
    ([], {"extract": "letters"}, "suite 'tasks': extract: "),
])  # fmt: skip
def test_mistakes_in_a_suite_made_in_python_are_one_line(tasks: Any, options: Any, said: str) -> None:
    from aiflow_agents import Suite
    from aiflow_agents.errors import UserError

    if "scorer" in options:
        tasks, options = [{"question": "a", "answer": "b", "split": of} for of in ("dev", "test")], options
    with pytest.raises(UserError, match=said) as caught:
        Suite.of(tasks, **options)
    assert "\n" not in str(caught.value)


def test_a_suite_in_python_wants_a_team_and_a_scorer_that_marks(room: Any) -> None:
    from aiflow_agents.errors import UserError

    rows = [{"question": f"alpha {i}", "answer": "1", "split": of} for i, of in enumerate(("dev", "test"))]
    with pytest.raises(UserError, match="names no team: give one"):
        room.evaluate(rows)
    with pytest.raises(UserError, match=r"the scorer <lambda>\('\w+.?', task task-0000\d\) gave 2.0; expected a number from 0 to 1"):
        room.evaluate(rows, "trio", [], scorer=lambda answer, task: 2)
    with pytest.raises(UserError, match="`scorer` is for tasks that are given as a list"):
        room.evaluate("quiz", scorer="exact")


def test_reports_as_tables(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    from aiflow_agents.errors import UserError

    report = room.evaluate(limit=12)
    arms = report.to_pandas()
    assert list(arms["arm"]) == list(report.summary["arms"]) and arms["best"].sum() == 2
    best = arms.set_index("arm").loc[report.summary["best_topology"]["arm"]]
    assert (best["says"], best["gain"], best["accuracy"]) == (report.says, pytest.approx(report.gain), report.accuracy(best.name))
    samples = report.to_pandas("samples")
    assert isinstance(samples, pandas.DataFrame) and len(samples) == 12 * len(arms)
    means = samples.groupby("arm")[["score", "wire_bytes", "energy_j"]].mean()
    for name, arm in report.summary["arms"].items():
        assert means.loc[name].tolist() == pytest.approx([arm["accuracy"], arm["wire_bytes"], arm["energy_j"]], rel=1e-5)
    with pytest.raises(UserError, match="no table named 'sample'; did you mean samples?"):
        report.to_pandas("sample")
    for name in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    for convert, name in ((report.to_pandas, "pandas"), (report.to_arrow, "pyarrow")):
        with pytest.raises(UserError, match=f"takes {name}, which is not installed: pip install {name}"):
            convert()


def test_reports_as_arrow_tables(room: Any) -> None:
    pytest.importorskip("pyarrow")
    report = room.evaluate(limit=6)
    assert report.to_arrow("samples").to_pylist() == report.to_pandas("samples").astype(object).where(lambda t: t.notna(), None).to_dict("records")
    assert report.to_arrow().column("arm").to_pylist() == list(report.summary["arms"])
