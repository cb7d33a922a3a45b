"""Answers are remembered by what decides them, within a run and over runs; refusals are not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import CallError, ModelInfo, Reply, Request, Sampling, Shape, Top, Turn, Want
from aiflow_agents.runtime.memory import Memory, digest, fingerprint
from aiflow_agents.topology.load import load_topology

SHAPE = Shape(layers=1, width=5, heads=1, kv_heads=1, head_dim=5, block_params=10, head_params=5, vocab=10)
INFO = ModelInfo("ant", "weights", "tokenizer", "family", "float32", SHAPE)
REQUEST = Request((Turn("system", "s"), Turn("user", "u", "ann")), 8, Sampling(0.5, 0.9), 7, ("ab", "c"))


def request(number: int) -> Request:
    return Request((Turn("user", f"q{number}"),))


def reply(text: str = "42") -> Reply:
    return Reply(text, (4, 2), (-0.25, -0.5), 3, 2)


# --- what decides an answer ---


def test_weights_tokenizer_engine_and_dtype_decide_and_a_name_does_not() -> None:
    decisive = [INFO, *(replace(INFO, **{field: "other"}) for field in ("weights_hash", "tokenizer_hash", "engine", "dtype"))]
    assert len({fingerprint(info) for info in decisive}) == len(decisive)
    for change in ({"name": "bee"}, {"shape": replace(SHAPE, vocab=11)}, {"capabilities": frozenset({"logprobs"})}, {"max_context": 9}):
        assert fingerprint(replace(INFO, **change)) == fingerprint(INFO)


def test_everything_in_a_request_decides() -> None:
    turns = REQUEST.messages
    changed: list[dict[str, Any]] = [
        {},
        {"messages": turns[:1]},
        {"messages": turns[::-1]},
        {"messages": (turns[0], turns[1]._replace(role="assistant"))},
        {"messages": (turns[0], turns[1]._replace(content="v"))},
        {"messages": (turns[0], turns[1]._replace(name="bob"))},
        {"messages": (turns[0], turns[1]._replace(name=None))},
        {"messages": (turns[0], turns[1]._replace(name=""))},
        {"max_tokens": 9},
        {"sampling": Sampling(0.6, 0.9)},
        {"sampling": Sampling(0.5, 0.8)},
        {"seed": 8},
        {"stop": ()},
        {"stop": ("a", "bc")},
        {"stop": ("abc",)},
        {"begin": (1,)},
        {"begin": (1, 2)},
        {"want": Want(1)},
        {"want": Want(1, steps=2)},
        {"top": Top(1)},
        {"top": Top(2)},
        {"top": Top(1, 0.5)},
        {"begin": (1,), "top": Top(1)},
    ]
    requests = [replace(REQUEST, **change) for change in changed]
    assert len({digest(("model", one)) for one in requests}) == len(requests) == len({("model", one) for one in requests})
    assert digest(("model", REQUEST)) == digest(("model", replace(REQUEST))) != digest(("other model", REQUEST))


def test_the_digests_of_old_requests_stay() -> None:
    """Computed before requests could begin an answer."""
    assert digest(("model", REQUEST)).hex() == "254565f9bb910dcc993014df2ed0aadb937fa462"


def test_answers_that_brought_a_frame_are_asked_again_when_frames_change(monkeypatch: pytest.MonkeyPatch) -> None:
    framed = [replace(REQUEST, want=Want(2)), replace(REQUEST, top=Top(1))]
    before, plain = [digest(("model", one)) for one in framed], digest(("model", REQUEST))
    monkeypatch.setattr("aiflow_agents.runtime.memory.VERSION", 3)
    assert plain == digest(("model", REQUEST)) and not set(before) & {digest(("model", one)) for one in framed}


text = st.text(max_size=3)
requests = st.builds(
    Request,
    st.lists(st.builds(Turn, st.sampled_from(["user", "system"]), text, st.none() | text), max_size=2).map(tuple),
    st.integers(1, 3),
    st.builds(Sampling, st.sampled_from([0.0, 0.5]), st.sampled_from([0.9, 1.0])),  # left to itself it draws NaN, which equals nothing
    st.integers(0, 1),
    st.lists(text, max_size=2).map(tuple),
)


@given(requests, requests)
def test_equal_requests_and_they_alone_have_one_digest(one: Request, other: Request) -> None:
    assert (digest(("m", one)) == digest(("m", other))) == (one == other)


# --- within a run ---


def test_equal_calls_of_many_tasks_are_one(stage: Any) -> None:
    memory, noted = Memory(), []
    team = stage.team(ann="phone")
    results = stage.run(load_topology("single"), team, ["a", "b", "a", "a", "b"], memory=memory, note=lambda *n: noted.append(n))
    assert [result.answer for result in results] == ["ann:a", "ann:b", "ann:a", "ann:a", "ann:b"]
    assert [request.messages[0].content for request in stage.asked] == ["a", "b"]
    assert memory.executed == 2 and noted == [(5, 2)]


def test_two_members_with_one_model_are_asked_once_and_both_are_billed(stage: Any) -> None:
    team = stage.team(ann="phone", bob="phone", tim="tower")
    ann, bob = team["ann"], team["bob"]
    team = replace(team, agents={"ann": ann, "bob": replace(bob, folder=ann.folder, info=ann.info), "tim": team["tim"]})
    result = stage.run(load_topology("majority"), team, ["q"])[0]
    assert [name for name, _ in stage.batches] == ["ann", "tim"] and len(stage.asked) == 2
    assert result.answer == "ann:q" and result.usage.calls == 3


def test_the_same_folder_in_another_dtype_is_another_model(stage: Any) -> None:
    team, memory = stage.team(ann="phone"), Memory()
    half = replace(team, agents={"ann": replace(team["ann"], info=replace(team["ann"].info, dtype="bfloat16"))})
    for people in (team, half, team, half):
        stage.run(load_topology("single"), people, ["q"], memory=memory)
    assert memory.executed == 2


def test_sampled_calls_are_shared_between_arms_but_not_between_tasks(stage: Any) -> None:
    team, memory = stage.team(ann="phone"), Memory()
    five, two = (load_topology("self-consistency", {"samples": samples, "temperature": 0.7}) for samples in (5, 2))
    stage.run_jobs([*stage.jobs(five, team, ["q", "q"]), *stage.jobs(two, team, ["q", "q"], arm="other")], memory=memory)
    assert memory.executed == 10 == len({request.seed for request in stage.asked})


def test_a_refusal_is_not_remembered(stage: Any) -> None:
    team, memory, broken = stage.team(ann=("phone", lambda request: CallError("failed", "out of luck") if broken else "yes")), Memory(), [True]
    first = stage.run(load_topology("single"), team, ["q", "q"], memory=memory)
    assert [result.error for result in first] == ["MemberFailed: ann: out of luck"] * 2 and memory.executed == 0 and len(stage.asked) == 1
    broken.clear()
    assert stage.run(load_topology("single"), team, ["q"], memory=memory)[0].answer == "yes" and memory.executed == 1


# --- over runs ---


def test_a_second_run_asks_nobody_and_ends_the_same(stage: Any, tmp_path: Path) -> None:
    team, debate = stage.team(ann="phone", tim="tower"), load_topology("debate")
    questions = [f"q{i}" for i in range(20)]
    outcomes = []
    for executed in (80, 0):
        with closing(Memory(tmp_path / "calls.sqlite")) as memory:
            outcomes.append([(result.answer, result.confidence, result.usage) for result in stage.run(debate, team, questions, memory=memory)])
            assert memory.executed == executed
    assert outcomes[0] == outcomes[1] and len(stage.asked) == 80


def test_another_network_or_topology_asks_only_what_is_new(stage: Any, tmp_path: Path) -> None:
    team = stage.team(ann="phone", tim="tower")
    links = tuple(replace(link, up_bps=link.up_bps / 100) for link in stage.network.links)
    slow = stage.team(network=replace(stage.network, links=links), ann="phone", tim="tower")
    results, executed = [], []
    for topology, people in (("majority", team), ("majority", slow), ("debate", slow)):
        with closing(Memory(tmp_path / "calls.sqlite")) as memory:
            results.append(stage.run(load_topology(topology), people, ["q"], memory=memory)[0])
            executed.append(memory.executed)
    assert executed == [2, 0, 2]
    assert results[1].usage.latency_s > results[0].usage.latency_s + 1 and results[1].answer == results[0].answer


def test_reused_answers_are_carried_into_the_new_run_and_the_old_one_is_left_alone(stage: Any, tmp_path: Path) -> None:
    team, single = stage.team(ann="phone"), load_topology("single")
    old, new = tmp_path / "old.sqlite", tmp_path / "new ?#%.sqlite"
    with closing(Memory(old)) as memory:
        stage.run(single, team, ["a", "b"], memory=memory)
    before = old.read_bytes()
    with closing(Memory(new, reuse=[old])) as memory:
        answers = [result.answer for result in stage.run(single, team, ["b", "c", "a"], memory=memory)]
        assert memory.executed == 1 and answers == ["ann:b", "ann:c", "ann:a"]
    assert old.read_bytes() == before
    old.unlink()
    with closing(Memory(new)) as memory:
        stage.run(single, team, ["a", "b", "c"], memory=memory)
        assert memory.executed == 0


replies = st.builds(
    Reply,
    st.text(st.characters(exclude_categories=()), max_size=5),
    st.lists(st.integers(0, 2**31), max_size=4).map(tuple),
    st.none() | st.lists(st.floats(max_value=0, allow_nan=False), max_size=4).map(tuple),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from(["stop", "length"]),
)


@given(replies, st.text(st.characters(exclude_categories=()), max_size=5))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_reply_comes_back_as_it_was_whatever_is_in_it(tmp_path: Path, said: Reply, question: str) -> None:
    key = ("model", Request((Turn("user", question),)))
    (tmp_path / "calls.sqlite").unlink(missing_ok=True)
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        memory.put([(key, said)])
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        assert memory.get(key) is None
        assert memory.load([key]) == {key: said} and memory.get(key) == said


def test_thousands_are_found_at_once_and_the_others_are_not(tmp_path: Path) -> None:
    keys = [("model", request(i)) for i in range(2600)]
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        memory.put([(key, reply(str(i))) for i, key in enumerate(keys) if i % 2])
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        assert memory.load(keys) == {key: reply(str(i)) for i, key in enumerate(keys) if i % 2}


def test_what_was_empty_at_the_beginning_is_not_searched(tmp_path: Path) -> None:
    """A fresh run asks its own file for nothing: what it holds later is known in memory."""
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        memory.put([(("model", request(1)), reply("1"))])
        searched: list[str] = []
        memory._own.set_trace_callback(searched.append)  # type: ignore[union-attr]
        assert memory.load([("model", request(2))]) == {} and searched == []
        assert memory.get(("model", request(1))) == reply("1")
    with closing(Memory(tmp_path / "new.sqlite", reuse=[tmp_path / "calls.sqlite"])) as memory:
        assert memory.load([("model", request(1))]) == {("model", request(1)): reply("1")}
    with closing(Memory(tmp_path / "new.sqlite")) as memory:  # kept with its own
        assert memory.load([("model", request(1))]) == {("model", request(1)): reply("1")}


def test_the_thread_of_a_virtual_clock_may_write(tmp_path: Path) -> None:
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        thread = Thread(target=memory.put, args=([(("model", request(0)), reply())],))
        thread.start()
        thread.join()
    with closing(Memory(tmp_path / "calls.sqlite")) as memory:
        assert memory.load([("model", request(0))])


def test_what_is_no_memory_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello " * 1000)
    with closing(sqlite3.connect(tmp_path / "foreign")) as foreign:
        foreign.execute("create table other (a)")
    (tmp_path / "empty").touch()
    for name in ("text", "foreign", "empty"):
        with pytest.raises(UserError, match=rf"{name} holds no remembered answers: [^\n;]+$"):
            Memory(reuse=[tmp_path / name])
    with pytest.raises(UserError, match="no remembered answers at .*nowhere"):
        Memory(reuse=[tmp_path / "nowhere"])
    with pytest.raises(UserError, match="text holds no remembered answers: .*; delete it, and what it held is asked again$"):
        Memory(tmp_path / "text")
    assert not (tmp_path / "nowhere").exists()


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    keys = [("model", request(i)) for i in range(3)]
    with closing(Memory(path)) as memory, closing(sqlite3.connect(path)) as spoiler:
        with spoiler:  # the third insertion fails, as on a full disk
            spoiler.execute("create trigger full before insert on calls when (select count(*) from calls) = 2 begin select raise(abort, 'full'); end")
        with pytest.raises(sqlite3.DatabaseError, match="full"):
            memory.put([(key, reply()) for key in keys])
    with closing(Memory(path)) as memory:
        assert memory.load(keys) == {}
