"""A real server in a process of its own: it says where it listens, stands rude clients, and lets what is under way come to its end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import one_of

from aiflow_agents.cli import main as door
from aiflow_agents.errors import AIFlowError
from aiflow_agents.runtime.placement import unseat
from aiflow_agents.serve.door import DoorThread
from aiflow_agents.serve.run import serve_inline

SLOW = """\
import asyncio

from aiflow_agents import Topology


class Slow(Topology):
    seconds: float = 1.0

    async def run(self, task, team):
        await asyncio.sleep(self.seconds)
        return await next(iter(team)).ask(task.question)
"""
KEY = "sk-nobody-must-read-this"


class Server:
    def __init__(self, folder: Path, *more: str):
        (folder / "topologies").mkdir(exist_ok=True)
        (folder / "topologies" / "slow.py").write_text(SLOW)
        code = "import sys; from aiflow_agents.cli.main import main; sys.exit(main())"
        args = ["serve", "willow", "--topology", "single", "--allow", "slow", "--runtime", "inline", "--port", "0", "--key-variable", "THE_KEY", *more]
        env = {**os.environ, "THE_KEY": KEY, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen([sys.executable, "-c", code, *args], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", self.said)
        assert found, self.process.communicate(timeout=30)
        self.port = int(found[1])
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def ask(self, **more: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json={"model": "willow", "messages": [{"role": "user", "content": "84*7="}], **more})

    def raw(self, sent: bytes, half_close: bool = False) -> bytes:
        """What is answered to these bytes, until the server closes, or for two seconds."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            answered = b""
            try:
                while more := connection.recv(65536):
                    answered += more
            except TimeoutError:
                pass
            return answered

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("served"), "--max-body-bytes", "5000")
    yield started
    started.client.close()
    if started.process.poll() is None:
        started.end()


def test_it_says_what_it_serves_and_answers(server: Server) -> None:
    assert server.said.startswith("6 models at ") and "willow/slow" in server.said
    names = [model["id"] for model in server.client.get("/v1/models").json()["data"]]
    assert set(names) == {"willow", "willow/single", "willow/slow", *(name for name in names if server.client.get(f"/v1/models/{name}").status_code == 200)}
    answer = server.ask().json()
    assert re.fullmatch(r"-?\d+", answer["choices"][0]["message"]["content"]) and answer["usage"]["aiflow"]["calls"] == 1
    pieces = server.ask(stream=True, stream_options={"include_usage": True}).text
    assert pieces.endswith("data: [DONE]\n\n") and answer["choices"][0]["message"]["content"] in pieces


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_member_behind_our_own_door_tells_its_tokens(server: Server, monkeypatch: pytest.MonkeyPatch, api: str) -> None:
    """The door asks a model that streams, and a team whose member is behind the door streams it on."""
    import asyncio

    from aiflow_agents import Team, load_topology
    from aiflow_agents.models.backends import behind
    from aiflow_agents.models.protocol import Request, Turn
    from aiflow_agents.runtime.live import Live
    from aiflow_agents.runtime.reading import Reading

    monkeypatch.setenv("THE_KEY", KEY)
    http = {"url": f"http://127.0.0.1:{server.port}/v1", "api": api, "key": "THE_KEY", "logprobs": True}
    team = Team.of({"ann": {"backend": "http", "model": "willow/trunk", "costs_as": "qwen3-8b", "tier": "cloud", "http": http}})
    model, heard, texts = behind(unseat(team["ann"].folder)[1]).load(), [], [f"{a}*{b}=" for a in (41, 42, 84) for b in (3, 5, 7)]
    requests = [Request((Turn("user", text),)) for text in texts]
    replies, plain = model.generate(requests, told=lambda *what: heard.append(what)), model.generate(requests)
    assert replies == plain and all(len(reply.logprobs) == reply.tokens_out for reply in plain)
    for i, reply in enumerate(plain):  # each of its tokens is a digit, and a piece
        assert [(at, said) for row, at, _, said in heard if row == i] == list(enumerate(reply.text)) and reply.tokens_out == len(reply.text) + 1

    async def ask(reading: Reading, read: list[str]) -> Any:
        async with Live(team) as live:
            return await live.answer(load_topology("stream"), texts[-1], reader=lambda portion: read.append(reading.add(portion)))

    reading, read = Reading(team), []
    result = asyncio.run(ask(reading, read)).result
    assert result.text == plain[-1].text and [said for said in read if said] == list(result.text) and reading.rest(result.text) == ""
    assert result.delivery.tokens == result.usage.tokens_out == plain[-1].tokens_out


def test_rude_clients_do_no_harm(server: Server) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n".encode()
    body = json.dumps({"model": "willow", "messages": [{"role": "user", "content": "1+1="}]}).encode()
    for sent, statuses in (
        (head + b"Content-Length: 999999\r\n\r\n", (413,)),
        (head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n", (413,)),
        (head + b"Content-Length: -5\r\n\r\n", (400,)),
        (head + b"Content-Length: 5\r\n\r\nhello", (400,)),
        (b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", (400, 404, 414)),
        (b"GET /health HTTP/1.1\r\nx: " + b"x" * 65_550, (400,)),  # and no end
        (b"\x16\x03\x01\x02\x00\x01\x00", (400,)),
    ):
        answered = server.raw(sent)
        assert answered[:9] == b"HTTP/1.1 " and int(answered[9:12]) in statuses, (sent[:80], answered[:80])
    for sent in (head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:10], head[:40], b""):  # and then no more
        server.raw(sent, half_close=True)
    assert server.ask().status_code == 200 and server.process.poll() is None


def test_500_requests_made_from_its_own_schema_are_answered_as_the_schema_says(server: Server) -> None:
    """Those that follow it, and those that break it: no 5xx, nothing undeclared, and no status or body that the schema does not have."""
    from schemathesis import GenerationMode, openapi
    from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

    told, key = server.client.get("/openapi.json").json(), {"Authorization": f"Bearer {KEY}"}
    for asked in ("ChatAsked", "CompletionsAsked"):
        fields = told["components"]["schemas"][asked]["properties"]
        for name in [name for name, field in fields.items() if not field.keys() & {"type", "anyOf", "$ref", "enum"}]:
            del fields[name]  # may be anything, and is left alone: most of the time would go into making it up
    schema = openapi.from_dict(told)
    schema.config.update(base_url=f"http://127.0.0.1:{server.port}")
    routes = [found.ok() for found in schema.get_all_operations()]
    made = [route.as_strategy(generation_mode=mode) for route in routes for mode in GenerationMode if mode.is_positive or "models" not in route.path]
    seen: Counter[tuple[str, int]] = Counter()

    @settings(max_examples=500, deadline=None, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=one_of(made))
    def ask(case: Any) -> None:
        answer = case.call(headers=key)
        seen[case.operation.path, answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        too_large = [negative_data_rejection] if answer.status_code == 413 else []  # refused before it is read
        case.validate_response(answer, headers=key, excluded_checks=[positive_data_acceptance, *too_large])  # no schema can say all that is not served

    ask()
    assert sum(seen.values()) == 500
    posted = Counter({status: sum(n for (at, each), n in seen.items() if each == status and at.endswith("completions")) for _, status in seen})
    assert posted.total() > 200 and min(posted[200], posted[400], posted[401]) >= 5, seen


def test_what_is_under_way_comes_to_its_end_and_no_key_is_in_any_log(server: Server) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(server.ask(model="willow/slow", topology={"params": {"seconds": 1.5}})))
    asking.start()
    while "aiflow_requests_inside 1" not in server.client.get("/metrics").text:
        time.sleep(0.01)
    began = time.monotonic()
    code, err = server.end()
    asking.join(timeout=30)
    assert code == 0 and answers[0].status_code == 200 and answers[0].json()["choices"][0]["message"]["content"]
    assert time.monotonic() - began < 25 and KEY not in err and "Traceback" not in err
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{server.port}/health")


def test_signals_are_the_servers_whatever_an_app_sets_when_it_starts() -> None:
    """Ray sets handlers of its own."""

    def stolen(*_: Any) -> None:
        raise AssertionError("the app's own handler was called")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan" and (await receive())["type"] == "lifespan.startup"
        signal.signal(signal.SIGTERM, stolen)
        await send({"type": "lifespan.startup.complete"})
        said.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    serve_inline(app, "127.0.0.1", 0, lambda port: os.kill(os.getpid(), signal.SIGTERM))
    assert said == ["lifespan.shutdown"] and signal.getsignal(signal.SIGTERM) is before


def test_a_door_with_a_thread_of_its_own_says_whether_it_stands_open() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            said.append((await receive())["type"])
            await send({"type": "lifespan.shutdown.complete"})
            return
        await asyncio.sleep(1.0)  # under way when it is closed
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    said: list[Any] = []
    door = DoorThread(app, "127.0.0.1", 0)
    door.check()
    port = door.door.port
    asking = threading.Thread(target=lambda: said.append(httpx.get(f"http://127.0.0.1:{port}/").text))
    asking.start()
    while not door.door.server.server_state.tasks:
        time.sleep(0.01)
    with pytest.raises(AIFlowError, match=f"nothing listens at 127.0.0.1:{port}"):
        DoorThread(app, "127.0.0.1", port)
    door.close()
    asking.join(10)
    assert said[-2:] == ["done", "lifespan.shutdown"]
    with pytest.raises(AIFlowError, match="nothing listens"):
        door.check()


@pytest.mark.parametrize(("asks", "then", "stays"), [(False, b"", False), (False, b"GET / HT", False), (True, b"", True), (True, b"GET / HT", False)])
def test_who_does_not_end_a_request_is_sent_away(asks: bool, then: bytes, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who is between two of them, or waits for an answer, is not."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(1.0)  # longer than a head may take
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"done"})

    monkeypatch.setattr("aiflow_agents.serve.door.HEAD_S", 0.5)
    door = DoorThread(app, "127.0.0.1", 0)
    try:
        with socket.create_connection(("127.0.0.1", door.door.port), timeout=2.0) as client:
            if asks:
                client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                heard = b""
                while not heard.endswith(b"done"):
                    heard += client.recv(4096) or pytest.fail(f"closed after {heard!r}")
            client.sendall(then)
            if stays:
                with pytest.raises(TimeoutError):
                    client.recv(1)
            else:
                assert client.recv(1) == b""
    finally:
        door.close()


# --- before it listens ---


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["spezialists"], "no team named 'spezialists'; did you mean specialists"),
        (["specialists", "--topology", "debat"], "no topology named 'debat'; did you mean debate"),
        (["specialists", "--topology", "router"], "must be fitted on a dev split first"),
        (["willow", "--allow", "star"], "needs a member with role 'server'"),
        (["specialists", "specialists"], "two models would be called specialists"),
        (["specialists", "--key-variable", "NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY, which holds the API keys, is not set"),
        (["specialists", "-T", "rounds=1"], "named 'rounds'"),
        (["specialists", "--place", "spread"], "--place spread is for --runtime ray"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(args: list[str], says: str, capsys: Any) -> None:
    code = door.main(["serve", *args, "--runtime", "inline", "--port", "0"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1


def test_an_open_door_is_warned_of(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("aiflow_agents.serve.run.serve_inline", lambda app, host, port, ready: ready(80))
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        assert door.main(["serve", "willow", "--topology", "single", "--allow", "exit-cascade", "--runtime", "inline", "--host", host]) == 0
        out, err = capsys.readouterr()
        assert f"http://{host}:80/v1" in out and ("everybody who reaches 0.0.0.0:8000 can use this" in err) == warned
