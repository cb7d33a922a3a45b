"""Drafting and checking, one call at a time: what travels, what is computed, what is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import NotHere, UnmetNeed, UserError
from aiflow_agents.models.protocol import Parcel, Pass, Reply, Request, Sampling, Turn, Want
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.memory import Memory, digest
from aiflow_agents.runtime.run import Job, run_jobs
from aiflow_agents.runtime.scene import SCENE
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.training import tokenizer
from aiflow_agents.wire import odds
from aiflow_agents.wire.frame import encode_tokens
from aiflow_agents.wire.message import Draft, Message, standing_at
from aiflow_agents.wire.payload import Logits
from tests.conftest import Do, exits_team, make_family

QUESTION = "35+7="
PROMPT, WIDTH = len(tokenizer.prompt_ids(QUESTION)), 32


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("agents") / "models" / "bud", layers=6, exits=(1, 3, 5))


@pytest.fixture
def team(family: Path, tmp_path: Path) -> Team:
    return exits_team(family, tmp_path, max_tokens=12)


@pytest.fixture(scope="module")
def hosts() -> InlineHosts:
    return InlineHosts()


Play = Callable[[Team], Awaitable[Any]]


@pytest.fixture
def play(team: Team, hosts: InlineHosts) -> Callable[..., Any]:
    """Runs `script(team)`, which may return anything, as a task's topology: what it returned, and the task's result."""

    def run(script: Play, people: Team = team, memory: Memory | None = None, **options: Any) -> tuple[Any, Any]:
        kept: list[Any] = []

        async def topology(team: Team) -> Message:
            kept.append(await script(team))
            return SCENE.get().question("over", team.home)

        results: list[Any] = []
        run_jobs([Job("x", Do(topology), Task(QUESTION, QUESTION), people, traced=True)], hosts, memory or Memory(), results.append, **options)
        if results[0].error:
            raise AssertionError(results[0].error)
        return kept[0], results[0]

    return run


def moved(result: Any, to: str) -> list[int]:
    return [span.nbytes for span in result.spans if span.kind == "move" and span.to == to]


def tokens_of(message: Message) -> tuple[int, ...]:
    with standing_at(message.node):
        return message.tokens


def test_a_draft_and_its_check_go_on_from_each_other(play: Any) -> None:
    async def script(team: Team) -> Any:
        leaf, trunk = team["leaf"], team["trunk"]
        whole = await trunk.draft(QUESTION, 99)
        one = await leaf.draft(QUESTION, 3)
        two = await leaf.draft(QUESTION, 2, after=one)
        together = await leaf.draft(QUESTION, 5)
        settled = await trunk.check(QUESTION, await two.as_("tokens").to(trunk.node))
        further = await trunk.check(QUESTION, after=settled)
        text = trunk.read(further)
        return [tokens_of(m) for m in (whole, one, two, together, settled, further)], text, whole, further

    ((whole, one, two, together, settled, further), text, ended, last), result = play(script)
    assert len(whole) == 12 and two == together and two[:3] == one and len(two) == 5
    assert settled == whole[: len(settled)] and 1 <= len(settled) <= 6 and further == whole[: len(settled) + 1]
    assert text.form == "text" and text._text == tokenizer.build().decode(further, skip_special_tokens=True)
    assert ended._draft("tokens").ended and not last._draft("tokens").ended
    assert ended._confidence is not None and last._confidence is None  # how sure one is goes with a whole answer
    assert result.usage.calls == 6


def test_only_what_is_new_travels(play: Any) -> None:
    async def script(team: Team) -> Any:
        leaf, node = team["leaf"], team["trunk"].node
        said = await leaf.draft(QUESTION, 8)
        for since in (0, 5, 8):
            await said.as_("tokens", since=since).to(node)
        await said.as_("tokens", since=5).to(node)  # once more: it is there
        return tokens_of(said), len(said.encode())

    (tokens, frame), result = play(script)
    text = frame - len("")  # of tokens no text travels
    sizes = moved(result, "cloud")
    assert len(sizes) == 3
    heads = {size - coded for size, coded in zip(sizes, (len(encode_tokens(tokens)), len(encode_tokens(tokens[5:], 5)), 0), strict=True)}
    assert len(heads) == 1 and 0 < heads.pop() <= text


def test_what_was_drawn_travels_with_what_it_was_drawn_from_as_far_as_it_is_new(play: Any) -> None:
    async def script(team: Team) -> Any:
        leaf, trunk = team["leaf"], team["trunk"]
        warm = {"sampling": Sampling(1.5), "odds": 4}
        one = await leaf.draft(QUESTION, 3, **warm)
        two = await leaf.draft(QUESTION, 2, after=one, **warm)
        await two.as_("tokens", since=3).to(trunk.node)
        await two.as_("tokens", since=3, odds=False).to(trunk.node)
        claimed = await two.as_("tokens").to(trunk.node)
        settled = await trunk.check(QUESTION, claimed, sampling=Sampling(1.5))
        short = await trunk.check(QUESTION, claimed, sampling=Sampling(1.5), own=False)
        bough = await team["bough"].check(QUESTION, await two.as_("tokens").to(team["bough"].node), sampling=Sampling(1.5), odds=4)
        return one._draft("tokens"), two._draft("tokens"), settled, short, bough._draft("tokens")

    (one, two, settled, short, bough), result = play(script)
    assert odds.count(one.odds) == 3 and odds.count(two.odds) == 5
    assert two.nbytes > 5 * 4 * 3 and replace(two, since=3).nbytes == len(encode_tokens(two.token_ids[3:], 3)) + len(odds.last(two.odds, 2))
    new, bare, whole = moved(result, "cloud")[:3]
    assert new - bare == len(odds.last(two.odds, 2)) < len(two.odds) <= whole - bare
    assert odds.last(odds.joined(one.odds, odds.last(two.odds, 2)), 5) == two.odds
    assert 1 <= len(tokens_of(settled)) <= 6 and 1 <= len(tokens_of(short)) <= 5
    assert odds.count(bough.odds) == len(bough.token_ids)


def test_no_token_is_said_behind_a_draft_that_is_kept_whole_where_none_is_wanted(play: Any) -> None:
    async def script(team: Team) -> Any:
        trunk = team["trunk"]
        own = await trunk.draft(QUESTION, 4)
        with_one, without = [await trunk.check(QUESTION, own, own=own_one) for own_one in (True, False)]
        wrong = await trunk.check(QUESTION, await team["leaf"].draft(QUESTION, 4), own=False)
        return [tokens_of(m) for m in (own, with_one, without, wrong)]

    (own, with_one, without, wrong), _ = play(script)
    assert without == own and with_one[:4] == own and len(with_one) == 5 and 1 <= len(wrong) <= 4


def test_nothing_is_read_twice(play: Any, team: Team) -> None:
    """A member reads the prompt once, then what is new; a check of n tokens is one pass, which reads the weights once."""
    shape, flops = team["trunk"].info.shape, []

    async def script(team: Team) -> Any:
        trunk = team["trunk"]

        async def spent(call: Awaitable[Message]) -> Message:
            message = await call
            flops.append((message.usage.flops, message.usage.tokens_in, message.usage.energy_j))
            return message

        own = await team["bough"].draft(QUESTION, 1)
        first = await spent(trunk.check(QUESTION, await own.as_("tokens").to(trunk.node)))
        right = replace(first, _cargo=Draft((*tokens_of(first), 1, 1, 1, 1)))
        second = await spent(trunk.check(QUESTION, right, after=first))
        third = await spent(trunk.check(QUESTION, after=second))
        return [len(tokens_of(m)) for m in (first, second, third)]

    (one, two, three), result = play(script)
    assert two >= one + 1 and three == two + 1
    assert flops[0][:2] == (shape.pass_flops(Pass(1.0, PROMPT + 1, 0, 2, 2)), PROMPT + 1)
    kept = one - 1  # of what the first call fed, that many are still right
    assert flops[1][1] == one + 4 - kept
    assert flops[1][0] == shape.pass_flops(Pass(1.0, one + 4 - kept, PROMPT + kept, 5, 5))
    assert flops[2][1] <= 1 + two - one
    reads = [span for span in result.spans if span.kind == "call" and span.who == "trunk"]
    assert len(reads) == 3


def test_one_pass_over_several_tokens_costs_one_reading_of_the_weights(team: Team, hosts: InlineHosts, play: Any) -> None:
    """Timed as a model of 8B, where reading the weights is what takes time: four tokens checked at once take hardly longer than one."""
    from aiflow_agents.net.cost import named_shape

    heavy = replace(team, agents={agent.name: replace(agent, shape=_as(team, named_shape("qwen3-8b"))) for agent in team})
    seconds: dict[str, float] = {}

    async def script(team: Team) -> None:
        trunk = team["trunk"]
        own = await trunk.draft(QUESTION, 2)
        draft = replace(own, _cargo=Draft((*tokens_of(own), 1, 1, 1, 1)))
        several = await trunk.check(QUESTION, draft, after=own)
        single = await trunk.check(QUESTION, after=several)
        seconds.update(several=several.usage.latency_s, single=single.usage.latency_s)

    play(script, heavy)
    assert seconds["single"] > 0.005 and seconds["several"] < 1.2 * seconds["single"]


def _as(team: Team, named: Any) -> Any:
    from dataclasses import asdict

    from aiflow_agents.models.protocol import Shape

    return Shape(**asdict(named))


def test_hidden_states_go_along_for_new_positions_and_the_question_does_not(play: Any) -> None:
    async def script(team: Team) -> Any:
        leaf, trunk = team["leaf"], team["trunk"]
        want = Want(1, "float32", since=-1)
        one = await leaf.draft(QUESTION, 3, want=want)
        up = one.as_("states")
        settled = await trunk.check(QUESTION, up)
        two = await leaf.draft(QUESTION, 3, after=one, want=want._replace(since=2), states=up)
        by_states = await trunk.check(QUESTION, two.as_("states", since=3))
        by_tokens = await trunk.check(QUESTION, await two.as_("tokens").to(trunk.node))
        return two._draft("states").states, [tokens_of(m) for m in (settled, by_states, by_tokens)], by_states.usage.flops, by_tokens.usage.flops

    (parcel, (settled, by_states, by_tokens), fewer, more), result = play(script)
    assert [part.want.since for part in parcel.chain] == [-1, 2] and parcel.chain[-1] is parcel and parcel.chain[0].before is None
    assert settled == by_tokens[: len(settled)] and by_states == by_tokens[: len(by_states)] and fewer < more
    first, second = (size for size in moved(result, "cloud") if size > 4 * WIDTH)
    assert 4 * WIDTH * (PROMPT + 2) < first < 4 * WIDTH * (PROMPT + 3) and 4 * WIDTH * 3 < second < 4 * WIDTH * 4


def test_what_cannot_be_done_is_refused_by_name(play: Any, team: Team) -> None:
    async def script(team: Team) -> None:
        leaf, trunk = team["leaf"], team["trunk"]
        draft = await leaf.draft(QUESTION, 3)
        with pytest.raises(NotHere, match="is at phone, not at cloud"), standing_at("cloud"):
            _ = draft.tokens
        with pytest.raises(UserError, match=r"no states: ask for a draft with want=Want\(layer\)"):
            draft.as_("states")
        settled = await trunk.check(QUESTION, await draft.as_("tokens").to(trunk.node))
        with pytest.raises(UnmetNeed, match="leaf is at phone and cannot read"):
            leaf.read(settled)
        other = replace(settled, _cargo=Draft((3, 3, 3, 3, 3, 3)))
        with pytest.raises(UnmetNeed, match="does not go on from what is settled"):
            await trunk.check(QUESTION, other, after=settled)
        with pytest.raises(UnmetNeed, match="without what they were drawn from"):
            await trunk.check(QUESTION, await draft.as_("tokens").to(trunk.node), sampling=Sampling(1.0))
        with pytest.raises(UnmetNeed, match="brings no tokens"):
            await trunk.draft(QUESTION, 2, after=await trunk.ask(QUESTION))
        blind = replace(trunk, info=replace(trunk.info, capabilities=frozenset({"logprobs"})))
        with pytest.raises(UnmetNeed, match="does not verify tokens"):
            await blind.check(QUESTION, settled)
        want = Want(1, "float32", since=-1)
        one = await leaf.draft(QUESTION, 2, want=want)
        two = await leaf.draft(QUESTION, 2, after=one, want=want._replace(since=1), states=one.as_("states"))
        with pytest.raises(UnmetNeed, match="have never come to cloud"):
            await trunk.check(QUESTION, two.as_("states", since=2))

    play(script)


def test_the_seed_of_a_draw_is_that_of_its_place(play: Any) -> None:
    """Drafted at once or piece by piece, each place has luck of its own; the same place has the same."""

    async def script(team: Team) -> Any:
        leaf, warm = team["leaf"], {"sampling": Sampling(2.0), "odds": 16}
        one, again = [await leaf.draft(QUESTION, 6, **warm) for _ in range(2)]
        other = await leaf.draft(QUESTION, 6, sample=1, **warm)
        return [tokens_of(m) for m in (one, again, other)]

    (one, again, other), _ = play(script)
    assert one == again != other


# --- what is remembered ---


def test_checks_are_remembered_by_what_decides_them(tmp_path: Path) -> None:
    plain = Request((Turn("user", "q"),), 8)
    parcel = Parcel("a", 1, "w", Want(1, "float32", since=-1), 3, (1,))
    later = parcel._replace(digest="b", want=Want(1, "float32", since=1))
    changed = [plain, replace(plain, check=()), replace(plain, check=(1,)), replace(plain, check=(1, 2)), replace(plain, check=(1,), begin=(1,)),
               replace(plain, odds=4), replace(plain, check=(1,), odds_told=b"x"), replace(plain, check=(1,), odds=4, odds_told=b"x"),
               replace(plain, check=(1,), parcel=later), replace(plain, check=(1,), parcel=later._replace(before=parcel)),
               replace(plain, check=(1,), parcel=parcel), replace(plain, want=Want(1)), replace(plain, want=Want(1, since=-1)),
               replace(plain, want=Want(1, since=0))]  # fmt: skip
    assert len({digest(("model", request)) for request in changed}) == len(changed)
    with_all = Reply("42", (4, 2), (-0.5, -0.25), 5, 2, "checked", (Pass(0.5, 3, 2, 1, 1),), None, b"\x00\x01", kept=1)
    replies = [with_all, replace(with_all, kept=0), replace(with_all, next=None), replace(with_all, work=None, next=None), Reply("42", (4,), None, 1, 1),
               replace(with_all, parcel=later)]  # fmt: skip
    file = tmp_path / "memory.sqlite"
    with closing(Memory(file)) as memory:
        memory.put([(("model", replace(plain, seed=i)), reply) for i, reply in enumerate(replies)])
    keys = [("model", replace(plain, seed=i)) for i in range(len(replies))]
    with closing(Memory(file)) as again:
        found = again.load(keys)
    assert [found[key] for key in keys] == replies


def test_odds_as_a_frame(team: Team) -> None:
    import numpy as np

    rows = Logits(np.log(np.array([[0.5, 0.25], [0.75, 0.125], [0.5, 0.5]], np.float32)).astype(np.float16).astype(np.float32), np.array([[1, 2]] * 3), 9)
    frame = odds.encode(rows)
    assert odds.count(frame) == 3 and odds.count(b"") == 0 and odds.last(frame, 3) == frame == odds.last(frame, 9) and odds.last(frame, 0) == b""
    assert odds.decode(odds.last(frame, 1)).values.tolist() == rows.values[-1:].tolist()
    assert odds.joined(odds.encode(Logits(rows.values[:1], rows.indices[:1], 9)), odds.last(frame, 2)) == frame  # type: ignore[index]
    assert odds.joined(b"", frame) == frame and odds.joined(frame, b"") == b""
    wide = odds.encode(Logits(np.zeros((1, 3), np.float32), np.array([[1, 2, 3]]), 9))
    assert odds.joined(frame, wide) == wide  # rows of another length do not fit into one frame
