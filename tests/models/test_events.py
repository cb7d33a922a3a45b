"""Answers of an endpoint that come in pieces: each is told when it is there, and the whole is what would have come at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiflow_agents.models.events import events
from aiflow_agents.models.protocol import CallError, Reply, Request, Turn
from tests.models.test_http import SECRET, answer, ask, serve  # noqa: F401

STREAM = {"content-type": "text/event-stream; charset=utf-8"}
CHUNKED = STREAM | {"transfer-encoding": "chunked"}
USAGE = {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def event(said: Any) -> bytes:
    return b"data: %s\n\n" % (said if isinstance(said, bytes) else json.dumps(said, ensure_ascii=False).encode())


def pieces(*texts: str, finish: str | None = "stop", usage: bool = True, done: bool = True, **more: Any) -> Iterator[bytes]:
    """A chat's answer as OpenAI streams it."""
    yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], "usage": None})
    for text in texts:
        yield event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **more}], "usage": None})
    if finish:
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": None})
    if usage:
        yield event({"choices": [], **USAGE})
    if done:
        yield event(b"[DONE]")


def broken(*texts: str, after: Any = None) -> Iterator[bytes]:
    """The same, and then it hangs up, in the middle of an event."""
    yield from pieces(*texts, finish=None, usage=False, done=False)
    yield after if after is not None else b'data: {"choices": [{"ind'
    raise EOFError


def heard(model: Any, *requests: Request) -> tuple[list[Any], list[Any]]:
    """The replies, and what was told of the first."""
    told: list[Any] = []
    replies = model.generate(requests or [ask()], told=lambda *what: told.append(what))
    return replies, [(at, text) for i, at, ids, text in told if i == 0 and ids == ()]


# --- the format ---


@given(st.lists(st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), min_size=1)), st.lists(st.integers(0, 400)), st.sampled_from(["\n", "\r\n"]))
def test_events_are_the_same_however_the_stream_is_cut(said: list[str], cuts: list[int], end: str) -> None:
    raw = "".join(f": alive{end}event: x{end}data: {text}{end}id: 7{end}{end}" for text in said).encode()
    at = sorted(min(cut, len(raw)) for cut in [0, *cuts, len(raw)])
    assert list(events(raw[a:b] for a, b in zip(at, at[1:], strict=False))) == said


def test_an_event_of_several_lines_one_without_a_space_and_one_that_was_cut_off() -> None:
    assert list(events([b"data: a\ndata:b\n\n\n\ndata:  c\n\ndata: d\n"])) == ["a\nb", " c", "d"]
    assert list(events([b"data: a\n\ndata: b"])) == ["a"] and list(events([])) == []


# --- well-behaved endpoints ---


@pytest.mark.parametrize("headers", [STREAM, CHUNKED])
def test_a_streamed_chat_is_told_piece_by_piece_and_is_the_answer_that_comes_at_once(serve: Any, headers: Any) -> None:  # noqa: F811
    logprobs = [{"content": [{"logprob": -0.1 * i}]} for i in (1, 2)]
    words = ("4", "2\u2028é")  # a line break to Unicode, and none to the format

    def script(n: int, body: Any) -> Any:
        if not body.get("stream"):
            return answer("42\u2028é", "length", logprobs={"content": [one["content"][0] for one in logprobs]})
        one, two, *rest = list(pieces(*words, finish="length"))[1:]
        for i, line in enumerate((one, two)):
            said = json.loads(line[6:])
            said["choices"][0]["logprobs"] = logprobs[i]
            rest.insert(i, event(said))
        return 200, headers, iter(rest)

    server, model, _ = serve(script, logprobs=True)
    request = ask(max_tokens=5, stop=("\n",))
    (reply,), told = heard(model, request)
    assert [reply] == model.generate([request]) == [Reply("42\u2028é", (), (-0.1, -0.2), 7, 3, "length")]
    assert told == [(0, "4"), (1, "2\u2028é")]
    (_, first, _), (_, second, _) = server.asked
    assert first == second | {"stream": True, "stream_options": {"include_usage": True}} and "stream" not in second


def test_streamed_completions(serve: Any) -> None:  # noqa: F811
    def said() -> Iterator[bytes]:
        for text, logprob in (("4", -0.5), ("2", -0.25)):
            yield event({"choices": [{"index": 0, "text": text, "finish_reason": None, "logprobs": {"token_logprobs": [logprob], "tokens": [text]}}]})
        yield event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], **USAGE})
        yield event(b"[DONE]")

    _, model, _ = serve(lambda n, body: (200, CHUNKED, said()), api="completions", logprobs=True)
    assert heard(model) == ([Reply("42", (), (-0.5, -0.25), 7, 3)], [(0, "4"), (1, "2")])


def test_a_piece_is_told_before_the_next_one_is_made(serve: Any) -> None:  # noqa: F811
    steps, late = [threading.Event() for _ in range(4)], []

    def said() -> Iterator[bytes]:
        for i, piece in enumerate(pieces("w", "o", "r", "d")):
            if 1 < i < 5 and not steps[i - 2].wait(20):
                late.append(i)
            yield piece

    _, model, _ = serve(lambda n, body: (200, CHUNKED, said()))
    (reply,) = model.generate([ask()], told=lambda i, at, ids, text: steps[at].set())
    assert reply.text == "word" and late == []


def test_each_of_many_is_told_its_own_over_connections_that_are_used_again(serve: Any) -> None:  # noqa: F811
    server, model, _ = serve(lambda n, body: (200, CHUNKED, pieces(*body["messages"][0]["content"])), at_once=3)
    told: list[Any] = []
    asked = [f"word {i}" for i in range(12)]
    replies = model.generate([ask(Turn("user", text)) for text in asked], told=lambda *what: told.append(what))
    assert [reply.text for reply in replies] == asked and 1 <= server.connections <= 3
    for i, text in enumerate(asked):
        assert [(at, said) for row, at, _, said in told if row == i] == list(enumerate(text))


# --- others ---


@pytest.mark.parametrize("known", [{"stream"}, set()])
def test_an_endpoint_that_refuses_to_stream_so_is_asked_otherwise_and_that_is_remembered(serve: Any, known: set[str]) -> None:  # noqa: F811
    def script(n: int, body: Any) -> Any:
        unknown = {"stream", "stream_options"} & body.keys() - known
        if unknown:
            return 422, {}, {"error": {"message": f"extra inputs: {unknown}"}}
        return (200, STREAM, pieces("4", "2", usage=False)) if known else answer("42")

    server, model, pauses = serve(script)
    (reply,), told = heard(model)
    again = heard(model)[0]
    assert reply.text == again[0].text == "42" and not pauses
    assert told == ([(0, "4"), (1, "2")] if known else [])
    # nobody said what it took: a token a piece, and one for every four bytes of "6*7="
    assert (reply.tokens_in, reply.tokens_out) == ((1, 2) if known else (7, 3))
    assert len(server.asked) == (3 if known else 4) and model.generate([ask()]) and "stream" not in server.asked[-1][1]


def test_an_endpoint_that_does_not_mind_the_wish_to_stream_answers_at_once(serve: Any) -> None:  # noqa: F811
    server, model, _ = serve(lambda n, body: answer("42"))
    assert heard(model) == ([Reply("42", (), None, 7, 3)], []) and len(server.asked) == 1


def test_what_is_refused_in_every_way_is_refused_in_its_words_and_not_remembered(serve: Any) -> None:  # noqa: F811
    def script(n: int, body: Any) -> Any:
        return (400, {}, {"error": {"message": "too long"}}) if body["messages"][0]["content"] == "bad" else (200, STREAM, pieces("42"))

    server, model, pauses = serve(script, at_once=1)
    replies, told = heard(model, ask(), ask(Turn("user", "bad")), ask())
    assert replies[1] == CallError("refused", f"gpt at {model.endpoint.url}: 400 too long") and not pauses
    assert [replies[i].text for i in (0, 2)] == ["42", "42"] and told == [(0, "42")] and "stream_options" in server.asked[-1][1]


def test_what_may_pass_before_the_first_piece_is_tried_again(serve: Any) -> None:  # noqa: F811
    scripts = [(503, {}, {}), (200, CHUNKED, broken()), (200, STREAM, iter([event({"error": {"message": "busy", "code": 503}}), event(b"[DONE]")]))]
    server, model, pauses = serve(lambda n, body: scripts[n] if n < 3 else (200, STREAM, pieces("42")))
    (reply,), told = heard(model)
    assert reply == Reply("42", (), None, 7, 3) and told == [(0, "42")] and len(pauses) == 3


@pytest.mark.parametrize("headers", [STREAM, CHUNKED])
def test_one_that_breaks_off_is_asked_again_and_nothing_is_told_twice(serve: Any, headers: Any) -> None:  # noqa: F811
    scripts = [broken("one ", "two"), broken("on"), pieces("one two", " three", " four")]
    server, model, pauses = serve(lambda n, body: (200, headers, scripts[n]))
    (reply,), told = heard(model)
    assert reply.text == "one two three four" and len(pauses) == 2
    assert told == [(0, "one "), (1, "two"), (2, " three"), (3, " four")]


@pytest.mark.parametrize("then", [pieces("one six"), pieces("one"), None])
def test_one_that_breaks_off_and_is_another_one_then_is_an_error(serve: Any, then: Any) -> None:  # noqa: F811
    server, model, pauses = serve(lambda n, body: (200, STREAM, broken("one ", "two")) if n == 0 else (200, STREAM, then) if then else answer("1 2"))
    (failed,), told = heard(model)
    assert failed == CallError("failed", f"gpt at {model.endpoint.url}: its answer broke off (the stream ended too soon), and was another one when it was asked for again")
    assert told == [(0, "one "), (1, "two")] and len(server.asked) == 2


def test_an_error_in_mid_stream_is_the_endpoints_own_words(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("THE_KEY", SECRET)
    wrong = {"message": f"no more\nfor {SECRET}", "type": "invalid_request_error"}
    server, model, pauses = serve(lambda n, body: (200, STREAM, broken("on", after=event({"error": wrong}))), key="THE_KEY")
    (failed,), _ = heard(model)
    assert failed == CallError("refused", f"gpt at {model.endpoint.url}: no more for ***") and len(server.asked) == 1
    for error in ({"message": "out of memory"}, "out of memory"):
        _, model, pauses = serve(lambda n, body, error=error: (200, STREAM, broken("on", after=event({"error": error}))), retries=1)
        (failed,), told = heard(model)
        assert failed.kind == "failed" and failed.message.endswith("no answer after 2 tries: out of memory") and told == [(0, "on")] and len(pauses) == 1


@pytest.mark.parametrize("said", [b"{", b"[]", b'"a"', b'{"choices": [5]}', b'{"choices": [{"delta": {"content": 5}}]}', b'{"choices": 5}', b"\xff"])
def test_an_event_that_is_none_is_an_error_and_no_traceback(serve: Any, said: bytes) -> None:  # noqa: F811
    server, model, pauses = serve(lambda n, body: (200, STREAM, iter([*list(pieces("4"))[:2], event(said), event(b"[DONE]")])))
    (failed,), told = heard(model)
    assert failed.kind == "failed" and "not an answer in OpenAI's format" in failed.message and "\n" not in failed.message
    assert told == [(0, "4")] and len(server.asked) == 1 and not pauses


def test_a_stream_without_an_end_is_no_answer(serve: Any) -> None:  # noqa: F811
    _, model, _ = serve(lambda n, body: (200, STREAM, pieces("42", finish=None, usage=False, done=False) if n else iter([event(b"[DONE]")])), retries=1)
    (failed,), told = heard(model)
    assert failed.message.endswith("no answer after 2 tries: the stream ended too soon") and told == [(0, "42")]


@pytest.mark.parametrize("how", [{"finish": None}, {"done": False}, {"done": False, "usage": False}])
def test_an_end_may_be_said_in_several_ways(serve: Any, how: Any) -> None:  # noqa: F811
    _, model, _ = serve(lambda n, body: (200, STREAM, pieces("4", "2", **how)))
    (reply,), _ = heard(model)
    assert (reply.text, reply.finish, reply.tokens_out) == ("42", "stop", 3 if how.get("usage", True) else 2)


def test_silence_and_a_deadline_end_it(serve: Any) -> None:  # noqa: F811
    def slow(pause_s: float, forever: bool) -> Iterator[bytes]:
        yield from pieces("on", finish=None, usage=False, done=False)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            time.sleep(pause_s)
            yield b": alive\n\n" if forever else event(b"[DONE]")

    for pause_s, forever, options, why in (
        (0.5, False, {"timeout_s": 0.1, "retries": 1}, "no answer after 2 tries: it did not answer in time"),
        (0.02, True, {"timeout_s": 1.0, "deadline_s": 0.2}, "no answer after 1 try: it did not end in time"),
    ):
        began = time.monotonic()
        _, model, _ = serve(lambda n, body, how=(pause_s, forever): (200, STREAM, slow(*how)), **options)
        (failed,), told = heard(model)
        assert failed.kind == "failed" and failed.message.endswith(why) and told == [(0, "on")] and time.monotonic() - began < 4
