"""Whole tasks: what fails fails alone, what is elsewhere cannot be read, and company changes nothing."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import MemberFailed, UnmetNeed, UserError
from aiflow_agents.models.protocol import CallError, Sampling
from aiflow_agents.net.together import first, gather
from aiflow_agents.runtime import run as run_module
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, ask, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.message import HERE, MOVER, standing_at


@pytest.fixture
def team(stage: Any) -> Any:
    return stage.team(ann="phone", bob="phone", tim="tower")


# --- a message has a place ---


@pytest.mark.parametrize("read", ["text", "answer", "confidence", "__str__"])
def test_a_topology_cannot_read_what_is_elsewhere(stage: Any, team: Any, read: str) -> None:
    async def peek(team: Any) -> Any:
        message = await team["tim"].ask("q")
        value = getattr(message, read)
        return value() if callable(value) else message

    result = stage.do(team, peek)
    assert result.answer is None and result.error == "NotHere: message tim.1 of tim is at tower, not at phone; `await message.to('phone')` moves it"
    assert result.usage.calls == 1 and result.usage.wire_bytes == 10  # what it cost so far; nothing came back


def test_what_is_here_or_was_brought_here_can_be_read_and_the_rest_is_free(stage: Any, team: Any) -> None:
    async def look(team: Any) -> Any:
        near, far = await gather([team["ann"].ask("q"), team["tim"].ask("q")])
        seen.append((near.text, far.id, far.author, far.node, far.size))
        here = await far.to(team.home)
        seen.append((here.text, here.node, far.node))
        return near

    seen: list[Any] = []
    assert stage.do(team, look).answer == "ann:q"
    (text, name, author, node, size), brought = seen
    assert (text, author, node, size) == ("ann:q", "tim", "tower", 15) and name.startswith("tim.") and brought == ("tim:q", "phone", "tower")


def test_the_answer_is_brought_home_and_the_time_counted_there(stage: Any, team: Any) -> None:
    far = stage.do(team, lambda team: team["tim"].ask("q"))

    async def linger(team: Any) -> Any:
        message = await team["tim"].ask("q")
        with standing_at("tower"):
            assert message.text == "tim:q"
        await asyncio.sleep(10)
        return message

    assert far.answer == "tim:q" and far.usage.wire_bytes == 10 + 15
    assert stage.do(team, linger).usage.latency_s == pytest.approx(far.usage.latency_s + 10)


def test_nothing_of_a_run_stays_behind(stage: Any, team: Any) -> None:
    stage.do(team, lambda team: team["tim"].ask("q"))
    assert HERE.get() is None and MOVER.get() is None and gc.isenabled()


# --- failures are data ---


def test_a_refused_call_fails_its_own_task_alone(stage: Any, team: Any) -> None:
    stage.say["ann"] = lambda request: CallError("too-long", "too long") if request.messages[0].content == "q1" else "yes"
    results = stage.run(load_topology("majority"), team, ["q0", "q1", "q2"])
    assert [result.error for result in results] == [None, "MemberFailed: ann: too long", None]
    assert [result.answer for result in results] == ["yes", None, "yes"]
    assert results[1].confidence is None and results[1].text is None
    assert results[1].usage.calls == 2  # the other two have answered, and that has been paid for
    assert [request.messages[0].content for name, requests in stage.batches for request in requests if name == "ann"] == ["q0", "q1", "q2"]


def test_a_topology_may_go_on_without_a_failed_member(stage: Any, team: Any) -> None:
    stage.say["ann"] = lambda request: CallError("failed", "out of luck")

    async def run(team: Any) -> Any:
        drafts = await gather((agent.ask("q") for agent in team), failures=True)
        failed.extend(draft for draft in drafts if isinstance(draft, Exception))
        return next(draft for draft in drafts if not isinstance(draft, Exception))

    failed: list[Any] = []
    assert stage.do(team, run).answer == "bob:q"
    assert [(type(error), error.member, error.reason) for error in failed] == [(MemberFailed, "ann", "out of luck")]


def raises(error: BaseException) -> Any:
    async def run(team: Any) -> Any:
        await team["ann"].ask("q")
        raise error

    return run


async def cancels_itself(team: Any) -> Any:
    doomed = asyncio.ensure_future(team["tim"].ask("q"))
    await asyncio.sleep(0.1)
    doomed.cancel()
    return await doomed


async def gives_text(team: Any) -> Any:
    return "42"


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (raises(ZeroDivisionError("by zero")), "ZeroDivisionError: by zero"),
        (raises(MemberFailed("ann", "tired")), "MemberFailed: ann: tired"),
        (raises(TimeoutError()), "TimeoutError:"),
        (cancels_itself, "CancelledError:"),
        (gives_text, "TypeError: Do.run gave str; expected a Message"),
        (lambda team: team["nobody"].ask("q"), "UnknownName: no member of team 'test' named 'nobody'; known: ann, bob, tim"),
    ],
)
def test_a_topology_that_raises_is_a_failed_task_and_not_the_end(stage: Any, team: Any, run: Any, error: str) -> None:
    jobs = [*stage.jobs(type_of(stage)(run), team), *stage.jobs(load_topology("single"), team, ["q"])]
    failed, sound = stage.run_jobs(jobs)
    said, _, place = failed.error.partition(" (conftest.py:")
    assert failed.answer is None and said == error and str(failed).startswith(f"failed: {failed.error}")
    assert bool(place) == (error[0] in "ZTC" and "expected" not in error)  # what is raised on purpose says enough
    assert sound.answer == "ann:q" and sound.error is None and str(sound).startswith("ann:q   [1 calls, 0 bytes, ")


def type_of(stage: Any) -> Any:
    """The class of a topology of one function, which lives beside the stage."""
    import sys

    return vars(sys.modules[type(stage).__module__])["Do"]


def test_an_error_of_a_topology_says_the_line_of_its_file(stage: Any, tmp_path: Path) -> None:
    body = "from aiflow_agents import Topology\n\n\nclass Sums(Topology):\n    async def run(self, task, team):\n        return self.half(task)\n\n"
    (tmp_path / "sums.py").write_text(body + "    def half(self, task):\n        return int('ten') / 2\n")
    team = stage.team(ann="phone")
    (result,) = stage.run(load_topology(str(tmp_path / "sums.py")), team)
    assert result.error == "ValueError: invalid literal for int() with base 10: 'ten' (sums.py:9)"
    (tmp_path / "sums.py").write_text(body + "    def half(self, task):\n        return 1\n")
    assert stage.run(load_topology(str(tmp_path / "sums.py")), team)[0].error == "TypeError: Sums.run gave int; expected a Message"


def test_a_name_is_no_topology(stage: Any) -> None:
    with pytest.raises(UserError, match=r"a team runs a topology, not its name: give load_topology\('debate'\)"):
        ask(stage.team(ann="phone"), "debate", "q", hosts=stage.hosts())  # type: ignore[arg-type]


class Waits:
    """Waits for what never happens, on odd tasks."""

    async def run(self, task: Task, team: Any) -> Any:
        draft = await team["tim"].ask(task.question)
        if int(task.id[1:]) % 2:
            await asyncio.Event().wait()
        return draft


def test_a_task_that_waits_for_ever_is_named_and_the_others_go_on(stage: Any, team: Any) -> None:
    results = stage.run(Waits(), team, ["a", "b", "c", "d"])
    assert [result.answer for result in results] == ["tim:a", None, "tim:c", None]
    for number in (1, 3):
        error = results[number].error
        assert error.startswith(f"Deadlock: nothing can ever happen in world 'arm/t{number}' after ") and f"task 'arm/t{number}'" in error
        assert results[number].usage.calls == 1 and results[number].usage.latency_s > 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space left on device"), sqlite3.OperationalError("database or disk is full")])
def test_what_is_no_mistake_of_a_topology_gets_out_and_what_was_done_is_kept(stage: Any, team: Any, error: BaseException) -> None:
    def bob(request: Any) -> str:
        raise error

    stage.say["bob"] = bob
    done: list[Any] = []

    async def twice(team: Any) -> Any:
        await team["ann"].ask("q")
        return await team["bob"].ask("q")

    jobs = [*stage.jobs(load_topology("single"), team, ["a", "b"]), *stage.jobs(type_of(stage)(twice), team)]
    with pytest.raises(type(error)):
        run_jobs(jobs, stage.hosts(), Memory(), done.append)
    assert sorted(result.answer for result in done) == ["ann:a", "ann:b"] and gc.isenabled()


def test_who_takes_the_results_may_stop_the_run(stage: Any, team: Any) -> None:
    def full(result: Any) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        run_jobs(stage.jobs(load_topology("single"), team, ["a", "b"]), stage.hosts(), Memory(), full)


# --- company changes nothing ---


class Quick:
    """The first answer counts; who is slower is cancelled. Sampled, and slower for some questions than for others."""

    async def run(self, task: Task, team: Any) -> Any:
        async for draft in first(agent.ask(task.question, sampling=Sampling(0.7)) for agent in team):
            return draft


def say(request: Any) -> Any:
    """Long and short answers, and here and there none."""
    luck = random.Random(f"{request.messages[0].content} {len(request.messages)} {request.seed}")
    return CallError("failed", "out of luck") if luck.random() < 0.05 else ("x" * luck.randrange(1, 30), luck.random())


@given(st.permutations(range(24)), st.integers(1, 24))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("noise", [{}, {"jitter_s": 0.3, "loss": 0.2}])
def test_results_do_not_depend_on_order_or_on_how_many_run_together(stage: Any, noise: dict[str, float], order: list[int], together: int) -> None:
    network = replace(stage.network, links=tuple(replace(link, **noise) for link in stage.network.links))
    team = stage.team(network=network, ann=("phone", say), bob=("phone", say), tim=("tower", say))
    patterns = [Quick(), load_topology("debate"), load_topology("self-consistency", {"member": "tim"}), Waits()]
    jobs = [Job(type(pattern).__name__, pattern, Task(f"t{i}", f"q{i // 2}"), team, repeat=i % 2) for pattern in patterns for i in range(6)]

    def outcomes(jobs: list[Job]) -> dict[int, Any]:
        return {id(r.job): (r.answer, r.confidence, r.usage, r.error) for r in stage.run_jobs(jobs, seed=5)}

    expected = outcomes(jobs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "IN_STEP", together)
        assert outcomes([jobs[i] for i in order]) == expected
    assert len({outcome[0] for outcome in expected.values()}) > 6


def test_jobs_are_begun_only_when_their_turn_comes(stage: Any, team: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "IN_STEP", 2)
    jobs = stage.jobs(load_topology("single"), team, [f"q{i}" for i in range(6)])
    events: list[str] = []

    def given() -> Any:
        for job in jobs:
            events.append(f"take {job.task.id}")
            yield job

    run_jobs(given(), stage.hosts(), Memory(), lambda result: events.append(f"done {result.job.task.id}"))
    assert events == [f"{what} t{first + i}" for first in (0, 2, 4) for what in ("take", "done") for i in range(2)]


def test_results_come_as_soon_as_they_are_there(stage: Any, team: Any) -> None:
    """The quick task is done before the slow one has asked its second question."""

    def tim(request: Any) -> str:
        events.append(f"asked {request.messages[0].content}")
        return "yes"

    async def slow(team: Any) -> Any:
        await team["tim"].ask("one")
        return await team["tim"].ask("two")

    stage.say["tim"] = tim
    events: list[str] = []
    jobs = [*stage.jobs(type_of(stage)(slow), team, arm="slow"), *stage.jobs(load_topology("single", {"member": "tim"}), team, ["one"], arm="quick")]
    run_jobs(jobs, stage.hosts(), Memory(), lambda result: events.append(f"done {result.job.arm}"))
    assert events == ["asked one", "done quick", "asked two", "done slow"]


# --- one question ---


def test_ask_checks_the_team_first_and_tells_the_listener(stage: Any, team: Any) -> None:
    heard: list[Any] = []
    result = ask(team, load_topology("debate"), "q?", hosts=stage.hosts(), listener=heard.append)
    assert result.error is None and result.spans == tuple(heard) and len([span for span in heard if span.kind == "call"]) == 6
    asked = len(stage.asked)
    with pytest.raises(UnmetNeed, match="topology 'star' needs a member with role 'server'; the roles in team 'test' are member"):
        ask(team, load_topology("star"), "q?", hosts=stage.hosts())
    assert len(stage.asked) == asked


def test_a_team_can_be_asked_from_inside_a_running_loop_which_goes_on(stage: Any, team: Any) -> None:
    ticked = threading.Event()
    stage.say["ann"] = lambda request: "yes" if ticked.wait(30) else "the loop stands still"

    async def notebook() -> Any:
        asyncio.get_running_loop().call_later(0.01, ticked.set)
        return await team.run(load_topology("single"), "q?", hosts=stage.hosts())

    assert asyncio.run(notebook()).answer == "yes"


def test_even_without_waiting(stage: Any, team: Any) -> None:
    async def notebook() -> Any:
        return ask(team, load_topology("majority"), "q?", hosts=stage.hosts())

    inside, outside = asyncio.run(notebook()), ask(team, load_topology("majority"), "q?", hosts=stage.hosts())
    assert inside.answer == outside.answer == "ann:q?" and inside.usage == outside.usage
