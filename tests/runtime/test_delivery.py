"""What reaches home while an answer is made: when, in which bytes, and what is no answer any more. The worlds are those of test_timeline."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import simpy

from aiflow_agents.models.protocol import CallError, Reply
from aiflow_agents.net.network import Link, Network
from aiflow_agents.net.together import gather
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.reading import Reading
from aiflow_agents.runtime.run import ask
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.frame import encode_text, encode_tokens
from tests.conftest import Do
from tests.runtime.conftest import live

# bytes: of `q`; of a frame with a small token id; of what closes tim's stream, which says how sure it is; of `tim:q` as one message
QUESTION, TOKEN = len(encode_text("q0", "user", "q", None)), len(encode_tokens([7]))
END, SAID = len(encode_text("tim.1", "tim", "", 0.5)), len(encode_text("tim.1", "tim", "tim:q", 0.5))
ASK_S, READ_S = QUESTION * 8 / 800 + 0.125, 0.25 + (2 * 20 + 20 * 3 + 10) / 4000
STEP_S = 0.25 + (5 * 30 + 20 * (3 + 4 + 5 + 6 + 7)) / 4000 / 5  # tim says five letters and the end, having read two tokens
WAY_S = TOKEN * 8 / 1600 + 0.125


async def whole(team: Any) -> Any:
    return await team["tim"].ask("q")


async def streamed(team: Any) -> Any:
    return await team["tim"].ask("q", stream=True)


def run(stage: Any, team: Any, topology: Any, **options: Any) -> Any:
    return stage.run_jobs(stage.jobs(Do(topology), team, ["q"], traced=True), **options)[0]


@pytest.fixture
def line(two_nodes: Network) -> Network:
    """phone - tower - cloud, over links on which frames wait for one another."""
    cloud = replace(two_nodes.nodes["tower"], name="cloud", tier="cloud")
    near = replace(two_nodes.links[0], down_bps=240)
    return replace(two_nodes, nodes={**two_nodes.nodes, "cloud": cloud}, links=(near, Link("tower", "cloud", up_bps=8000, down_bps=200, latency_s=0.5)))


# --- when ---


def test_tokens_are_at_home_one_by_one(stage: Any) -> None:
    result = run(stage, stage.team(tim="tower"), streamed)
    made = [ASK_S + READ_S + i * STEP_S for i in range(6)]
    expected = [at + WAY_S for at in made[:5]] + [made[5] + END * 8 / 1600 + 0.125]
    assert [portion.at_s for portion in result.delivery.portions] == pytest.approx(expected)
    assert [portion.tokens for portion in result.delivery.portions] == [1] * 6
    assert result.usage.latency_s == pytest.approx(expected[-1]) and result.delivery.first_token_s == pytest.approx(expected[0])
    assert result.delivery.ms_per_token == pytest.approx(1000 * (expected[5] - expected[0]) / 5)


def test_an_answer_that_comes_whole_has_all_of_its_tokens_at_once(stage: Any) -> None:
    result = run(stage, stage.team(tim="tower"), whole)
    assert [(portion.at_s, portion.tokens) for portion in result.delivery.portions] == [(result.usage.latency_s, 6)]
    assert result.delivery.ms_per_token is None and result.delivery.tokens == 6


def test_answer_calls_and_node_are_the_same_and_only_frames_are_more(stage: Any) -> None:
    team = stage.team(tim="tower")
    one, other = run(stage, team, streamed), run(stage, team, whole)
    assert (one.answer, one.text, one.confidence) == (other.answer, other.text, other.confidence) == ("tim:q", "tim:q", 0.75)
    assert (one.usage.flops, one.usage.tokens_in, one.usage.tokens_out, one.usage.calls) == (other.usage.flops, 2, 6, 1)
    frames = [len(encode_tokens([token])) for token in range(5)] + [len(encode_text("tim.1", "tim", "", 0.75))]
    assert frames == [TOKEN] * 5 + [END]
    assert one.usage.wire_bytes == QUESTION + sum(frames) and other.usage.wire_bytes == QUESTION + SAID
    [asked, call, moved] = one.spans
    assert (asked.kind, call.kind) == ("move", "call") and (moved.message, moved.text, moved.nbytes) == ("tim.1", "tim:q", sum(frames))
    assert (moved.start_s, moved.end_s) == (pytest.approx(ASK_S + READ_S), pytest.approx(one.usage.latency_s))


def test_on_the_spot_nothing_travels(stage: Any) -> None:
    result = run(stage, stage.team(ann="phone"), lambda team: team["ann"].ask("q", stream=True))
    read_s, step_s = 0.5 + 110 / 1000, 0.5 + (5 * 30 + 20 * 25) / 1000 / 5
    assert [portion.at_s for portion in result.delivery.portions] == pytest.approx([read_s + i * step_s for i in range(6)])
    assert result.usage.wire_bytes == 0 and [span.kind for span in result.spans] == ["call"]


@pytest.mark.parametrize("waits", [False, True])
def test_frames_that_wait_for_one_another_on_every_link_as_in_simpy(stage: Any, line: Network, waits: bool) -> None:
    team = stage.team(network=line, tim="cloud", tom="cloud")

    async def both(team: Any) -> Any:
        asked = [team["tom"].ask("q")] if waits else []
        return (await gather([*asked, team["tim"].ask("q", stream=True)]))[-1]

    result = run(stage, team, both)
    env, arrived = simpy.Environment(), []
    node, slow, near = (simpy.Resource(env, capacity=1) for _ in range(3))

    def over(link: Any, nbytes: int, bps: float, latency_s: float) -> Any:
        with link.request() as turn:
            yield turn
            yield env.timeout(nbytes * 8 / bps)
        yield env.timeout(latency_s)

    def home(nbytes: int) -> Any:
        yield from over(slow, nbytes, 200, 0.5)
        yield from over(near, nbytes, 240, 0.125)
        arrived.append(env.now)

    def answer(streams: bool) -> Any:
        with node.request() as turn:
            yield turn
            for i in range(6):
                yield env.timeout(READ_S if i == 0 else STEP_S)
                if streams:
                    env.process(home(TOKEN if i < 5 else END))

    def world() -> Any:
        yield env.timeout(ASK_S + QUESTION * 8 / 8000 + 0.5)
        for streams in [False] * waits + [True]:
            env.process(answer(streams))

    env.process(world())
    env.run()
    assert [portion.at_s for portion in result.delivery.portions] == pytest.approx(arrived) and len(arrived) == 6
    assert result.delivery.ms_per_token > 1000 * STEP_S  # the links are what it waits for


def test_what_one_pass_confirms_comes_together(stage: Any) -> None:
    """A reply that went on from another one's draft: three tokens by one pass, then two single ones."""
    from aiflow_agents.models.protocol import Pass

    work = (Pass(0.5, 5, 0, 3), Pass(1.0, 1, 6, 1), Pass(1.0, 1, 7, 1))
    team = stage.team(tim=("tower", lambda request: Reply("abcde", (1, 2, 3, 4, 5), None, 2, 5, "length", work)))
    result = run(stage, team, streamed)
    at = [portion.at_s - result.delivery.first_token_s for portion in result.delivery.portions]
    queued = TOKEN * 8 / 1600
    assert at[:3] == pytest.approx([0, queued, 2 * queued]) and at[3] > 0.25 and at[4] - at[3] == pytest.approx(0.25 + (30 + 20 * 7.5) / 4000, abs=1e-3)


def test_an_engine_without_token_ids_sends_its_text(stage: Any) -> None:
    team = stage.team(tim=("tower", lambda request: Reply("hello wörld", (), None, 2, 3)))
    result = run(stage, team, streamed)
    said = [portion.text for portion in result.delivery.portions if portion.text]
    assert "".join(said) == "hello wörld" and len(said) == 3
    assert result.usage.wire_bytes == QUESTION + sum(len(encode_text("", "", text, None)) for text in said) + len(encode_text("tim.1", "tim", "", None))


# --- what is broken off ---


def test_a_cancelled_call_says_no_more_than_its_node_makes_until_the_cancel_is_there(stage: Any) -> None:
    team = stage.team(ann=("phone", lambda request: "a"), tim="tower")
    ends = ASK_S + READ_S + 2.2 * STEP_S  # the cancel reaches the tower 0.125 s later, before the next token

    async def late(team: Any) -> Any:
        asked = asyncio.ensure_future(team["tim"].ask("q", stream=True))
        await asyncio.sleep(ends)
        asked.cancel()
        return await team["ann"].ask("q")

    result = run(stage, team, late)
    assert result.error and "cannot be taken back" in result.error
    assert result.delivery.tokens == 3 and result.usage.wire_bytes == QUESTION + 3 * TOKEN
    assert [(span.who, span.nbytes) for span in result.spans if span.kind == "move"] == [("user", QUESTION), ("tim", 3 * TOKEN)]


def test_who_was_cancelled_before_anything_was_told_may_be_followed_by_another(stage: Any) -> None:
    team = stage.team(ann=("phone", lambda request: "a"), tim="tower", tom=("tower", lambda request: CallError("failed", "no")))

    async def early(team: Any) -> Any:
        asked = asyncio.ensure_future(team["tim"].ask("q", stream=True))
        await asyncio.sleep(ASK_S + 0.1)
        asked.cancel()
        await asyncio.wait([asked])
        await gather([team["tom"].ask("q", stream=True)], failures=True)
        return await team["ann"].ask("q", stream=True)

    result = run(stage, team, early)
    assert (result.answer, result.error, result.delivery.tokens) == ("a", None, 2)


@pytest.mark.parametrize("limit", [{"tokens": 5}, {"flops": 110 + 2 * 130}])
def test_a_call_that_is_cut_has_told_what_it_made(stage: Any, limit: dict[str, float]) -> None:
    result = run(stage, stage.team(tim="tower"), streamed, budget=Budget(**limit))
    assert result.over and result.delivery.tokens == 3 == result.usage.tokens_out
    assert result.usage.wire_bytes == QUESTION + 3 * TOKEN


def test_no_frame_sets_out_that_is_over_the_budget(stage: Any) -> None:
    result = run(stage, stage.team(tim="tower"), streamed, budget=Budget(bytes=QUESTION + 2 * TOKEN + 1))
    assert result.over and result.delivery.tokens == 2 and result.usage.wire_bytes == QUESTION + 2 * TOKEN and result.usage.tokens_out == 6


def test_nothing_else_is_the_answer_once_it_was_told(stage: Any) -> None:
    team = stage.team(ann="phone", tim="tower")

    async def another(team: Any) -> Any:
        await team["tim"].ask("q", stream=True)
        return await team["ann"].ask("q")

    async def part(team: Any) -> Any:
        return (await (await team["tim"].ask("q", stream=True)).to("phone")).part("tim")

    async def two(team: Any) -> Any:
        return (await gather(agent.ask("q", stream=True) for agent in team))[0]

    assert all("cannot be taken back" in run(stage, team, topology).error for topology in (another, part))
    assert "the beginning of another one" in run(stage, team, two).error


# --- what a topology tells ---


def test_what_is_told_bit_by_bit(stage: Any) -> None:
    team = stage.team(tim=("tower", lambda request: "tim" + ":q" * (len(request.messages) - 1)))

    async def bit_by_bit(team: Any) -> Any:
        first = await team.tell(await team["tim"].ask("q"))
        again = await team["tim"].ask("q", heard=[first])
        return await team.tell(again)

    result = run(stage, team, bit_by_bit)
    assert [(portion.tokens, portion.text) for portion in result.delivery.portions] == [(4, "tim"), (2, ":q")] and result.answer == "tim:q"
    first, second = (portion.at_s for portion in result.delivery.portions)
    assert second == result.usage.latency_s and result.delivery.ms_per_token == pytest.approx(1000 * (second - first) / 2)

    async def otherwise(team: Any) -> Any:
        await team.tell(await team["tim"].ask("q"))
        return await team["tim"].ask("q", instruct="x")

    stage.say["tim"] = lambda request: "no" if len(request.messages) > 1 else "yes"
    assert "cannot be taken back" in run(stage, team, otherwise).error


def test_who_reads_along_is_told_at_once(stage: Any) -> None:
    team, read = stage.team(tim="tower"), []
    (job,) = stage.jobs(load_topology("stream"), team, ["q"])
    (result,) = stage.run_jobs([replace(job, reader=read.append)])
    assert tuple(read) == result.delivery.portions and [portion.token_ids for portion in read] == [(0,), (1,), (2,), (3,), (4,), ()]


def test_drafts_and_ratings_do_not_stream(stage: Any) -> None:
    from aiflow_agents.models.protocol import Top

    assert "cannot stream" in run(stage, stage.team(tim="tower"), lambda team: team["tim"].ask("q", stream=True, top=Top(2))).error


# --- under the real clock ---


class Scribe:
    """A model that streams: each letter when the test lets it, and the whole in the end. `told` hears every letter twice, as after a host's death."""

    streams = True

    def __init__(self, info: Any, said: str, step: Any = lambda i: None):
        self.info, self.said, self.step, self.batches = info, said, step, 0

    def generate(self, requests: Any, told: Any = None) -> list[Any]:
        self.batches += 1
        for i, letter in enumerate(self.said):
            self.step(i)
            for row in range(len(requests)):
                for _ in range(2 if told else 0):
                    told(row, i, (ord(letter),), "")
        ids = (*map(ord, self.said), 0)
        return [Reply(self.said, ids, None, 2, len(ids)) for _ in requests]


def test_each_token_is_at_home_before_the_next_one_is_made(stage: Any) -> None:
    team, read, steps = stage.team(tim="tower"), [], [threading.Event() for _ in range(4)]
    scribe = Scribe(team["tim"].info, "word", lambda i: steps[i].wait(30))

    def reader(portion: Any) -> None:
        read.append((portion.token_ids, len(read), [step.is_set() for step in steps]))
        if len(read) < 4:
            steps[len(read)].set()

    steps[0].set()
    answered = live(team, InlineHosts(load=lambda key: scribe), lambda now: now.answer(load_topology("stream"), "q", reader=reader))
    result = answered.result
    assert [ids for ids, _, _ in read] == [(ord(letter),) for letter in "word"] + [()]
    assert [were for _, _, were in read[:4]] == [[j <= i for j in range(4)] for i in range(4)]  # nothing was made before its turn
    simulated = ask(team, load_topology("stream"), "q", hosts=InlineHosts(load=lambda key: Scribe(team["tim"].info, "word")))
    assert (result.answer, result.usage.wire_bytes, result.delivery.tokens) == ("word", simulated.usage.wire_bytes, simulated.delivery.tokens)
    assert sorted(at_s for at_s, *_ in result.delivery.portions) == [at_s for at_s, *_ in result.delivery.portions]


def test_all_who_share_a_call_hear_it_and_one_who_does_not_stream_hears_nothing(stage: Any) -> None:
    team = stage.team(tim="tower")
    scribe = Scribe(team["tim"].info, "word")

    async def work(now: Any) -> Any:
        return await asyncio.gather(*(now.ask(Do(topology), "q") for topology in (streamed, streamed, whole)))

    one, two, other = live(team, InlineHosts(load=lambda key: scribe), work)
    assert scribe.batches == 1 and [len(result.delivery.portions) for result in (one, two, other)] == [5, 5, 1]
    assert one.answer == two.answer == other.answer == "word" and one.usage.wire_bytes == two.usage.wire_bytes > other.usage.wire_bytes


def test_a_model_that_does_not_stream_says_all_at_once_and_then_the_end(stage: Any) -> None:
    for say in ("tim:q", lambda request: Reply("wörd", (), None, 2, 3)):
        team = stage.team(tim=("tower", (lambda request, say=say: say) if isinstance(say, str) else say))
        result = live(team, stage.hosts(), lambda now: now.ask(load_topology("stream"), "q"))
        assert result.error is None and [portion.tokens for portion in result.delivery.portions] == ([5, 1] if isinstance(say, str) else [3])


def test_who_was_cancelled_is_not_heard_any_more(stage: Any) -> None:
    team, read, go = stage.team(tim="tower"), [], threading.Event()
    scribe = Scribe(team["tim"].info, "word", lambda i: go.wait(30) if i == 2 else None)

    async def late(team: Any) -> Any:
        asked = asyncio.ensure_future(team["tim"].ask("q", stream=True))
        while len(read) < 2:
            await asyncio.sleep(0.001)
        asked.cancel()
        await asyncio.wait([asked])
        go.set()
        await asyncio.sleep(0.05)
        raise ValueError("enough")

    result = live(team, InlineHosts(load=lambda key: scribe), lambda now: now.answer(Do(late), "q", reader=read.append)).result
    assert len(read) == 2 == result.delivery.tokens and result.usage.wire_bytes == QUESTION + 2 * TOKEN


# --- real models ---


@pytest.fixture(scope="module")
def ant(models: list[Any]) -> Any:
    from aiflow_agents.runtime.team import Team

    return Team.of({"ant": {"model": str(models[0]), "tier": "cloud"}, "bee": {"model": str(models[1])}}, max_tokens=12)


def heard(hosts: Any, team: Any, questions: Any) -> list[Any]:
    """(the text as it was read, portion by portion, and the result) of each question, all asked at once."""
    readings = [Reading(team) for _ in questions]

    async def work(now: Any) -> Any:
        said: list[list[str]] = [[] for _ in questions]
        topology = load_topology("stream", {"member": "ant"})
        asked = (
            now.answer(topology, question, reader=lambda portion, i=i: said[i].append(readings[i].add(portion))) for i, question in enumerate(questions)
        )
        answered = await asyncio.gather(*asked)
        return [(said, reading, one.result) for said, reading, one in zip(said, readings, answered, strict=True)]

    return live(team, hosts, work)


def test_the_engine_streams_what_it_says_without(ant: Any) -> None:
    team, questions = ant, ["1+1=", "2+2=", "say", "abc"]
    for question, (said, reading, result) in zip(questions, heard(InlineHosts(), team, questions), strict=True):
        plain = ask(team, load_topology("single", {"member": "ant"}), question)
        assert result.text == plain.text and len(plain.text) > 3 and "".join(said) + reading.rest(plain.text) == plain.text
        simulated = ask(team, load_topology("stream", {"member": "ant"}), question)
        assert [portion[1:] for portion in result.delivery.portions] == [portion[1:] for portion in simulated.delivery.portions]
        assert len([text for text in said if text]) > 3 and result.usage.wire_bytes == simulated.usage.wire_bytes


def test_a_model_from_the_hub_is_read_where_this_machine_has_its_tokenizer(models: list[Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiflow_agents.models.backends import Behind
    from aiflow_agents.runtime.reading import Tokenizers

    there = tmp_path / "models--some--one"
    (there / "snapshots" / "abc").mkdir(parents=True)
    (there / "refs").mkdir()
    (there / "refs" / "main").write_text("abc")
    (there / "snapshots" / "abc" / "tokenizer.json").write_bytes((models[0] / "tokenizer.json").read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    plain = Tokenizers().of(str(models[0]))
    for kind in ("transformers", "vllm"):
        assert Tokenizers().of(Behind(kind=kind, model="some/one").key).decode([9, 10]) == plain.decode([9, 10]) != ""
    for kind, model in (("transformers", "some/other"), ("vllm", "no folder, and no name"), ("http", "some/one")):
        assert Tokenizers().of(Behind(kind=kind, model=model).key) is None


@pytest.mark.parametrize("stop", [("x",), ("ab", "bab"), ("é",), ("zz",)])
def test_a_text_is_read_as_far_as_it_is_certain(stop: tuple[str, ...]) -> None:
    from aiflow_agents.runtime.reading import _certain

    for text in ("aabab x", "ab", "caféx", "azz", "za"):
        whole_text = text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]
        read = [_certain(text[:end], stop) for end in range(len(text) + 1)]
        assert all(whole_text.startswith(one) for one in read) and all(b.startswith(a) for a, b in pairwise(read))
