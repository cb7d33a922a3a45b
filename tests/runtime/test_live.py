"""The same topologies under a real clock: what is said and paid for is what the simulation says; calls of many tasks go together."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from aiflow_agents.errors import MemberFailed, UserError
from aiflow_agents.models.protocol import CallError, Sampling, Turn
from aiflow_agents.net.together import first, gather
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.live import Live
from aiflow_agents.runtime.run import ask
from aiflow_agents.topology.load import load_topology
from tests.conftest import Do
from tests.runtime.conftest import live


def same(real: Any, simulated: Any) -> None:
    assert (real.answer, real.text, real.confidence, real.error) == (simulated.answer, simulated.text, simulated.confidence, simulated.error)
    for name in ("calls", "tokens_in", "tokens_out", "wire_bytes"):
        assert getattr(real.usage, name) == getattr(simulated.usage, name)
    assert real.usage.flops == pytest.approx(simulated.usage.flops)
    calls = [sorted((span.who, span.text, span.confidence) for span in spans if span.kind == "call") for spans in (real.spans, simulated.spans)]
    assert calls[0] == calls[1]


def busy(stage: Any) -> tuple[threading.Event, threading.Event]:
    """ann answers as soon as the first event is set; the second one says that she was asked."""
    go, begun = threading.Event(), threading.Event()

    def ann(request: Any) -> str:
        begun.set()
        assert go.wait(30)
        return "yes"

    stage.say["ann"] = ann
    return go, begun


@pytest.fixture
def team(stage: Any) -> Any:
    return stage.team(ann="phone", bob="phone", tim="tower")


@pytest.mark.parametrize(
    ("topology", "options"), [("single", {}), ("majority", {}), ("debate", {"rounds": 2}), ("cascade", {"threshold": 0.9}), ("self-consistency", {})]
)
def test_a_topology_says_and_costs_the_same_under_both_clocks(stage: Any, team: Any, topology: str, options: dict[str, Any]) -> None:
    for i, name in enumerate(("ann", "bob", "tim")):
        stage.say[name] = lambda request, i=i: (f"{(len(request.messages) + request.seed) % 2 + i // 2}", 0.6 + 0.1 * i)
    pattern = load_topology(topology, options)
    simulated = ask(team, pattern, "q?", hosts=stage.hosts(), seed=3)
    real = live(team, stage.hosts(), lambda now: now.ask(pattern, "q?"), seed=3)
    assert simulated.answer
    same(real, simulated)
    assert real.usage.latency_s < simulated.usage.latency_s  # nothing is waited for


def test_an_inquiry_too(stage: Any) -> None:
    team = stage.team(ann=("phone", lambda request: "tim?born qehat" if len(request.messages) == 1 else "qohap=42"), tim=("tower", lambda request: "qohap"))
    team = replace(team, agents={"ann": replace(team["ann"], role="coordinator"), "tim": team["tim"]})
    real = live(team, stage.hosts(), lambda now: now.ask(load_topology("inquiry"), "pop?"))
    same(real, ask(team, load_topology("inquiry"), "pop?", hosts=stage.hosts()))
    assert real.answer == "42" and real.usage.calls == 3


def test_fifty_tasks_go_together(stage: Any, team: Any) -> None:
    batches: list[tuple[int, int]] = []

    async def work(now: Live) -> Any:
        return await asyncio.gather(*(now.ask(load_topology("debate", {"rounds": 1}), f"q{i % 25}") for i in range(50)))

    results = live(team, stage.hosts(), work, note=lambda calls, executed: batches.append((calls, executed)))
    assert [result.error for result in results] == [None] * 50 and sum(calls for calls, _ in batches) == 50 * 6
    assert len(batches) <= 12 and len(stage.batches) == len(batches)  # 6 are the fewest
    assert sum(executed for _, executed in batches) == len(stage.asked) <= 200  # and equal ones are computed once


def test_calls_gather_while_the_host_is_busy(stage: Any, team: Any) -> None:
    go, begun = busy(stage)

    async def work(now: Live) -> None:
        asked = [asyncio.ensure_future(now.ask(load_topology("single"), "q0"))]
        await asyncio.to_thread(begun.wait, 30)
        asked += [asyncio.ensure_future(now.ask(load_topology("single"), f"q{i}")) for i in range(1, 20)]
        while now.dispatcher.waiting < 19:
            await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*asked)

    live(team, stage.hosts(), work)
    assert [len(requests) for _, requests in stage.batches] == [1, 19]


def test_who_is_refused_fails_alone(stage: Any, team: Any) -> None:
    stage.say["ann"] = lambda request: CallError("too-long", "too long") if request.messages[0].content == "q1" else "yes"

    async def work(now: Live) -> Any:
        return await asyncio.gather(*(now.answer(load_topology("majority"), f"q{i}") for i in range(3)))

    answered = live(team, stage.hosts(), work)
    assert [a.result.error for a in answered] == [None, "MemberFailed: ann: too long", None]
    assert isinstance(answered[1].error, MemberFailed) and answered[0].error is None and answered[1].result.usage.calls == 2


def test_a_call_that_breaks_its_batch_breaks_no_other(stage: Any, team: Any) -> None:
    def ann(request: Any) -> str:
        if request.messages[0].content == "q1":
            raise ZeroDivisionError("by zero")
        return "yes"

    stage.say["ann"] = ann

    async def work(now: Live) -> Any:
        return await asyncio.gather(*(now.ask(load_topology("single"), f"q{i}") for i in range(4)))

    assert [result.error for result in live(team, stage.hosts(), work)] == [None, "ZeroDivisionError: by zero (single.py:29)", None, None]


def test_what_cannot_be_loaded_is_said_once_to_each(team: Any) -> None:
    loads: list[str] = []

    def load(folder: str) -> Any:
        loads.append(folder)
        raise UserError(f"no model folder at {folder}")

    async def work(now: Live) -> Any:
        with pytest.raises(UserError, match="no model folder"):
            await now.warm()
        loads.clear()
        return await asyncio.gather(*(now.ask(load_topology("single"), f"q{i}") for i in range(4)))

    results = live(team, InlineHosts(load=load), work)
    assert {result.error for result in results} == {"UserError: no model folder at ann"} and loads == ["ann"]


# --- what is given up ---


def test_a_question_that_is_given_up_is_not_asked(stage: Any, team: Any) -> None:
    go, begun = busy(stage)

    async def work(now: Live) -> Any:
        asked = [asyncio.ensure_future(now.ask(load_topology("single"), "q0"))]
        await asyncio.to_thread(begun.wait, 30)
        asked += [asyncio.ensure_future(now.ask(load_topology("single"), f"q{i}")) for i in (1, 2)]
        while now.dispatcher.waiting < 2:
            await asyncio.sleep(0)
        asked[1].cancel()
        await asyncio.wait([asked[1]])
        go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    kept, given_up, other = live(team, stage.hosts(), work)
    assert isinstance(given_up, asyncio.CancelledError) and kept.answer == other.answer == "yes"
    assert [request.messages[0].content for request in stage.asked] == ["q0", "q2"]


@pytest.mark.parametrize("whole_bill", [True, False])
def test_who_answers_first_wins_and_what_was_under_way_is_paid_for(stage: Any, whole_bill: bool) -> None:
    go = threading.Event()
    team = stage.team(ann="phone", tim=("tower", lambda request: "late" if go.wait(30) else "never"))

    async def quick(team: Any) -> Any:
        async for draft in first(agent.ask("q") for agent in team):
            go.set() if whole_bill else None
            return draft

    async def work(now: Live) -> Any:
        now.dispatcher._here._free = 2  # as if there were two hosts
        answered = await now.answer(Do(quick), "q", whole_bill=whole_bill)
        before = answered.ledger.calls
        go.set()
        await now.close()
        return answered, before, answered.ledger.calls

    answered, before, after = live(team, stage.hosts(), work)
    assert answered.result.answer == "ann:q" and after == 2
    assert (before, answered.unfinished) == ((2, 0) if whole_bill else (1, 1))
    assert {name: spent.calls for name, spent in answered.ledger.members.items()} == {"ann": 1, "tim": 1}


def test_seconds_are_a_limit(stage: Any, team: Any) -> None:
    async def slow(team: Any) -> Any:
        await team["ann"].ask("q")
        await asyncio.sleep(30)

    began = time.monotonic()
    result = live(team, stage.hosts(), lambda now: now.ask(Do(slow), "q", budget=Budget(seconds=0.2)))
    assert result.over == "0.2 seconds: the time is up" and result.answer == "ann:q" and 0.1 < time.monotonic() - began < 20


def test_other_limits_hold_too(stage: Any, team: Any) -> None:
    result = live(team, stage.hosts(), lambda now: now.ask(load_topology("debate"), "q"), budget=Budget(bytes=60))
    assert result.usage.wire_bytes <= 60 and result.over.startswith("60 bytes: ")
    assert result.answer == ask(team, load_topology("debate"), "q", hosts=stage.hosts(), budget=Budget(bytes=60)).answer


# --- time and place ---


def test_a_pace_is_kept_where_it_is_wanted(stage: Any, team: Any) -> None:
    pattern = load_topology("single", {"member": "tim"})
    simulated = ask(team, pattern, "q", hosts=stage.hosts())
    moves = sum(span.end_s - span.start_s for span in simulated.spans if span.kind == "move")
    at_once = live(team, stage.hosts(), lambda now: now.ask(pattern, "q"))
    paced = live(team, stage.hosts(), lambda now: now.ask(pattern, "q"), pace=True)
    assert at_once.usage.latency_s < moves <= paced.usage.latency_s
    assert paced.usage.energy_j == pytest.approx(simulated.usage.energy_j) and paced.usage.wire_bytes == simulated.usage.wire_bytes


def test_each_counts_from_its_own_beginning_and_leaves_nothing_behind(stage: Any, team: Any) -> None:
    from aiflow_agents.runtime.scene import SCENE

    async def work(now: Live) -> Any:
        await asyncio.sleep(0.3)
        result = await now.ask(load_topology("single"), "q")
        assert SCENE.get(None) is None
        return result

    assert live(team, stage.hosts(), work).usage.latency_s < 0.3


def test_the_loop_goes_on_while_the_models_think(stage: Any, team: Any) -> None:
    ticked = threading.Event()
    stage.say["ann"] = lambda request: "yes" if ticked.wait(30) else "the loop stands still"

    async def work(now: Live) -> Any:
        asyncio.get_running_loop().call_later(0.01, ticked.set)
        return await now.ask(load_topology("single"), "q?")

    assert live(team, stage.hosts(), work).answer == "yes"


def test_what_led_to_the_question_goes_along_with_it_and_is_paid_for(stage: Any, team: Any) -> None:
    before = (Turn("system", "be brief"), Turn("user", "hello"), Turn("assistant", "hi"))

    async def two(team: Any) -> Any:
        await gather(team[name].ask(question) for name, question in (("tim", "q"), ("tim", "other")))
        return await team["ann"].ask("q")

    plain = live(team, stage.hosts(), lambda now: now.ask(Do(two), "q"))
    stage.batches.clear()
    long = live(team, stage.hosts(), lambda now: now.ask(Do(two), "q", before=before))
    assert {tuple(request.messages) for request in stage.asked} == {(*before, Turn("user", "q")), (Turn("user", "other"),)}
    assert long.usage.wire_bytes - plain.usage.wire_bytes >= len("be brief" + "hello" + "hi")


def test_seeds_are_those_of_the_simulation(stage: Any, team: Any) -> None:
    stage.say["ann"] = lambda request: str(request.seed)
    sampled = Do(lambda team: team["ann"].ask("q", sampling=Sampling(0.7)))
    said = [live(team, stage.hosts(), lambda now, seed=seed: now.ask(sampled, "q", seed=seed)).answer for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2] and said[0] == ask(team, sampled, "q", hosts=stage.hosts(), seed=1).answer


def test_a_topology_that_does_not_fit_is_refused_at_once(stage: Any, team: Any) -> None:
    for topology, says in ((load_topology("star"), "needs a member with role 'server'"), ("debate", "not its name")):
        with pytest.raises(UserError, match=says):
            live(team, stage.hosts(), lambda now, topology=topology: now.ask(topology, "q"))


def test_hooks_are_told_of_every_question_and_change_nothing(stage: Any, team: Any) -> None:
    from aiflow_agents.runtime.hooks import Hook

    told: list[tuple[str, Any]] = []

    class Watch(Hook):
        def on_run_start(self, run: Any) -> None:
            told.append(("start", run.team.name))

        def on_task_end(self, task: Any, result: Any) -> None:
            told.append((task.job.task.question, result.answer))
            raise RuntimeError("its own affair")

        def on_call(self, task: Any, call: Any) -> None:
            told.append(("call", call.agent.name))

        def on_run_end(self, run: Any, outcome: Any) -> None:
            told.append(("end", outcome))

    for name in ("ann", "bob", "tim"):
        stage.say[name] = lambda request: request.messages[-1].content.upper()

    async def work(now: Live) -> list[Any]:
        waits = asyncio.ensure_future(now.ask(Do(lambda team: asyncio.sleep(60)), "never"))
        await asyncio.sleep(0)
        found = [await now.ask(load_topology("majority"), question) for question in ("one", "two")]
        waits.cancel()
        return found

    found = live(team, stage.hosts(), work, hooks=[Watch()])
    assert [result.answer for result in found] == ["ONE", "TWO"] and all(result.error is None for result in found)
    assert told[0] == ("start", team.name) and told[-1] == ("end", None)
    assert [one for one in told if one[0] in ("one", "two")] == [("one", "ONE"), ("two", "TWO")]
    assert sorted(one[1] for one in told if one[0] == "call") == ["ann", "ann", "bob", "bob", "tim", "tim"] and not any(one[0] == "never" for one in told)
