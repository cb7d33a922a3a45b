"""What the README promises of Python, taken from the README."""

from __future__ import annotations

import asyncio
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
    """From a file it is repeated by path; without a file the run could not be repeated, and is refused."""
    from aiflow_agents import Topology, load_topology
    from aiflow_agents.errors import UserError

    file = room.root / "last.py"
    file.write_text("from aiflow_agents import Topology\n\n\nclass Last(Topology):\n    place: int = -1\n\n    async def run(self, task, team):\n")
    file.write_text(file.read_text() + "        return await list(team)[self.place].ask(task.question)\n")
    report = room.evaluate(topologies=[load_topology("./last.py", {"place": 1})], limit=12)
    assert report.accuracy("last(place=1)") == report.accuracy("bob")

    nowhere = type("Nowhere", (Topology,), {"__module__": "not.a.file"})
    with pytest.raises(UserError, match="Nowhere lives in no file"):
        room.evaluate(topologies=[nowhere()])
    with pytest.raises(UserError, match="no runtime named 'rya'; did you mean ray"):
        room.evaluate(runtime="rya")
