"""A model behind an endpoint, against a real server process's worth of bad manners on loopback."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from aiflow_agents.errors import UserError
from aiflow_agents.models.http import Endpoint, HttpModel, http_info
from aiflow_agents.models.protocol import CallError, Reply, Request, Sampling, Shape, Turn, Want

SHAPE = Shape(1, 8, 1, 1, 8, 100, 80, 10)
SECRET = "sk-not-for-anybody"


def answer(text: str, finish: str = "stop", **more: Any) -> tuple[int, dict[str, str], Any]:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}]}
    return 200, {}, body | {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}


class Server:
    """Answers with what `script` says to the n-th request; keeps what it was asked, and how many asked at once.

    What is said is a body, or pieces of one, each of which leaves when it is there; where they raise, it hangs up.
    """

    def __init__(self, script: Callable[[int, Any], Any]):
        self.asked: list[tuple[str, Any, str | None]] = []
        self.most = self._now = self.connections = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with lock:
                    outer.connections += 1

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(outer.asked)
                    outer.asked.append((self.path, body, self.headers.get("authorization")))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                try:
                    found = script(number, body)
                finally:  # before the answer leaves: who has it may ask again at once
                    with lock:
                        outer._now -= 1
                try:
                    if found is None:  # hang up in the middle
                        self._hang_up()
                        return
                    status, headers, said = found
                    if isinstance(said, Iterator):
                        self._pieces(status, headers, said)
                        return
                    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    pass  # who asked has gone

            def _pieces(self, status: int, headers: dict[str, str], said: Iterator[bytes]) -> None:
                chunked = "transfer-encoding" in headers
                self.send_response(status)
                for name, value in (headers if chunked else headers | {"connection": "close"}).items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for piece in said:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                except EOFError:
                    self._hang_up()
                else:
                    self.wfile.write(b"0\r\n\r\n" if chunked else b"")

            def _hang_up(self) -> None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    servers: list[Server] = []

    def start(script: Callable[[int, Any], Any], **options: Any) -> tuple[Server, HttpModel, list[float]]:
        servers.append(Server(script))
        endpoint, pauses = Endpoint(url=servers[-1].url, **options), []
        return servers[-1], HttpModel(http_info("gpt", endpoint, SHAPE), endpoint, pause=pauses.append), pauses

    yield start
    for server in servers:
        server.close()


def ask(*turns: Turn, **how: Any) -> Request:
    return Request(turns or (Turn("user", "6*7="),), **how)


def test_a_chat_as_openai_knows_it(serve: Any) -> None:
    logprobs = {"content": [{"token": "4", "logprob": -0.1}, {"token": "2", "logprob": -0.2}]}
    server, model, _ = serve(lambda n, body: answer("42", "length", logprobs=logprobs), logprobs=True)
    turns = Turn("system", "be brief"), Turn("user", "6*7="), Turn("user", "43", "tim"), Turn("assistant", "41")
    assert model.generate([ask(*turns, max_tokens=5, stop=("\n",))]) == [Reply("42", (), (-0.1, -0.2), 7, 3, "length")]
    path, body, key = server.asked[0]
    assert path == "/v1/chat/completions" and key is None
    said = [("system", "be brief"), ("user", "6*7="), ("user", "tim: 43"), ("assistant", "41")]
    assert body == {
        "model": "gpt", "max_tokens": 5, "temperature": 0.0, "stop": ["\n"], "logprobs": True,
        "messages": [{"role": role, "content": content} for role, content in said],
    }  # fmt: skip


def test_completions_and_a_seed_that_is_sent_only_where_something_is_drawn(serve: Any) -> None:
    def said(n: int, body: Any) -> Any:
        return 200, {}, {"choices": [{"text": "42", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    server, model, _ = serve(said, api="completions")
    assert model.generate([ask(seed=5, sampling=Sampling(0.7, 0.9)), ask(seed=5)])[0] == Reply("42", (), None, 1, 2)
    bodies = sorted((body for _, body, _ in server.asked), key=lambda body: body["temperature"])
    assert [(body.get("seed"), body.get("top_p"), body["prompt"]) for body in bodies] == [(None, None, "6*7="), (5, 0.9, "6*7=")]


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_what_may_pass_is_tried_again_with_longer_and_longer_pauses(serve: Any, status: int) -> None:
    server, model, pauses = serve(lambda n, body: answer("42") if n == 3 else (status, {}, {"error": {"message": "busy"}}))
    (reply,) = model.generate([ask()])
    assert reply.text == "42" and len(server.asked) == 4
    assert all(0.25 * 2**i <= pause <= 0.5 * 2**i for i, pause in enumerate(pauses)) and len(pauses) == 3


def test_a_pause_that_is_asked_for_is_kept(serve: Any) -> None:
    _, model, pauses = serve(lambda n, body: answer("42") if n else (429, {"retry-after": "7"}, {}))
    assert model.generate([ask()])[0].text == "42" and pauses == [7.0]


def test_what_is_wrong_is_not_tried_again_and_fails_alone(serve: Any) -> None:
    def script(n: int, body: Any) -> Any:
        return (400, {}, {"error": {"message": "no such\nmodel"}}) if body["messages"][0]["content"] == "bad" else answer("42")

    server, model, pauses = serve(script)
    replies = model.generate([ask(), ask(Turn("user", "bad")), ask()])
    assert [getattr(reply, "text", None) for reply in replies] == ["42", None, "42"]
    assert replies[1] == CallError("refused", f"gpt at {model.endpoint.url}: 400 no such model")
    assert len(server.asked) == 3 and not pauses


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (lambda n, body: (503, {}, b"<html>gateway</html>"), "503 <html>gateway</html>"),
        (lambda n, body: None, "RemoteProtocolError"),
        (lambda n, body: time.sleep(0.5), "did not answer in time"),
    ],
)
def test_after_the_last_try_it_says_what_was_wrong(serve: Any, script: Any, why: str) -> None:
    _, model, pauses = serve(script, retries=2, timeout_s=0.1)
    (failed,) = model.generate([ask()])
    assert failed.kind == "failed" and "no answer after 3 tries: " in failed.message and why in failed.message and len(pauses) == 2


def test_a_deadline_ends_the_trying(serve: Any) -> None:
    server, model, pauses = serve(lambda n, body: (429, {"retry-after": "20"}, {}), deadline_s=5)
    assert "after 1 try" in model.generate([ask()])[0].message and not pauses and len(server.asked) == 1


@pytest.mark.parametrize("said", [b"{", b"[]", b'{"choices": []}', {"choices": [{"message": {"content": "42"}}]}])
def test_what_is_no_answer_is_an_error_and_no_traceback(serve: Any, said: Any) -> None:
    _, model, _ = serve(lambda n, body: (200, {}, said))
    (failed,) = model.generate([ask()])
    assert isinstance(failed, CallError) and "not an answer in OpenAI's format" in failed.message


def test_no_more_ask_at_once_than_is_allowed(serve: Any) -> None:
    three = threading.Barrier(3)  # each answer waits until three are asked for

    def script(n: int, body: Any) -> Any:
        three.wait(30)
        return answer("42")

    server, model, _ = serve(script, at_once=3)
    assert len(model.generate([ask(Turn("user", str(i))) for i in range(12)])) == 12
    assert server.most == 3


def test_a_key_comes_from_the_environment_and_goes_nowhere_else(serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("THE_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    server, model, _ = serve(lambda n, body: (401, {}, {"error": {"message": f"wrong key {SECRET}"}}), key="THE_KEY")
    (failed,) = model.generate([ask()])
    assert server.asked[0][2] == f"Bearer {SECRET}"
    assert failed.message.endswith("401 wrong key ***")
    assert SECRET not in caplog.text and SECRET not in repr(model.info) + repr(model.endpoint)
    monkeypatch.delenv("THE_KEY")
    with pytest.raises(UserError, match="environment variable THE_KEY.* is not set"):
        HttpModel(model.info, model.endpoint)


@pytest.mark.parametrize("url", ["localhost:80", "ftp://x/v1", "http://me:secret@x/v1", "https://x/v1?api_key=1"])
def test_an_address_that_is_none_or_holds_a_key_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected http|a key does not belong"):
        Endpoint(url=url)


def test_what_no_endpoint_can_do_is_refused_by_name(serve: Any) -> None:
    server, model, _ = serve(lambda n, body: answer("42"))
    replies = model.generate([ask(exit=3), ask(want=Want(2)), ask(begin=(1,)), ask(score="42")])
    assert [reply.message.partition("cannot ")[2] for reply in replies] == ["choose an exit", "give hidden states", "go on from tokens", "say how likely a given text is"]
    assert not server.asked
