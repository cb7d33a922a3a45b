"""One task's world: messages that have a place, travel once and are paid for; calls that are billed for what they used."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.net.network import Link, Network
from aiflow_agents.net.together import gather
from aiflow_agents.runtime.scene import stable_hash
from aiflow_agents.wire.message import bring

Run = Callable[[Any], Awaitable[Any]]
anything = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
QUESTION, SAID = 1 + 5 + 3 + 1, 1 + 4 + 1 + 4 + 5  # bytes of `q`, and of `tim:q` with a confidence (see test_timeline)


@pytest.fixture
def line(two_nodes: Network) -> Network:
    """phone - tower - cloud."""
    cloud = replace(two_nodes.nodes["tower"], name="cloud", tier="cloud")
    link = Link("tower", "cloud", up_bps=8000, down_bps=8000, latency_s=0.5)
    return replace(two_nodes, nodes={**two_nodes.nodes, "cloud": cloud}, links=(*two_nodes.links, link))


def moves(stage: Any, team: Any, run: Run) -> tuple[Any, list[tuple[str, str, str]]]:
    """The result of a task, and its transfers: (message, from, to)."""
    spans: list[Any] = []
    result = stage.do(team, run, listener=spans.append)
    return result, [(span.message, span.node, span.to) for span in spans if span.kind == "move"]


# --- messages ---


def test_a_message_travels_once_to_each_node_whoever_asks_for_it(stage: Any) -> None:
    team = stage.team(ann="phone", bob="phone", tim="tower")

    async def run(team: Any) -> Any:
        said = await team["tim"].ask("q")
        await gather([said.to("phone"), said.to("phone"), team["ann"].ask("q", heard=[said]), team["bob"].ask("q", heard=[said, said])])
        return await said.to("phone")

    result, moved = moves(stage, team, run)
    assert moved == [("q0", "phone", "tower"), ("tim.1", "tower", "phone")]
    assert result.usage.wire_bytes == QUESTION + SAID


def test_several_messages_set_out_at_once_on_one_link_after_another(stage: Any) -> None:
    team = stage.team(tim="tower", tom="tower")

    async def run(team: Any) -> Any:
        drafts = await team.ask("q")
        start_s = asyncio.get_running_loop().time()
        here = await bring(drafts, "phone")
        took.append(asyncio.get_running_loop().time() - start_s)
        return here[0]

    took: list[float] = []
    assert stage.do(team, run).error is None
    assert took == [pytest.approx(2 * SAID * 8 / 1600 + 0.125)]


def test_where_the_whole_text_has_come_its_answer_has_come_too_but_not_the_other_way_round(stage: Any) -> None:
    team = stage.team(tim=("tower", lambda request: "  42  "))

    async def text_first(team: Any) -> Any:
        said = await team["tim"].ask("q")
        await said.to("phone")
        return await said.as_("answer").to("phone")

    async def answer_first(team: Any) -> Any:
        said = await team["tim"].ask("q")
        await said.as_("answer").to("phone")
        return await said.to("phone")

    assert moves(stage, team, text_first)[1] == [("q0", "phone", "tower"), ("tim.1", "tower", "phone")]
    result, moved = moves(stage, team, answer_first)
    assert moved == [("q0", "phone", "tower"), ("tim.1", "tower", "phone"), ("tim.1", "tower", "phone")] and result.text == "  42  "


def test_going_back_to_where_it_was_made_is_free(stage: Any) -> None:
    team = stage.team(tim="tower", tom="tower")

    async def run(team: Any) -> Any:
        here = await (await team["tim"].ask("q")).to("phone")
        return await team["tom"].ask("q", heard=[here])

    assert moves(stage, team, run)[1] == [("q0", "phone", "tower"), ("tim.1", "tower", "phone"), ("tom.2", "tower", "phone")]


def test_a_question_is_sent_once_to_each_node_and_another_one_again(stage: Any) -> None:
    team = stage.team(ann="phone", tim="tower", tom="tower")

    async def run(team: Any) -> Any:
        await team.ask("q")
        await team.ask("q")
        return (await team.ask("r"))[0]

    assert moves(stage, team, run)[1] == [("q0", "phone", "tower"), ("q1", "phone", "tower")]


def test_a_transfer_is_paid_for_on_every_link(stage: Any, line: Network) -> None:
    team = stage.team(network=line, kim="cloud")
    result, moved = moves(stage, team, lambda team: team["kim"].ask("q"))
    assert moved == [("q0", "phone", "cloud"), ("kim.1", "cloud", "phone")]
    assert result.usage.wire_bytes == 2 * (QUESTION + SAID)


def test_who_stops_waiting_does_not_stop_the_transfer(stage: Any) -> None:
    team = stage.team(tim="tower")

    async def run(team: Any) -> Any:
        said = await team["tim"].ask("q")
        start_s = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await said.to("phone")
        here = await said.to("phone")
        took.append(asyncio.get_running_loop().time() - start_s)
        return here

    took: list[float] = []
    result, moved = moves(stage, team, run)
    assert moved.count(("tim.1", "tower", "phone")) == 1 and result.answer == "tim:q" and result.usage.wire_bytes == QUESTION + SAID
    assert took == [pytest.approx(SAID * 8 / 1600 + 0.125)]


def test_what_is_on_its_way_at_the_end_is_billed_on_every_link_but_not_waited_for(stage: Any, line: Network) -> None:
    team = stage.team(network=line, ann="phone")

    async def run(team: Any) -> Any:
        said = await team["ann"].ask("q")
        asyncio.ensure_future(bring([said], "tower")).cancel()  # never begins
        going = asyncio.ensure_future(bring([said], "cloud"))
        await asyncio.sleep(0)
        going.cancel()
        return said

    alone = stage.do(team, lambda team: team["ann"].ask("q")).usage
    result, moved = moves(stage, team, run)
    assert moved == [("ann.1", "phone", "cloud")]
    assert result.usage.wire_bytes == 2 * SAID and result.usage.latency_s == alone.latency_s


def test_no_route_is_the_tasks_failure_for_all_who_wait_and_every_time(stage: Any, line: Network) -> None:
    island = replace(line, links=line.links[:1])
    team = stage.team(network=island, ann="phone", tim="tower", kim="cloud")

    async def run(team: Any) -> Any:
        failures.extend(await gather([team["kim"].ask("q"), team["kim"].ask("q"), team["ann"].ask("q")], failures=True))
        said = await team["tim"].ask("q")
        failures.extend(await gather([said.to("cloud"), said.to("phone"), bring([failures[2], said], "cloud"), said.to("cloud")], failures=True))
        return await team["kim"].ask("q")

    failures: list[Any] = []
    result, moved = moves(stage, team, run)
    assert result.error.startswith("NoRoute: no route from 'phone' to 'cloud' in network 'two-nodes'")
    assert [type(failure).__name__ for failure in failures] == ["NoRoute", "NoRoute", "Message", "NoRoute", "Message", "NoRoute", "NoRoute"]
    assert moved == [("q0", "phone", "tower"), ("tim.2", "tower", "phone")] and result.usage.wire_bytes == QUESTION + SAID  # the rest moved nothing


# --- calls ---

READ_2 = 2 * 20 + 20 * 3 + 10  # FLOPs to read a prompt of two tokens (see test_timeline)
WRITE = [0, 30 + 20 * 3, 60 + 20 * (3 + 4), 90 + 20 * (3 + 4 + 5)]  # and to write so many tokens after the first
ARRIVES = QUESTION * 8 / 800 + 0.125  # when `q` is at the tower
PREFILL_S, DECODE_S = 0.25 + READ_2 / 4000, 2 * 0.25 + WRITE[2] / 4000  # of an answer of two letters there


@pytest.fixture
def pair(stage: Any) -> Any:
    return stage.team(ann=("phone", lambda request: "a"), tim=("tower", lambda request: "bb"))


def cancelled(stage: Any, team: Any, after_s: float, then: Run | None = None) -> Any:
    """The bill of a task that cancels a call `after_s` seconds after it began at the tower, less that of its radio."""

    async def run(team: Any) -> Any:
        doomed = asyncio.ensure_future(team["tim"].ask("q"))
        await asyncio.sleep(ARRIVES + after_s)
        doomed.cancel()
        if then:
            return await then(team)
        return await team["ann"].ask("q")

    result = stage.do(team, run)
    assert result.error is None
    return result.usage


@pytest.mark.parametrize("after_s", [0.01, 0.3, PREFILL_S + DECODE_S - 0.13])
def test_a_cancelled_call_is_billed_until_the_cancel_reaches_its_node(stage: Any, pair: Any, after_s: float) -> None:
    alone = stage.do(pair, lambda team: team["ann"].ask("q")).usage
    used = cancelled(stage, pair, after_s)
    share = (after_s + 0.125) / (PREFILL_S + DECODE_S)  # the way back from home takes 0.125 s
    assert used.calls == 2 and used.flops - alone.flops == pytest.approx(share * (READ_2 + WRITE[2]))
    radio_j = 1.0 * QUESTION * 8 / 800 + 0.01 * QUESTION
    assert used.energy_j - alone.energy_j == pytest.approx(10 * (after_s + 0.125) + radio_j)
    assert used.tokens_out - alone.tokens_out == round(3 * share)


def test_a_call_cancelled_when_it_had_nearly_ended_is_billed_no_more_than_whole(stage: Any, pair: Any) -> None:
    whole = READ_2 + WRITE[2] + READ_2 + WRITE[1]
    assert cancelled(stage, pair, PREFILL_S + DECODE_S - 0.01).flops == pytest.approx(whole)


def test_a_call_cancelled_on_its_way_or_in_the_line_is_not_billed(stage: Any, pair: Any) -> None:
    assert (cancelled(stage, pair, -0.1).calls, cancelled(stage, pair, -0.1).wire_bytes) == (1, QUESTION)  # the question has set out

    async def run(team: Any) -> Any:
        both = [asyncio.ensure_future(team["tim"].ask("q", sample=i)) for i in range(2)]
        await asyncio.sleep(ARRIVES + 0.1)
        both[1].cancel()  # waits for the tower's only slot
        return await both[0]

    used = stage.do(pair, run).usage
    assert (used.calls, used.flops) == (1, READ_2 + WRITE[2])


@pytest.mark.parametrize(("after_s", "read_again"), [(0.05, True), (PREFILL_S, False)])
def test_a_prompt_that_was_not_read_to_its_end_is_read_again(stage: Any, pair: Any, after_s: float, read_again: bool) -> None:
    used = cancelled(stage, pair, after_s, lambda team: team["tim"].ask("q", sample=1))
    share = (after_s + 0.125) / (PREFILL_S + DECODE_S)
    assert used.flops == pytest.approx(share * (READ_2 + WRITE[2]) + READ_2 * read_again + WRITE[2])


def test_what_a_topology_forgets_runs_to_its_end_and_is_billed_but_not_waited_for(stage: Any, pair: Any) -> None:
    async def run(team: Any) -> Any:
        kept.append(asyncio.ensure_future(team["tim"].ask("q")))
        return await team["ann"].ask("q")

    kept: list[Any] = []
    used = stage.do(pair, run).usage
    assert used.calls == 2 and used.flops == READ_2 + WRITE[1] + READ_2 + WRITE[2]
    assert used.latency_s == pytest.approx(0.5 + READ_2 / 1000 + 0.5 + WRITE[1] / 1000)


def test_a_bigger_shape_costs_as_it_would_and_answers_as_it_does(stage: Any, pair: Any) -> None:
    ann = pair["ann"]
    large = replace(pair, agents={"ann": replace(ann, shape=replace(ann.info.shape, block_params=1000))})
    small_result, large_result = (stage.do(team, lambda team: team["ann"].ask("q")) for team in (pair, large))
    assert large_result.answer == small_result.answer
    tail = 1000 - 5 * 5 * 3  # of the one block, all but queries, keys and values: only where the prompt ends
    assert large_result.usage.flops - small_result.usage.flops == 2 * (1000 - 10) * 3 - 2 * tail  # two tokens read, one further step
    assert large_result.usage.latency_s > small_result.usage.latency_s


# --- any conversation ---

members = ("ann", "bob", "tim", "kim")
turns = st.lists(st.lists(st.tuples(st.sampled_from(members), st.sets(st.integers(0, 7)), st.booleans()), min_size=1, max_size=3), min_size=1, max_size=4)


@given(turns)
@anything
def test_in_any_conversation_nothing_is_heard_before_it_is_there_and_nothing_is_paid_twice(stage: Any, line: Network, turns: Any) -> None:
    team = stage.team(network=line, ann="phone", bob="phone", tim="tower", kim="cloud")

    async def run(team: Any) -> Any:
        said: list[Any] = []
        for turn in turns:  # everyone in a turn speaks at once, having heard some of what was said before
            calls = []
            for who, heard, short in turn:
                listens = [said[i].as_("answer") if short else said[i] for i in sorted(heard) if i < len(said)]
                calls.append(team[who].ask("q", heard=listens, sample=len(calls)))
            said += await gather(calls)
        return said[-1]

    outcomes = []
    for _ in range(2):
        spans: list[Any] = []
        result = stage.do(team, run, listener=spans.append)
        outcomes.append((result.answer, result.usage, spans))
    assert outcomes[0] == outcomes[1]
    _, usage, spans = outcomes[0]
    transfers, calls = [span for span in spans if span.kind == "move"], [span for span in spans if span.kind == "call"]

    assert usage.calls == len(calls) == sum(map(len, turns)) and [call.message for call in calls] == [f"{call.who}.{i + 1}" for i, call in enumerate(calls)]
    assert max(Counter((move.message, move.to) for move in transfers).values(), default=0) <= 1  # here a text is its own answer
    assert usage.wire_bytes == sum(move.nbytes * len(line.route(move.node, move.to)) for move in transfers)
    made = {call.message: (call.node, call.end_s) for call in calls}
    arrived = {(move.message, move.to): move.end_s for move in transfers}
    for call in calls:
        assert call.end_s > call.start_s >= 0
        for heard in call.heard:
            node, end_s = made[heard]
            assert (end_s if node == call.node else arrived[heard, call.node]) <= call.start_s + 1e-9
    assert usage.latency_s == pytest.approx(max(span.end_s for span in spans))


# --- hashes ---


@given(st.lists(st.text(max_size=3) | st.integers(), max_size=3), st.lists(st.text(max_size=3) | st.integers(), max_size=3))
def test_hashes_tell_parts_apart(one: list[Any], other: list[Any]) -> None:
    assert 0 <= stable_hash(*one) < 2**63
    assert (stable_hash(*one) == stable_hash(*other)) == (one == other)


def test_a_hash_is_the_same_in_every_process() -> None:
    program = "from aiflow_agents.runtime.scene import stable_hash; print(stable_hash(3, 'task', 0, ('a', None)))"
    here = stable_hash(3, "task", 0, ("a", None))
    for salt in ("1", "2"):
        said = subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": salt, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True)
        assert int(said.stdout) == here, said.stderr
