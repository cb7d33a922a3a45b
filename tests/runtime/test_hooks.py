"""Hooks are told what happens, and can neither change nor stop a run, whatever they do."""

from __future__ import annotations

import contextvars
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import CallError
from aiflow_agents.runtime import hooks as hooks_module
from aiflow_agents.runtime.hooks import EVENTS, Hook, Hooks
from aiflow_agents.runtime.run import ask
from aiflow_agents.topology.load import load_topology


class Notes:
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any: ...

    def of(self, event: str) -> list[Any]:
        return [about for name, about in self.told if name == event]


for _event in EVENTS:
    setattr(Notes, _event, lambda self, *about, event=_event: self.told.append((event, about)))


def test_a_question_is_told_from_its_start_to_its_end(stage: Any) -> None:
    notes, team = Notes(), stage.team(ann="phone", tim="tower")
    result = ask(team, load_topology("debate", {"rounds": 1}), "why?", hosts=stage.hosts(), hooks=[notes])
    assert [name for name, _ in notes.told][:2] == ["on_run_start", "on_task_start"] and [name for name, _ in notes.told][-2:] == ["on_task_end", "on_run_end"]
    [(run,)], [(_, outcome)], [(task, ended)] = notes.of("on_run_start"), notes.of("on_run_end"), notes.of("on_task_end")
    assert (run.team, run.name, outcome, ended) == (team, "", result, result) and notes.of("on_task_start") == [(task,)]
    assert (task.run, task.job, task.stage) == (run, result.job, "question") and abs(time.time_ns() - task.began_ns) < 60e9
    calls, moves = [call for _, call in notes.of("on_call")], [move for _, move in notes.of("on_move")]
    spans = [span for span in result.spans if span.kind == "call"]
    assert [(c.agent.name, c.start_s, c.end_s, c.reply.text) for c in calls] == [(s.who, s.start_s, s.end_s, s.text) for s in spans] and len(calls) == 4
    assert moves == [span for span in result.spans if span.kind == "move"] and sum(move.nbytes for move in moves) > 0
    assert sum(c.usage.tokens_out for c in calls) == result.usage.tokens_out and {c.request.messages[0].content for c in calls} == {"why?"}
    assert all(about[0] is task for name, about in notes.told if name in ("on_call", "on_move"))


def test_an_evaluation_tells_of_all_that_it_runs_and_not_of_what_it_has(room: Any) -> None:
    notes = Notes()
    report = room.evaluate(limit=6, hooks=[notes])
    [(run,)], [(_, outcome)] = notes.of("on_run_start"), notes.of("on_run_end")
    assert (run.name, run.folder, run.config["limit"], outcome.summary) == ("quiz", report.folder, 6, report.summary)
    assert outcome.summary is not report.summary
    ended = [(task.stage, task.job.arm, task.job.task.id, task.job.repeat) for task, _ in notes.of("on_task_end")]
    samples = [json.loads(line) for line in (report.folder / "samples.jsonl").read_text().splitlines()]
    on_test = {row[1:] for row in ended if row[0] == "test"}
    assert on_test <= {(s["arm"], s["task_id"], s["repeat"]) for s in samples} and {"ann", "majority"} <= {arm for arm, *_ in on_test}
    assert {row[0] for row in ended} == {"dev", "test"} and len(notes.of("on_task_start")) == len(ended)
    assert {task.job.arm for task, _ in notes.of("on_call")} == {row[1] for row in ended}
    again = Notes()
    room.evaluate(limit=6, hooks=[again], path=report.folder, resume=True)
    assert {task.stage for task, _ in again.of("on_task_end")} == {"dev"}


def test_who_could_not_answer_is_told_too(stage: Any) -> None:
    notes, team = Notes(), stage.team(ann=("phone", lambda request: CallError("refused", "no")))
    assert ask(team, load_topology("single"), "why?", hosts=stage.hosts(), hooks=[notes]).error
    [(_, call)], [(_, result)] = notes.of("on_call"), notes.of("on_task_end")
    assert (call.reply, call.usage) == (CallError("refused", "no"), None) and result.error


def _kept(folder: Path) -> tuple[list[str], dict[str, Any]]:
    summary = json.loads((folder / "summary.json").read_text())
    return sorted((folder / "samples.jsonl").read_text().splitlines()), summary | {"run_id": ""}


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.sets(st.sampled_from(EVENTS), min_size=1), kind=st.sampled_from([RuntimeError, KeyboardInterrupt, SystemExit, AttributeError]))
def test_a_hook_that_raises_changes_nothing(room: Any, bad: set[str], kind: type[BaseException]) -> None:
    """And one that vandalises what it is given changes nothing that is kept."""

    def fail(self: Any, *about: Any) -> None:
        if hasattr(about[-1], "summary"):
            about[-1].summary.clear()
        raise kind("ouch")

    if not hasattr(room, "quiet"):
        room.quiet = _kept(room.evaluate(limit=3, topologies=["majority", "debate"]).folder)
    report = room.evaluate(limit=3, topologies=["majority", "debate"], hooks=[type("Bad", (), dict.fromkeys(bad, fail))(), Notes()])
    assert _kept(report.folder) == room.quiet and report.summary["arms"] == room.quiet[1]["arms"]
    [line] = [line for line in (report.folder / "run.log").read_text().splitlines() if "hook" in line]
    assert "the hook Bad failed, and the run went on without it: on_" in line and f"raised {kind.__name__}: ouch" in line


def test_errors_are_told_once_by_name_and_others_are_still_told(stage: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Hook):
        def on_call(self, task: Any, call: Any) -> None:
            raise ValueError("ouch")

    notes = Notes()
    ask(stage.team(ann="phone", tim="tower"), load_topology("majority"), "why?", hosts=stage.hosts(), hooks=[Bad(), notes])
    assert [record.getMessage() for record in caplog.records] == [
        "the hook Bad failed, and the run went on without it: on_call raised ValueError: ouch, the first of 2 errors"
    ]
    assert len(notes.of("on_call")) == 2


def test_a_hook_that_waits_for_ever_stops_nobody(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, "PATIENCE_S", 0.2)
    free, notes, said = threading.Event(), Notes(), []

    class Stuck(Hook):
        def on_task_start(self, task: Any) -> None:
            free.wait(60)

        def on_call(self, task: Any, call: Any) -> None:
            said.append("no")

    hooks = Hooks([Stuck(), notes], tell=said.append)
    result = ask(stage.team(ann="phone", tim="tower"), load_topology("majority"), "why?", hosts=stage.hosts(), hooks=hooks)
    for _ in range(3000):
        if notes.of("on_run_end"):
            break
        time.sleep(0.01)
    hooks.close()
    assert result.answer and len(notes.of("on_task_end")) == 1
    assert said == ["the hook Stuck does not keep up with the run, which does not wait for it: it has missed 2 events"]
    free.set()
    hooks._listeners[0]._thread.join(60)  # type: ignore[union-attr]
    assert "no" not in said  # what came after the end is not told any more


def test_more_than_can_wait_is_missed_and_said(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_module, "MOST", 1)
    free, said = threading.Event(), []

    class Slow(Hook):
        def on_call(self, task: Any, call: Any) -> None:
            free.wait(60)

    hooks = Hooks([Slow()], tell=said.append)
    for _ in range(5):
        hooks.tell("on_call", None, None)
    free.set()
    hooks.close()
    assert len(said) == 1 and "the hook Slow did not keep up with the run" in said[0] and said[0].endswith(("missed 3 events", "missed 4 events"))


def test_a_hook_finds_what_is_current_where_the_run_began(stage: Any) -> None:
    current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="nothing")
    found: list[str] = []

    class Looks(Hook):
        def on_call(self, task: Any, call: Any) -> None:
            found.append(current.get())

    current.set("the caller's")
    ask(stage.team(ann="phone"), load_topology("single"), "why?", hosts=stage.hosts(), hooks=[Looks()])
    assert found == ["the caller's"]


def test_what_is_no_hook_is_refused_before_anything_runs(room: Any) -> None:
    class Typo(Hook):
        def on_task_ends(self, task: Any) -> None: ...

    for hook, said in ((Typo(), "no method of hook Typo named 'on_task_ends'; did you mean on_task_end"), (Hook(), "the hook Hook has none of"),
                       (object(), "the hook object has none of"), (Typo, r"the hook Typo is a class: give an object, Typo\(\)")):
        with pytest.raises(UserError, match=said):
            room.evaluate(hooks=[hook])
    assert not (room.root / "logs").exists()


def test_hooks_of_installed_packages_are_told_of_every_run(stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tap-1.0.dist-info").mkdir()
    (tmp_path / "tap-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tap\nVersion: 1.0\n")
    points = "tap = aiflow_tap_test:Tap\nready = aiflow_tap_test:ready\nlost = aiflow_tap_test:lost\nodd = aiflow_tap_test:heard\n"
    (tmp_path / "tap-1.0.dist-info" / "entry_points.txt").write_text(f"[aiflow_agents.hooks]\n{points}")
    code = "heard = []\nclass Tap:\n    def on_call(self, task, call):\n        heard.append(call.agent.name)\nready = Tap()\n"
    (tmp_path / "aiflow_tap_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "aiflow_tap_test", raising=False)
    ask(stage.team(ann="phone"), load_topology("single"), "why?", hosts=stage.hosts())
    assert sys.modules["aiflow_tap_test"].heard == ["ann", "ann"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "the hook 'lost' (aiflow_tap_test:lost) is left out: AttributeError" in said[0] and "the hook 'odd'" in said[1]
