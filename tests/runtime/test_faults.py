"""Members on nodes that die and behind links that go away: who fails, what it costs, who carries on; in virtual time and at a real pace."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from aiflow_agents.errors import MemberFailed, UserError
from aiflow_agents.models.protocol import CallError
from aiflow_agents.net.together import gather, quorate, within_budget
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.live import Live
from aiflow_agents.runtime.run import ask
from aiflow_agents.runtime.scene import SCENE
from aiflow_agents.topology.load import load_topology
from tests.runtime.conftest import live


@pytest.fixture
def team(stage: Any) -> Any:
    return stage.team(ann="phone", bob="phone", tim="tower")


async def failing(awaitable: Any) -> tuple[MemberFailed, float]:
    """How it fails, and when."""
    with pytest.raises(MemberFailed) as error:
        await awaitable
    return error.value, asyncio.get_running_loop().time()


def does(stage: Any, team: Any, run: Any, **options: Any) -> tuple[Any, Any]:
    """What `run(team)` gives, and the result of the task, which ends with ann's answer."""
    got: list[Any] = []

    async def whole(team: Any) -> Any:
        got.append(await run(team))
        return await team["ann"].ask("the end")

    result = stage.do(team, whole, **options)
    assert result.error is None
    return got[0], result


# --- calls ---


def test_a_call_fails_as_its_node_dies_and_is_billed_so_far(stage: Any, team: Any) -> None:
    alone = stage.team(ann="phone", tim="tower")
    calm = ask(alone, load_topology("single", {"member": "tim"}), "q", hosts=stage.hosts())
    (call,) = [span for span in calm.spans if span.kind == "call"]
    third = call.start_s + (call.end_s - call.start_s) / 3
    struck = ask(alone.with_faults(f"tower dies {third}"), load_topology("single", {"member": "tim"}), "q", hosts=stage.hosts())
    assert struck.error == f"MemberFailed: tim: tower died after {third:g} s" and struck.usage.latency_s == pytest.approx(third)
    assert struck.usage.calls == 1 and struck.usage.flops == pytest.approx(calm.usage.flops / 3)
    question = next(span for span in calm.spans if span.kind == "move")
    assert struck.usage.wire_bytes == question.nbytes


def test_a_dead_node_is_not_asked(stage: Any, team: Any) -> None:
    async def run(team: Any) -> Any:
        first = await team["tim"].ask("q")
        await asyncio.sleep(60)
        asked = len(stage.asked)
        lost, when_s = await failing(team["tim"].ask("q"))  # the question is there
        assert len(stage.asked) == asked and when_s == asyncio.get_running_loop().time()
        return first, lost

    (first, lost), result = does(stage, team.with_faults("edge dies 50 100"), run)
    assert (lost.member, lost.reason, lost.kind) == ("tim", "tower died after 50 s", "died") and first.node == "tower"
    assert result.usage.calls == 2


def test_a_call_in_line_dies_unbilled(stage: Any) -> None:
    team = stage.team(ann="phone", tim="tower", tom="tower")
    calm = ask(team, load_topology("weighted"), "q", hosts=stage.hosts())
    first, second = sorted(span.end_s for span in calm.spans if span.kind == "call" and span.node == "tower")

    async def run(team: Any) -> Any:
        return await gather((agent.ask("q") for agent in team), failures=True)

    for dies_s, failed, billed in ((first + 1e-6, {"tom"}, 2), (first - 1e-6, {"tim", "tom"}, 1)):
        said, result = does(stage, team.with_faults(f"tower dies {dies_s}"), run)
        assert {error.member for error in said if isinstance(error, MemberFailed)} == failed and first < second
        assert result.usage.calls == 2 + billed  # ann was asked twice


def test_a_node_that_comes_back_has_to_read_again_and_a_message_waits_for_it(stage: Any, team: Any) -> None:
    async def run(team: Any) -> Any:
        usage = [(await team["tim"].ask("q", sample=i)).usage for i in range(2)]
        await asyncio.sleep(100 - asyncio.get_running_loop().time())
        usage.append((await team["tim"].ask("q", sample=2)).usage)  # the question is there since long
        usage.append((await team["tim"].ask("r")).usage)
        return usage

    (one, two, three, _), _ = does(stage, team.with_faults("tower dies 80 10"), run)
    assert one.tokens_in == three.tokens_in > 0 and two.tokens_in == 0 and three.flops == pytest.approx(one.flops)

    async def wait(team: Any) -> Any:
        return (await team["tim"].ask("q")), asyncio.get_running_loop().time()

    (_, when_s), result = does(stage, team.with_faults("tower dies 0 90"), wait)
    assert when_s > 90 and result.error is None


# --- messages ---


def test_what_can_never_come_fails_whoever_waits_for_it(stage: Any, team: Any) -> None:
    async def run(team: Any) -> Any:
        said = await team["tim"].ask("q")
        await asyncio.sleep(60)
        there = await failing(team["tim"].ask("another"))
        home = await failing(said.to("phone"))
        peer = await failing(team["ann"].ask("q", heard=[said]))
        again = await failing(team["bob"].ask("q", heard=[said]))
        met = await failing(SCENE.get().greet(("tower", b"tim"), ("phone", b"ann"), "tim", "ann"))
        assert SCENE.get().met == []
        return there, home, peer, again, met

    (there, home, peer, again, met), result = does(stage, team.with_faults("tower dies 50"), run)
    assert (there[0].member, there[0].reason) == ("tim", "message q1 cannot get from phone to tower: tower died after 50 s, for good")
    assert (home[0].member, home[0].reason) == ("tim", "message tim.1 cannot get from tower to phone: tower died after 50 s, for good")
    assert peer[0].member == again[0].member == met[0].member == "tim" and {error.kind for error, _ in (there, home, peer, again, met)} == {"died"}
    assert {when_s for _, when_s in (there, home, peer, again, met)} == {there[1]} and result.usage.calls == 2


def test_a_message_on_its_way_fails_when_its_link_goes_for_good(stage: Any, team: Any) -> None:
    begun: list[float] = []

    async def run(team: Any) -> Any:
        long = await team["ann"].ask("q")
        asking = [asyncio.ensure_future(failing(team["tim"].ask(question, heard=[long]))) for question in ("q", "another")]
        begun.append(asyncio.get_running_loop().time())
        return await gather(asking)

    lost, result = does(stage, team.with_faults("phone-edge down 4"), run)
    assert begun[0] < 4 and [when_s for _, when_s in lost] == [4, 4]
    assert lost[0][0].reason.endswith("the link phone-tower went away after 4 s, for good") and lost[0][0].kind == "cut off" and lost[0][0].member == "tim"

    async def forgets(team: Any) -> Any:
        asyncio.ensure_future(asyncio.wait([asyncio.ensure_future(team["tim"].ask("q"))]))
        await asyncio.sleep(0.001)

    _, result = does(stage, team.with_faults("phone-edge down 0.01"), forgets)
    assert result.error is None and result.usage.wire_bytes == 1  # what had set out


def test_a_topology_has_its_deadline_and_an_answer_of_its_own(stage: Any, team: Any) -> None:
    async def run(team: Any) -> Any:
        own = await team["ann"].ask("q")
        try:
            async with asyncio.timeout(30):
                return await (await team["tim"].ask("q", heard=[own])).to(team.home)
        except (TimeoutError, MemberFailed):
            return own

    calm = stage.do(team, run)
    assert calm.answer == "tim:q" and stage.do(team.with_faults("any down 1 2"), run).answer == "tim:q"
    for fault in ("any down 1 300", "tower dies 1", "tower dies 1 300"):
        assert stage.do(team.with_faults(fault), run).answer == "ann:q"


def test_who_lets_it_out_fails_like_any_other_and_a_resumed_run_tries_again(stage: Any, team: Any) -> None:
    result = ask(team.with_faults("tower dies 0"), load_topology("majority"), "q", hosts=stage.hosts())
    assert result.answer is None and result.error == "MemberFailed: tim: message q0 cannot get from phone to tower: tower died after 0 s, for good"


@pytest.mark.parametrize("limit", [10, 18, 30, 50])
def test_bytes_that_go_again_stay_within_the_budget(stage: Any, limit: int) -> None:
    team = stage.team(ann="phone", tim="tower").with_faults("any down 0.1 1", "any down 1.15 1")
    result = ask(team, load_topology("weighted"), "question", hosts=stage.hosts(), budget=Budget(bytes=limit))
    free = ask(team, load_topology("weighted"), "question", hosts=stage.hosts())
    assert result.usage.wire_bytes <= limit and free.usage.wire_bytes > limit and (result.over or "").startswith(f"{limit} bytes")


def test_a_stream_pauses_while_its_link_is_away_and_breaks_off_where_it_is_gone(stage: Any) -> None:
    team = stage.team(tim="tower")

    def streamed(*faults: str) -> Any:
        return ask(team.with_faults(*faults), load_topology("stream"), "q", hosts=stage.hosts())

    calm = [portion.at_s for portion in streamed().delivery.portions]
    cut = (calm[1] + calm[2]) / 2 + 0.01  # the third is on the air
    paused = streamed(f"any down {cut} 5")
    came = [portion.at_s for portion in paused.delivery.portions]
    assert came[:2] == calm[:2] and min(came[2:]) > cut + 5 and came == sorted(came) and paused.answer == "tim:q"
    assert sum(portion.tokens for portion in paused.delivery.portions) == 6
    away = streamed(f"any down {cut}")
    assert away.error.startswith("MemberFailed: tim: message tim.") and away.error.endswith(f"the link phone-tower went away after {cut:g} s, for good")
    dead = streamed(f"tower dies {cut}")
    assert dead.error == f"MemberFailed: tim: tower died after {cut:g} s" and dead.usage.calls == 1 and dead.usage.tokens_out < 6


# --- a quorum ---


@pytest.fixture
def four(stage: Any) -> Any:
    """They say who they heard: `ann<bob,cid`."""
    names = ("ann", "bob", "cid", "tim")
    team = stage.team(**dict.fromkeys(names, "phone"), tom="tower")
    shape = replace(team["ann"].info.shape, block_params=1)
    for name in (*names, "tom"):
        stage.say[name] = lambda request, name=name: f"{name}<{','.join(turn.name for turn in request.messages[1:])}"
    return replace(team, agents={agent.name: replace(agent, info=replace(agent.info, shape=shape), node="tower" if agent.name == "tim" else agent.node) for agent in team})


def heard(result: Any) -> dict[str, set[str]]:
    return {span.who: set(filter(None, span.text.partition("<")[2].split(","))) for span in result.spans if span.kind == "call" and span.heard}


def test_a_debate_goes_on_without_the_members_it_loses_as_long_as_a_quorum_is_left(stage: Any, four: Any) -> None:
    calm = ask(four, load_topology("debate"), "q", hosts=stage.hosts())
    first = [span for span in calm.spans if span.kind == "call" and not span.heard]
    last = max(span.end_s for span in first)
    everybody = {"ann", "bob", "cid", "tim", "tom"}
    assert heard(calm) == {name: everybody - {name} for name in everybody}
    # all have answered once; then those at the tower die: nobody will hear them
    struck = four.with_faults(f"tower dies {last + 1e-3}")
    result = ask(struck, load_topology("debate", {"quorum": 3, "decide": "majority"}), "q", hosts=stage.hosts())
    assert heard(result) == {name: {"ann", "bob", "cid"} - {name} for name in ("ann", "bob", "cid")} and result.error is None
    assert result.answer in ("ann<bob,cid", "bob<ann,cid", "cid<ann,bob") and 5 + 3 <= result.usage.calls <= 10
    # before anybody there has said anything
    early = ask(four.with_faults("tower dies 0.01"), load_topology("debate", {"quorum": 3}), "q", hosts=stage.hosts())
    assert heard(early) == heard(result) and early.usage.calls == 6
    # after the second answers, which cannot come home any more
    late = four.with_faults(f"tower dies {max(span.end_s for span in calm.spans if span.kind == 'call') + 1e-3}")
    end = ask(late, load_topology("debate", {"quorum": 3, "decide": "majority"}), "q", hosts=stage.hosts())
    assert heard(end) == heard(calm) and end.answer and end.answer[:3] in ("ann", "bob", "cid")
    for options in ({}, {"quorum": 4}):
        for team in (struck, late):
            failed = ask(team, load_topology("debate", options), "q", hosts=stage.hosts())
            assert (failed.error or "").startswith(("MemberFailed: tim", "MemberFailed: tom"))


def test_ratings_and_a_vote_have_a_quorum_too(stage: Any, four: Any) -> None:
    for name in four.agents:
        stage.say[name] = lambda request, name=name: (request.score or name, 0.5)
    can = frozenset({"logprobs", "score"})
    team = replace(four, agents={agent.name: replace(agent, info=replace(agent.info, capabilities=can)) for agent in four})
    calm = ask(team, load_topology("debate", {"reply": "ratings"}), "q", hosts=stage.hosts())
    assert calm.usage.calls == 5 + 5 * 4
    dies_s = max([span for span in calm.spans if span.kind == "call"][:5], key=lambda span: span.end_s).end_s + 1e-3
    struck = team.with_faults(f"tower dies {dies_s}")
    result = ask(struck, load_topology("debate", {"reply": "ratings", "quorum": 3, "decide": "pooled"}), "q", hosts=stage.hosts())
    rated = [span for span in result.spans if span.kind == "call" and span.heard]
    assert result.error is None and len(rated) == 3 * 2 and {span.text for span in rated} == {"ann", "bob", "cid"}
    gone = team.with_faults("tower dies 0")
    assert ask(gone, load_topology("weighted", {"quorum": 3}), "q", hosts=stage.hosts()).usage.calls == 3
    assert ask(gone, load_topology("weighted", {"quorum": 4}), "q", hosts=stage.hosts()).error
    assert ask(gone, load_topology("weighted"), "q", hosts=stage.hosts()).error


def test_a_quorum_excuses_nothing_but_members_that_fail() -> None:
    async def one(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    async def main() -> None:
        lost = MemberFailed("tim", "gone")
        assert await quorate(map(one, [1, lost, 3]), 2) == [1, 3] and await within_budget(map(one, [1, lost, 3]), 2) == [1, 3]
        for function in (quorate, within_budget):
            for quorum in (3, None):
                with pytest.raises(MemberFailed):
                    await function(map(one, [1, lost, 3]), quorum)
            with pytest.raises(ZeroDivisionError):
                await function(map(one, [1, lost, ZeroDivisionError()]), 1)
            assert await function(map(one, [1, 2]), 3) == [1, 2]  # nobody failed

    asyncio.run(main())


# --- now ---


@pytest.fixture
def quick(stage: Any) -> Any:
    """The same two nodes behind a link that takes next to no time."""
    net = replace(stage.network, links=tuple(replace(link, up_bps=1e9, down_bps=1e9, latency_s=1e-4) for link in stage.network.links))
    return stage.team(network=net, ann="phone", tim="tower")


def test_without_its_pace_a_network_has_no_faults(stage: Any, quick: Any) -> None:
    with pytest.raises(UserError, match="has faults, such as 'tower dies 2.0', which happen at the network's own pace"):
        live(quick.with_faults("tower dies 2"), stage.hosts(), None)
    with pytest.raises(UserError, match="give `pace`"):
        live(quick, stage.hosts(), lambda now: now.ask(load_topology("single"), "q", team=quick.with_faults("any down 1 1")))


def test_at_its_pace_links_go_away_and_dead_nodes_are_not_asked(stage: Any, quick: Any) -> None:
    async def work(now: Live) -> Any:
        away = now.answer(load_topology("single", {"member": "tim"}), "q", team=quick.with_faults("any down 0 0.2"))
        dead = now.answer(load_topology("single", {"member": "tim"}), "q", team=quick.with_faults("tower dies 0"))
        return await gather([away, dead])

    away, dead = live(quick, stage.hosts(), work, pace=True)
    assert away.result.answer == "tim:q" and away.result.usage.latency_s >= 0.2
    assert isinstance(dead.error, MemberFailed) and dead.error.kind == "died" and dead.result.usage.calls == 0


def test_at_its_pace_a_node_dies_over_a_call_which_is_billed_when_the_model_is_done(stage: Any, quick: Any) -> None:
    go = threading.Event()

    def tim(request: Any) -> str:
        assert go.wait(30)
        return "too late"

    stage.say["tim"] = tim

    async def work(now: Live) -> Any:
        answered = await now.answer(load_topology("single", {"member": "tim"}), "q", whole_bill=False)
        go.set()
        return answered

    answered = live(quick.with_faults("tower dies 0.1"), stage.hosts(), work, pace=True)
    assert str(answered.error) == "tim: tower died after 0.1 s" and answered.unfinished == 1 and len(stage.asked) == 1
    assert answered.ledger.calls == 1  # by now


def test_a_model_that_times_out_by_itself_is_no_node_that_died(stage: Any, quick: Any) -> None:
    stage.say["tim"] = lambda request: CallError("failed", "no answer after 3 tries")
    answered = live(quick.with_faults("tower dies 30"), stage.hosts(), lambda now: now.answer(load_topology("single", {"member": "tim"}), "q"), pace=True)
    assert str(answered.error) == "tim: no answer after 3 tries"
