"""Keys and limits, and the form in which whatever is refused is refused."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.serve.gate import MOST_CLIENTS, Gate, Keys, Limits, Rates
from aiflow_agents.serve.metrics import Metrics
from tests.serve.conftest import chat

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
KEY = "sk-a-key-that-nobody-else-knows"


def error(answer: Any) -> dict[str, Any]:
    """What was refused, in OpenAI's form."""
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"} and body["error"]["message"]
    assert "Traceback" not in answer.text and "\n" not in body["error"]["message"]
    return body["error"]


def all_of(serve: Any, requests: list[tuple[str, bytes]], kind: str = "application/json") -> list[Any]:
    """What one endpoint answers to these, one after another."""

    async def work(client: Any) -> Any:
        return [await client.post(path, content=body, headers={"content-type": kind} if kind else {}) for path, body in requests]

    return serve(work)


# --- keys ---


@pytest.mark.parametrize("given_key", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY} x", f"Bearer {KEY[:-1]}", "Bearer ü"])
def test_who_has_no_key_is_not_let_in(post: Any, stage: Any, given_key: str | None, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {} if given_key is None else {"authorization": given_key.encode("utf-8")}
    answer = post(CHAT, chat(), headers=headers, keys=Keys(["another", KEY]))
    assert answer.status_code == 401 and error(answer)["code"] == "invalid_api_key" and answer.headers["www-authenticate"] == "Bearer"
    assert not stage.asked and KEY not in answer.text + caplog.text


def test_who_has_one_is_and_health_needs_none(serve: Any) -> None:
    async def work(client: Any) -> Any:
        return (
            await client.post(CHAT, json=chat(), headers={"authorization": f"bearer  {KEY} "}),
            await client.get("/health"),
            await client.get("/v1/models"),
            await client.get("/metrics"),
            await client.get("/metrics", headers={"authorization": f"Bearer {KEY}"}),
        )

    answers = serve(work, keys=Keys(["another", KEY]))
    assert [answer.status_code for answer in answers] == [200, 200, 401, 401, 200] and KEY not in "".join(answer.text for answer in answers)


# --- limits ---


def test_a_body_may_be_so_large_and_no_larger(post: Any) -> None:
    body = json.dumps(chat()).encode()
    limits = Limits(body_bytes=len(body))
    assert post(CHAT, content=body, headers={"content-type": "application/json"}, limits=limits).status_code == 200
    answer = post(CHAT, content=body + b" ", headers={"content-type": "application/json"}, limits=limits)
    assert answer.status_code == 413 and error(answer)["code"] == "request_too_large"


def through(limits: Limits, messages: list[Any], *, headers: list[tuple[bytes, bytes]] = (), wait: float = 0.0) -> tuple[int, Any, list[Any]]:
    """What a gate sends when a client sends these, and what the app behind it has read."""
    sent, read, left = [], [], list(messages)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> Any:
        if left:
            return left.pop(0)
        await asyncio.sleep(30)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": CHAT, "method": "POST", "headers": list(headers), "client": ("1.2.3.4", 5)}
    asyncio.run(Gate(app, Keys(), limits, lambda *_: None)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), read


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_pieces_is_measured_as_it_comes(stage: Any) -> None:
    limits = Limits(body_bytes=10, body_s=0.05)
    assert through(limits, [part(b"12345", True), part(b"67890", False)]) == (200, {}, [part(b"1234567890", False)])
    for messages, headers, status in (
        ([part(b"123456", True), part(b"78901", True)], [], 413),
        ([], [(b"content-length", b"11")], 413),
        ([], [(b"content-length", b"9" * 5000)], 413),
        ([], [(b"content-length", b"-1")], 413),
        ([part(b"12345", True)], [], 408),  # and then nothing
        ([part(b"12345", True), {"type": "http.disconnect"}], [], 400),
    ):
        got, body, read = through(limits, messages, headers=headers)
        assert (got, read) == (status, []) and body["error"]["message"]


def test_a_rate_is_kept_by_client() -> None:
    now = [0.0]
    rates = Rates(2.0, 3, lambda: now[0])
    assert [rates.wait_s("a") for _ in range(4)] == [0, 0, 0, 0.5] and rates.wait_s("b") == 0
    now[0] = 0.5
    assert rates.wait_s("a") == 0 and rates.wait_s("a") == 0.5
    for i in range(MOST_CLIENTS + 5):
        rates.wait_s(f"client {i}")
    assert len(rates._buckets) == MOST_CLIENTS


@given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.floats(0.1, 10), st.integers(1, 8))
def test_no_more_than_rate_and_burst_come_through(pauses: list[float], rate: float, burst: int) -> None:
    now = [0.0]
    rates, came = Rates(rate, burst, lambda: now[0]), 0
    for pause in pauses:
        now[0] += pause
        came += rates.wait_s("a") == 0
    assert came <= burst + now[0] * rate + 1e-6


def test_too_many_requests_are_told_when_to_come_again(serve: Any) -> None:
    async def work(client: Any) -> Any:
        return [await client.post(CHAT, json=chat()) for _ in range(3)]

    first, second, third = serve(work, limits=Limits(rate=0.1, burst=2))
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert error(third)["type"] == "rate_limit_error" and 8 <= int(third.headers["retry-after"]) <= 10


def test_who_finds_no_room_is_told_at_once_and_the_others_are_answered(serve: Any, stage: Any) -> None:
    go = threading.Event()
    stage.say["tim"] = lambda request: "late" if go.wait(30) else "never"

    async def work(client: Any) -> Any:
        asked = [asyncio.ensure_future(client.post(CHAT, json=chat(f"q{i}", "test/tim"))) for i in range(3)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        refused = [task.result() for task in done]
        health = await client.get("/health")
        go.set()
        return refused, health, [await task for task in asked]

    refused, health, answers = serve(work, limits=Limits(at_once=2))
    assert [answer.status_code for answer in refused] == [503] and refused[0].headers["retry-after"] == "1" and health.status_code == 200
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503] and error(refused[0])["code"] == "overloaded"


def test_a_client_that_goes_is_not_worked_for(stage: Any, serve: Any) -> None:
    go, begun = threading.Event(), threading.Event()

    def tim(request: Any) -> str:
        begun.set()
        return "late" if go.wait(30) else "never"

    stage.say["tim"] = tim

    async def work(client: Any) -> Any:
        app = client._transport.app
        held = asyncio.ensure_future(client.post(CHAT, json=chat("q0", "test/tim")))
        await asyncio.to_thread(begun.wait, 30)
        body, sent = json.dumps(chat("q1", "test/tim")).encode(), []
        messages = [part(body, False)]
        gone = asyncio.Event()

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "path": CHAT, "raw_path": CHAT.encode(), "method": "POST", "headers": headers, "query_string": b"", "client": None}
        asked = asyncio.ensure_future(app(scope, receive, send))
        while b'calls_waiting 1' not in (await client.get("/metrics")).content:
            await asyncio.sleep(0)
        gone.set()
        await asked
        go.set()
        return sent[0]["status"], (await held).status_code

    assert serve(work) == (499, 200)
    assert [request.messages[0].content for request in stage.asked] == ["q0"]


# --- whatever a client sends ---

BAD = [
    ({"model": "nope"}, 404, "no model named 'nope'"),
    ({"model": 7}, 400, "model: "),
    ({"model": "test/tom"}, 404, "did you mean test/tim"),
    ({"messages": []}, 400, "messages: "),
    ({"messages": "q"}, 400, "messages: "),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content: "),
    ({"messages": [{"role": "tool", "content": "q"}]}, 400, "messages.0.role: "),
    ({"messages": [{"role": "user", "content": "   "}]}, 400, "the question is empty"),
    ({"messages": [{"role": "assistant", "content": "q"}]}, 400, "the last one must be the user's"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "'image_url' is not served"),
    ({"temperature": -1}, 400, "temperature: "),
    ({"temperature": "hot"}, 400, "temperature: "),
    ({"top_p": 0}, 400, "top_p: "),
    ({"n": 0}, 400, "n: "),
    ({"n": 1000}, 400, "n: "),
    ({"n": True}, 400, "n: expected an integer"),
    ({"max_tokens": 0}, 400, "max_tokens: "),
    ({"max_tokens": 1e400}, 400, ""),
    ({"seed": 2**70}, 400, "seed: "),
    ({"stop": ["a"] * 5}, 400, "stop: "),
    ({"stop": ""}, 400, "stop"),
    ({"tools": [{}]}, 400, "tools are not served"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format is not served"),
    ({"presence_penalty": 1}, 400, "presence_penalty is not served"),
    ({"temprature": 1}, 400, "unrecognized request argument: temprature"),
    ({"stream_options": {}}, 400, "stream_options is for stream"),
    ({"topology": "debate"}, 400, "topology: "),
    ({"topology": {"name": "star"}}, 400, "no topology of test named 'star'; "),
    ({"topology": {"name": "../../etc/passwd"}}, 400, "no topology of test named"),
    ({"topology": {"name": "tim"}}, 400, "no topology of test named 'tim'"),
    ({"topology": {"name": "debate", "params": {"round": 1}}}, 400, "named 'round'; did you mean rounds"),
    ({"topology": {"name": "debate", "params": {"rounds": "x"}}}, 400, "topology 'debate', parameter rounds: "),
    ({"topology": {"name": "debate", "params": {"rounds": 1000}}}, 400, "rounds=1000: at most 32"),
    ({"topology": {"name": "debate", "params": {"rounds": "1e6"}}}, 400, "rounds=1e6: at most 32"),
    ({"topology": {"name": "self-consistency", "params": {"member": "tom"}}}, 400, "no member of team 'test' named 'tom'"),
    ({"model": "test/tim", "topology": {"name": "debate"}}, 400, "talks to nobody"),
]


def test_a_bad_request_is_told_what_is_wrong_with_it(serve: Any, stage: Any) -> None:
    bodies = [(CHAT, json.dumps(chat() | change).encode()) for change, _, _ in BAD]
    for (change, status, says), answer in zip(BAD, all_of(serve, bodies), strict=True):
        assert answer.status_code == status and says in error(answer)["message"], change
    assert not stage.asked


def test_what_is_not_there_or_not_for_that_is_told_so(serve: Any) -> None:
    async def work(client: Any) -> Any:
        return [await client.request(*each) for each in (("GET", "/v2"), ("GET", CHAT), ("DELETE", "/v1/models"), ("GET", "/v1/models/nope"), ("POST", "/"))]

    answers = serve(work)
    assert [answer.status_code for answer in answers] == [404, 405, 405, 404, 404] and all(map(error, answers))


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
def test_what_is_no_json_is_no_request(serve: Any, kind: str) -> None:
    said = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"model": "\\ud800"}', b'{"\\ud800": 1}']
    for answer in all_of(serve, [(path, content) for path in (CHAT, COMPLETIONS) for content in said], kind):
        assert answer.status_code in (400, 404) and error(answer)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
FIELDS = ["model", "messages", "prompt", "n", "seed", "stop", "max_tokens", "temperature", "top_p", "stream", "stream_options", "logprobs", "topology", "echo"]


def test_whatever_is_asked_nothing_breaks(serve: Any) -> None:
    @given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4), st.sampled_from([CHAT, COMPLETIONS]))
    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    def asked(change: dict[str, Any], path: str) -> None:
        body = ({**chat(), "prompt": "q"} if path == COMPLETIONS else chat()) | change
        if path == COMPLETIONS:
            body.pop("messages", None)
        requests.append((path, json.dumps(body).encode()))

    requests: list[tuple[str, bytes]] = []
    asked()

    for answer in all_of(serve, requests):
        assert answer.status_code == 200 or answer.status_code < 500 and error(answer)


# --- metrics ---


def test_what_an_operator_sees(serve: Any) -> None:
    async def work(client: Any) -> Any:
        await client.post(CHAT, json=chat("q", "test/debate"))
        await client.post(CHAT, json=chat("q", "an invention of a client's"))
        return (await client.get("/metrics")).text

    lines = dict(line.rsplit(" ", 1) for line in serve(work).splitlines() if not line.startswith("#"))
    assert lines['aiflow_requests_total{model="test/debate",status="200"}'] == "1"
    assert lines['aiflow_requests_total{model="",status="404"}'] == "1" and not any("invention" in line for line in lines)
    assert lines['aiflow_calls_total{member="tim"}'] == "2" and float(lines['aiflow_link_bytes_total{src="phone",dst="tower"}']) > 0
    assert lines['aiflow_request_seconds_bucket{model="test/debate",le="+Inf"}'] == lines['aiflow_request_seconds_count{model="test/debate"}'] == "1"
    assert float(lines["aiflow_batches_total"]) <= float(lines["aiflow_batch_calls_total"]) == 6 and lines["aiflow_requests_inside"] == "0"


def test_buckets_are_cumulative_and_labels_quoted() -> None:
    metrics = Metrics()
    for seconds in (0.005, 0.3, 500):
        metrics.answered('a "b"\\', 200, seconds)
    text = metrics.text({})
    assert 'aiflow_requests_total{model="a \\"b\\"\\\\",status="200"} 3' in text
    counts = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if "_bucket" in line]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-2:] == [2, 3]
