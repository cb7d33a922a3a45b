"""Budgets by hand: what is cut where, what the answer then is, and what a topology may make of it. The worlds are those of test_timeline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aiflow_agents.errors import OverBudget
from aiflow_agents.models.protocol import Shape
from aiflow_agents.net.together import gather, within_budget
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.message import Message

QUESTION, SAID = 10, 15  # bytes of `q`, and of `tim:q` with its confidence
READ_2 = Shape(1, 5, 1, 1, 5, 10, 5, 10).flops(2, 1)[0]


@pytest.fixture
def pair(stage: Any) -> Any:
    """Both answer with six tokens, having read two."""
    return stage.team(ann="phone", tim="tower")


def both(team: Any) -> Any:
    async def run(team: Any) -> Any:
        near = await team["ann"].ask("q")
        far = await team["tim"].ask("q", heard=[near])
        return await far.to(team.home)

    return run(team)


def stopped(stage: Any, team: Any, run: Any = both, question: str = "q", **limits: Any) -> Any:
    results = stage.run(_Do(run), team, [question], budget=Budget(**limits))
    assert results[0].error is None
    return results[0]


class _Do:
    def __init__(self, run: Any):
        self._run = run

    async def run(self, task: Any, team: Any) -> Any:
        return await self._run(team)


# --- limits ---


def test_limits_are_numbers_that_can_be_kept() -> None:
    for wrong in ({"bytes": -1}, {"seconds": float("nan")}, {"flops": float("inf")}, {"joules": 3}, {"tokens": 1.5}):
        with pytest.raises(ValidationError):
            Budget(**wrong)
    assert not Budget() and Budget(bytes=0) and Budget(bytes=0).limits() == {"bytes": 0} and Budget.model_validate(Budget(flops=2).model_dump()).flops == 2
    assert str(Budget(tokens=1200, flops=2e7, seconds=0.5)) == "1,200 tokens, 2e+07 FLOPs, 0.5 seconds"


@settings(deadline=None)
@given(*[st.none() | st.integers(0, 9)] * 4)
def test_two_budgets_at_once_are_the_smaller_of_each_limit(a: Any, b: Any, c: Any, d: Any) -> None:
    tight = Budget(tokens=a, bytes=b) & Budget(tokens=c, seconds=d)
    assert tight.tokens == (min(a, c) if None not in (a, c) else a if c is None else c) and (tight.bytes, tight.seconds) == (b, d)
    assert Budget(tokens=a) & None == Budget(tokens=a)


# --- transfers ---


def test_a_transfer_that_would_exceed_the_bytes_does_not_set_out(stage: Any, pair: Any) -> None:
    free = stage.run(_Do(both), pair, ["q"])[0]
    assert stopped(stage, pair, bytes=free.usage.wire_bytes).usage == free.usage
    last = stopped(stage, pair, bytes=free.usage.wire_bytes - 1)  # the way home cannot be paid for
    assert (last.answer, last.usage.wire_bytes, last.usage.calls) == ("ann:q", free.usage.wire_bytes - SAID, 2)
    assert last.over == f"{free.usage.wire_bytes - 1} bytes: {SAID - 1} are left, tim.2 from tower to phone takes {SAID}"
    first = stopped(stage, pair, bytes=QUESTION)
    assert (first.answer, first.usage.wire_bytes, first.usage.calls) == ("ann:q", QUESTION, 1)
    none = stopped(stage, pair, bytes=0)
    assert (none.answer, none.confidence, none.usage.wire_bytes) == ("ann:q", pytest.approx(0.75), 0)


def test_what_was_refused_once_stays_refused_and_nobody_is_asked_anything_new(stage: Any, pair: Any) -> None:
    async def run(team: Any) -> Any:
        near = await team["ann"].ask("q")
        for question in ("a long question", "q"):  # the second one could be paid for
            with pytest.raises(OverBudget):
                await team["tim"].ask(question)
        with pytest.raises(OverBudget):
            await team["ann"].ask("q", sample=1)  # and this one costs no bytes
        return near

    result = stopped(stage, pair, run, bytes=QUESTION)
    assert (result.answer, result.usage.calls, result.usage.wire_bytes) == ("ann:q", 1, 0) and result.over is not None


# --- calls ---


@pytest.mark.parametrize(("tokens", "made", "calls"), [(12, 12, 2), (11, 11, 2), (9, 9, 2), (8, 6, 1), (6, 6, 1), (3, 3, 1), (2, 0, 0), (0, 0, 0)])
def test_an_answer_is_cut_at_the_last_token_and_one_that_could_say_nothing_is_not_begun(stage: Any, pair: Any, tokens: int, made: int, calls: int) -> None:
    def twice(team: Any) -> Any:
        async def run() -> Any:
            said = await team["ann"].ask("q")
            return (said, await team["ann"].ask("r"))[1]

        return run()

    stage.say["ann"] = lambda request: "abc"  # two read, four made
    result = stopped(stage, pair, twice, tokens=tokens)
    used = result.usage
    assert (used.tokens_in + used.tokens_out, used.calls) == (made, calls)
    assert (result.over is None) == (tokens == 12) and result.answer == ("abc" if tokens >= 6 else "")


def test_a_cut_call_has_kept_its_node_busy_as_long_as_it_ran(stage: Any, pair: Any) -> None:
    stage.say["ann"] = lambda request: "abcde"
    free = stage.do(pair, lambda team: team["ann"].ask("q")).usage
    cut = stopped(stage, pair, lambda team: team["ann"].ask("q"), tokens=2 + 4).usage  # of six tokens four: the prompt's pass, and three of five steps
    step = free.flops - READ_2
    assert cut.flops == pytest.approx(READ_2 + step * 3 / 5) and cut.tokens_out == 4
    assert cut.latency_s == pytest.approx(0.5 + READ_2 / 1000 + 3 * 0.5 + step * 3 / 5 / 1000) and cut.energy_j == pytest.approx(2 * cut.latency_s)


def test_flops_are_cut_at_a_whole_token_and_a_prompt_that_does_not_fit_is_not_read(stage: Any, pair: Any) -> None:
    free = stage.do(pair, lambda team: team["ann"].ask("q")).usage
    step = (free.flops - READ_2) / (free.tokens_out - 1)
    result = stopped(stage, pair, lambda team: team["ann"].ask("q"), flops=READ_2 + 2.5 * step)
    assert result.usage.flops == pytest.approx(READ_2 + 2 * step) and result.usage.tokens_out == 3 and result.answer == ""
    refused = stopped(stage, pair, lambda team: team["ann"].ask("q"), flops=READ_2 - 1)
    assert refused.usage.flops == refused.usage.calls == refused.usage.latency_s == 0
    assert refused.over == f"{READ_2 - 1:g} FLOPs: {READ_2 - 1:.0f} are left, a call of ann takes {READ_2:.0f} to its first token"


def test_what_a_cancelled_call_did_not_use_can_be_spent_again(stage: Any, pair: Any) -> None:
    async def run(team: Any) -> Any:
        doomed = asyncio.ensure_future(team["ann"].ask("q"))
        await asyncio.sleep(0.1)
        doomed.cancel()
        return await team["tim"].ask("q")

    free = stage.do(pair, run).usage
    again = stopped(stage, pair, run, tokens=free.tokens_in + free.tokens_out, flops=free.flops)
    assert again.usage == free and again.over is None and again.answer == "tim:q"


# --- time ---


def test_when_the_time_is_up_the_topology_is_cancelled_and_what_comes_later_does_not_count(stage: Any, pair: Any) -> None:
    async def run(team: Any) -> Any:
        said = await team["tim"].ask("q")
        await said.to(team.home)
        await asyncio.sleep(1000)
        raise AssertionError

    spans: list[Any] = []
    (result,) = stage.run(_Do(run), pair, ["q"], budget=Budget(seconds=900), listener=spans.append)
    assert (result.answer, result.usage.latency_s, result.over) == ("tim:q", 900, "900 seconds: the time is up")
    arrived = spans[-1].end_s
    assert stopped(stage, pair, run, seconds=arrived).answer == "tim:q"
    early = stopped(stage, pair, run, seconds=arrived - 0.01)
    assert (early.answer, early.usage.latency_s) == ("", arrived - 0.01) and early.usage.wire_bytes == QUESTION + SAID  # it was on its way


def test_a_topology_that_turns_a_deaf_ear_is_late_all_the_same(stage: Any, pair: Any) -> None:
    async def run(team: Any) -> Any:
        near = await team["ann"].ask("q")
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(50)
        return await team["tim"].ask("q", heard=[near])

    result = stopped(stage, pair, run, seconds=50)
    assert (result.answer, result.usage.latency_s) == ("ann:q", 50) and result.over == "50 seconds: the time is up"


def test_a_timeout_of_its_own_is_still_a_mistake_of_the_topology(stage: Any, pair: Any) -> None:
    async def run(team: Any) -> Any:
        async with asyncio.timeout(0.01):
            return await team["ann"].ask("q")

    result = stage.run(_Do(run), pair, ["q"], budget=Budget(seconds=50))[0]
    assert result.error.startswith("TimeoutError") and result.answer is None


# --- the best answer so far ---


def test_what_one_agent_asks_another_is_no_answer_and_nor_is_what_that_one_says(stage: Any) -> None:
    team = stage.team(chair="tower", kin="phone")
    stage.say["chair"] = lambda request: "kin?where"
    stage.say["kin"] = lambda request: "here"

    async def inquire(team: Any) -> Any:
        turn = await team["chair"].ask("q")
        said = await team["kin"].ask(turn)  # this brings it home
        return await team["chair"].ask("q", heard=[turn, said], dialogue=True)

    free = stage.do(team, inquire).usage
    assert stage.do(team, inquire).answer == "kin?where"
    assert stopped(stage, team, inquire, bytes=free.wire_bytes - 1).answer == ""


def test_a_topology_may_react_and_the_task_still_counts_as_over_budget(stage: Any) -> None:
    team = stage.team(ann="phone", bob="phone", tim="phone")
    stage.say |= {"ann": lambda request: ("yes", 0.4), "bob": lambda request: ("yes", 0.4), "tim": lambda request: ("no", 0.9)}
    free = stage.run(load_topology("majority"), team, ["q"])[0].usage
    result = stage.run(load_topology("majority"), team, ["q"], budget=Budget(tokens=free.tokens_in + free.tokens_out - 1))[0]
    assert (result.answer, result.usage.calls) == ("yes", 3) and result.over == "16 tokens: a call of tim was cut in mid-answer"
    assert "(over budget: 16 tokens:" in str(result)


def test_a_budget_of_a_topology_and_one_of_the_run_hold_together(stage: Any, pair: Any) -> None:
    def single(tokens: int | None) -> Any:
        return load_topology("single", {"member": "ann", "budget": None if tokens is None else {"tokens": tokens}})

    for own, of_run, made in ((3, 5, 3), (5, 3, 3), (None, 4, 4), (4, None, 4), (None, None, 8)):
        used = stage.run(single(own), pair, ["q"], budget=None if of_run is None else Budget(tokens=of_run))[0].usage
        assert used.tokens_in + used.tokens_out == made
    assert "budget" not in single(None).learned() and single(3).learned()["budget"] == {"tokens": 3}


def test_nothing_but_the_budget_is_forgiven() -> None:
    asyncio.run(forgives())


async def forgives() -> None:
    async def gives(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    assert await within_budget(map(gives, [1, OverBudget("no"), 2])) == [1, 2] and await within_budget([]) == []
    with pytest.raises(OverBudget, match="first"):
        await within_budget(map(gives, [OverBudget("first"), OverBudget("second")]))
    with pytest.raises(ZeroDivisionError):
        await within_budget(map(gives, [1, OverBudget("no"), ZeroDivisionError()]))
    assert isinstance((await gather(map(gives, [OverBudget("no")]), failures=True))[0], OverBudget)


def test_the_first_to_pay_for_a_greeting_is_the_first_who_can(stage: Any, pair: Any) -> None:
    """Two agents meet once a session; a task whose budget does not reach for that leaves it to the next."""
    from aiflow_agents.runtime.scene import Scene
    from aiflow_agents.runtime.task import Task

    hellos = ("phone", b"x" * 20), ("tower", b"y" * 20)
    session: Any = {}

    async def meet(scene: Any) -> int:
        try:
            await scene.greet(*hellos)
        except OverBudget:
            return -1
        return scene.ledger.wire_bytes

    async def run(team: Any) -> Message:
        for budget, paid in ((Budget(bytes=39), -1), (Budget(bytes=40), 40), (Budget(bytes=0), 0)):
            assert await meet(Scene(Task("t", "q"), team.network, session=session, budget=budget)) == paid
        return await team["ann"].ask("q")

    assert stage.do(pair, run).answer == "ann:q"
