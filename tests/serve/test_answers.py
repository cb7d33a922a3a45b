"""What a client gets: choices, usage with its split, pieces, and who was asked what."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer

from aiflow_agents import catalog
from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import CallError, Reply, Sampling, Turn
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.run import ask
from aiflow_agents.serve.gate import Limits
from aiflow_agents.serve.served import Models
from aiflow_agents.topology.load import load_topology
from tests.serve.conftest import chat

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def test_a_team_answers_as_in_simulation_and_says_what_it_cost_and_where(post: Any, stage: Any, team: Any) -> None:
    body = post(CHAT, chat("q", "test/debate", topology={"params": {"rounds": 2}})).json()
    simulated = ask(team, load_topology("debate", {"rounds": 2}), "q", hosts=stage.hosts())
    (choice,) = body["choices"]
    assert (body["object"], body["model"], choice["index"], choice["finish_reason"]) == ("chat.completion", "test/debate", 0, "stop")
    assert choice["message"] == {"role": "assistant", "content": simulated.text, "refusal": None} and choice["logprobs"] is None
    assert choice["aiflow"]["confidence"] == simulated.confidence
    usage, split = body["usage"], body["usage"]["aiflow"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (simulated.usage.tokens_in, simulated.usage.tokens_out)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and split["wire_bytes"] == simulated.usage.wire_bytes
    assert set(split["members"]) == {"ann", "bob", "tim"} and {row["calls"] for row in split["members"].values()} == {3}
    for name, key in (("calls", "calls"), ("flops", "flops"), ("prompt_tokens", "tokens_in"), ("completion_tokens", "tokens_out")):
        total = usage[name] if name in usage else split[name]
        assert sum(row[key] for row in split["members"].values()) == pytest.approx(total)
        assert sum(row[key] for row in split["nodes"].values()) == pytest.approx(total)
    assert sum(row["energy_j"] for row in split["members"].values()) + split["radio_j"] == pytest.approx(split["energy_j"])
    assert set(split["nodes"]) == {"phone", "tower"} and sum(split["links"].values()) == split["wire_bytes"]


def test_a_member_is_asked_as_the_client_says(post: Any, stage: Any) -> None:
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    messages += [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "q", "name": "joe"}]
    body = {"model": "test/tim", "messages": messages, "temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "stop": ["x", "y"], "seed": 7, "user": "me"}
    assert post(CHAT, body).json()["choices"][0]["message"]["content"] == "tim:be brief"
    (request,) = stage.asked
    assert request.messages == (Turn("system", "be brief"), Turn("user", "hello"), Turn("assistant", "hi"), Turn("user", "q"))
    assert (request.sampling, request.max_tokens, request.stop) == (Sampling(0.5, 0.9), 9, ("x", "y"))
    assert post(CHAT, {**body, "max_completion_tokens": 5}).status_code == 200 and stage.asked[-1].max_tokens == 5
    assert stage.asked[-1].seed == request.seed  # the same seed draws the same
    assert post(CHAT, {**body, "seed": 8}).status_code == 200 and stage.asked[-1].seed != request.seed


def test_what_led_to_a_question_goes_to_every_member_of_a_team(post: Any, stage: Any) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "q"}]
    alone = post(CHAT, chat()).json()["usage"]["aiflow"]["wire_bytes"]
    stage.batches.clear()
    usage = post(CHAT, {"model": "test", "messages": messages}).json()["usage"]["aiflow"]
    assert [request.messages for request in stage.asked] == [(Turn("user", "hello"), Turn("assistant", "hi"), Turn("user", "q"))] * 3
    assert usage["wire_bytes"] > alone + len("hellohi")  # and is paid for


def test_nothing_is_overruled_that_the_client_leaves_open(post: Any, stage: Any) -> None:
    post(CHAT, chat("q", "test/tim", temperature=None, max_tokens=None, n=None, stop=None, stream=None))
    assert [(request.sampling, request.max_tokens, request.stop) for request in stage.asked] == [(Sampling(), 32, ())]


def test_several_choices_are_drawn_apart_and_paid_for_together(post: Any, stage: Any) -> None:
    stage.say["tim"] = lambda request: str(request.seed % 1000)
    body = chat("q", "test/tim", n=3, temperature=1, seed=1)
    first, again = post(CHAT, body).json(), post(CHAT, body).json()
    said = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2] and len(set(said)) == 3
    assert [choice["message"]["content"] for choice in again["choices"]] == said and first["usage"]["aiflow"]["calls"] == 3
    unseeded = {post(CHAT, chat("q", "test/tim", temperature=1)).json()["choices"][0]["message"]["content"] for _ in range(4)}
    assert len(unseeded) > 1
    assert len({choice["message"]["content"] for choice in post(CHAT, {**body, "temperature": 0}).json()["choices"]}) == 1


def test_each_prompt_is_a_question(post: Any, stage: Any) -> None:
    body = post(COMPLETIONS, {"model": "test/tim", "prompt": ["one", "two"], "n": 2, "max_tokens": 4}).json()
    assert body["object"] == "text_completion"
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == list(enumerate(["tim:one", "tim:one", "tim:two", "tim:two"]))
    assert post(COMPLETIONS, {"model": "test", "prompt": "one"}).json()["choices"][0]["text"] == "ann:one"
    assert post(COMPLETIONS, {"model": "test/tim", "prompt": ["x"] * 65, "n": 2}).status_code == 400


def test_why_an_answer_ended(post: Any, stage: Any) -> None:
    stage.say["tim"] = lambda request: Reply("one two", (1, 2), (-0.1, -0.1), 2, 2, "length")
    assert post(CHAT, chat("q", "test/tim")).json()["choices"][0]["finish_reason"] == "length"
    for model in ("test/tim", "test/self-consistency"):
        body = chat("q", model, stop=["tw", "two"], **({} if model == "test/tim" else {"topology": {"params": {"member": "tim"}}}))
        (choice,) = post(CHAT, body).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("one ", "stop")


# --- in pieces ---


def events(text: str) -> list[Any]:
    lines = [line for line in text.split("\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


@pytest.mark.parametrize("wants_usage", [True, False])
def test_the_pieces_are_the_answer(post: Any, stage: Any, wants_usage: bool) -> None:
    text = "  some words,\nand more \n"
    stage.say["tim"] = lambda request: Reply(text, tuple(range(5)), (-0.1,) * 5, 2, 5)
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    answer = post(CHAT, chat("q", "test/tim", n=2, stream=True, **options))
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events(answer.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and len({chunk["id"] for chunk in chunks}) == 1
    for i in range(2):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["index"] == i]
        assert mine[0]["delta"]["role"] == "assistant" and "".join(choice["delta"].get("content", "") for choice in mine) == text
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"] and len(mine) > 4
    if wants_usage:
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 10 and {c["usage"] for c in chunks[:-1]} == {None}
    else:
        assert not any("usage" in chunk for chunk in chunks)
    pieces = events(post(COMPLETIONS, {"model": "test/tim", "prompt": "q", "stream": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in pieces) == text and {chunk["object"] for chunk in pieces} == {"text_completion"}


def test_what_fails_before_the_first_piece_fails_as_ever(post: Any, stage: Any) -> None:
    stage.say["tim"] = lambda request: CallError("failed", "out of luck")
    answer = post(CHAT, chat("q", "test/tim", stream=True))
    assert answer.status_code == 502 and answer.json()["error"]["message"] == "tim: out of luck"


class Letters:
    """A model that streams: a letter a token, as text, each when `step(i)` returns."""

    streams = True

    def __init__(self, info: Any, said: str, step: Any = lambda i: None):
        self.info, self.said, self.step = info, said, step

    def generate(self, requests: Any, told: Any = None) -> list[Any]:
        for i, letter in enumerate(self.said if requests else ""):
            self.step(i)
            for row in range(len(requests)):
                if told:
                    told(row, i, (), letter)
        return [Reply(self.said, (), None, 2, len(self.said)) for _ in requests]


def spoken(stage: Any, team: Any, said: str, step: Any = lambda i: None) -> None:
    stage.hosts = lambda: InlineHosts(load=lambda key: Letters(team["tim"].info, said, step))


def test_a_delta_is_sent_before_the_next_token_is_made(serve: Any, stage: Any, team: Any) -> None:
    steps, late, sent = [threading.Event() for _ in "word"], [], b""
    steps[0].set()
    spoken(stage, team, "word", lambda i: late.append(i) if not steps[i].wait(20) else None)
    body = json.dumps(chat("q", "test/tim", stream=True)).encode()

    async def call(client: Any) -> None:
        async def receive() -> Any:
            if not asked:
                asked.append(True)
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            nonlocal sent
            sent += message.get("body", b"")
            for i, letter in enumerate("wor"):
                if b'"content":"%s"' % letter.encode() in sent:
                    steps[i + 1].set()

        asked: list[bool] = []
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "headers": headers, "root_path": ""}
        await client._transport.app({**scope, "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"}, "client": ("x", 1)}, receive, send)

    serve(call)
    assert late == [] and "".join(c["choices"][0]["delta"].get("content", "") for c in events(sent.decode())) == "word"


@pytest.mark.parametrize(("stop", "said"), [([], "one two three"), (["tw"], "one "), (["x", "three!"], "one two three")])
def test_deltas_are_the_answer_that_comes_without_them(post: Any, stage: Any, team: Any, stop: list[str], said: str) -> None:
    spoken(stage, team, "one two three")
    for model in ("test/tim", "test/stream"):
        body = chat("q", model, n=2, stop=stop)
        models = Models.of([team], allowed=["stream"])
        chunks = events(post(CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}}, models=models).text)
        whole = post(CHAT, body, models=models).json()
        for i, choice in enumerate(whole["choices"]):
            mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["index"] == i]
            words = [piece["delta"]["content"] for piece in mine[1:] if piece["delta"]]
            assert "".join(words) == choice["message"]["content"] == said and len(words) >= len(said) - 6
            assert [piece["finish_reason"] for piece in mine if piece["finish_reason"]] == ["stop"]
        assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_what_fails_after_the_first_piece_is_the_last_event(post: Any, stage: Any, team: Any) -> None:
    def step(i: int) -> None:
        if i == 2:
            raise UserError("out of ink")

    spoken(stage, team, "word", step)
    answer = post(CHAT, chat("q", "test/tim", stream=True))
    *chunks, last = events(answer.text)
    assert answer.status_code == 200 and "out of ink" in last["error"]["message"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "wo"


# --- logprobs ---


def test_logprobs_are_those_of_what_was_said(serve: Any, stage: Any, team: Any) -> None:
    folder = str(catalog.find("model", "tally").path)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    ids = tuple(tokenizer.encode("42", add_special_tokens=False).ids)
    known = replace(team, agents={"tim": replace(team["tim"], folder=folder)})
    stage.say[folder] = lambda request: Reply("42", ids, (-0.5, -0.25)[: len(ids)], 2, len(ids))
    served = Models.of([known])
    body = serve(lambda client: client.post(CHAT, json=chat("q", "test/tim", logprobs=True)), models=served).json()
    tokens = body["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == "42" and [token["logprob"] for token in tokens] == [-0.5, -0.25][: len(ids)]
    assert body["choices"][0]["aiflow"]["confidence"] == pytest.approx(math.exp(sum(token["logprob"] for token in tokens)))
    body = serve(lambda client: client.post(COMPLETIONS, json={"model": "test/tim", "prompt": "q", "logprobs": 1}), models=served).json()
    listed = body["choices"][0]["logprobs"]
    assert "".join(listed["tokens"]) == "42" and listed["token_logprobs"] == [-0.5, -0.25][: len(ids)] and listed["text_offset"][0] == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model": "test", "logprobs": True}, "logprobs are a member's"),
        ({"model": "test/tim", "logprobs": True}, "the tokens of test/tim are not known here"),
        ({"model": "test/tim", "logprobs": True, "top_logprobs": 3}, "top_logprobs is not served"),
    ],
)
def test_where_there_are_none_they_are_refused(post: Any, stage: Any, more: dict[str, Any], says: str) -> None:
    answer = post(CHAT, {**chat(), **more})
    assert answer.status_code == 400 and says in answer.json()["error"]["message"] and not stage.asked


def test_a_member_without_any_says_so(post: Any, team: Any) -> None:
    mute = replace(team["tim"], info=replace(team["tim"].info, capabilities=frozenset()))
    answer = post(CHAT, chat("q", "test/tim", logprobs=True), models=Models.of([replace(team, agents={"tim": mute})]))
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "test/tim gives no logprobs"


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("kind", "status", "code"), [("too-long", 400, "context_length_exceeded"), ("refused", 400, "refused"), ("failed", 502, "member_failed")]
)
def test_a_members_refusal_is_told(post: Any, stage: Any, kind: str, status: int, code: str) -> None:
    stage.say["tim"] = lambda request: CallError(kind, "no, thank you")
    answer = post(CHAT, chat())
    assert answer.status_code == status and answer.json()["error"] | {"param": None} == {
        "message": "tim: no, thank you", "type": "invalid_request_error" if status == 400 else "server_error", "param": None, "code": code,
    }  # fmt: skip


def test_of_our_own_mistakes_only_the_kind_is_told(post: Any, stage: Any) -> None:
    def tim(request: Any) -> Any:
        raise ZeroDivisionError("secret/path.py")

    stage.say["tim"] = tim
    answer = post(CHAT, chat("q", "test/tim"))
    assert answer.status_code == 500 and answer.json()["error"]["message"] == "the question failed with ZeroDivisionError"


def test_who_takes_too_long_is_given_up(serve: Any, stage: Any) -> None:
    go = threading.Event()
    stage.say["tim"] = lambda request: "late" if go.wait(30) else "never"

    async def work(client: Any) -> Any:
        answer = await client.post(CHAT, json=chat("q", "test/tim"))
        go.set()
        return answer

    answer = serve(work, limits=Limits(answer_s=0.1))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["message"] == "no answer within 0.1 seconds"


def test_clients_that_ask_together_are_answered_in_batches(serve: Any, stage: Any) -> None:
    async def work(client: Any) -> Any:
        return await asyncio.gather(*(client.post(CHAT, json=chat(f"q{i}", "test/tim")) for i in range(40)))

    answers = serve(work)
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [f"tim:q{i}" for i in range(40)]
    assert len(stage.batches) < 20
