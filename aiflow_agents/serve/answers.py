"""From a request to its answer: choices, usage, and the same in pieces."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from os.path import commonprefix
from typing import Any

from aiflow_agents.models.protocol import Turn
from aiflow_agents.runtime.delivery import Portion
from aiflow_agents.runtime.ledger import Ledger, Spent
from aiflow_agents.runtime.live import Answered, Live
from aiflow_agents.runtime.reading import Reading
from aiflow_agents.runtime.scene import stable_hash
from aiflow_agents.serve.metrics import Metrics
from aiflow_agents.serve.refusal import Refusal, of_error
from aiflow_agents.serve.schema import Asked, ChatAsked, CompletionsAsked
from aiflow_agents.serve.served import Served
from aiflow_agents.serve.spelling import Spelling

Hear = Callable[[int, str], None]  # of which choice, and how it goes on
SPENT = tuple(field.name for field in fields(Spent))
PIECE = re.compile(r"\s*\S+\s*")  # of a streamed answer: a word


@dataclass(frozen=True)
class Said:
    """One choice of an answer."""

    text: str
    finish: str
    confidence: float | None
    logprobs: dict[str, Any] | None
    over: str | None

    @property
    def extra(self) -> dict[str, Any]:
        """What OpenAI's format has no place for."""
        return {"aiflow": {"confidence": self.confidence, "over_budget": self.over}}


async def answer(
    live: Live, served: Served, asked: ChatAsked | CompletionsAsked, spelling: Spelling, metrics: Metrics, most_s: float, hear: Hear | None = None
) -> Whole:
    """Ask for all choices of all prompts at once. Raises Refusal for the first that fails, and when `most_s` seconds are over.

    `hear` is told what can be read of a choice while it is made.
    """
    spell = spelling.of(served, isinstance(asked, ChatAsked)) if asked.wants_logprobs else None
    team = served.tailored(asked)
    seed = secrets.randbits(62) if asked.seed is None else asked.seed
    topology = served.topology if hear is None else served.streaming
    choices = [(question, before, i) for question, before in questions(asked) for i in range(asked.choices)]
    asks = [
        live.answer(
            topology, question, team=team, before=before, seed=_seed(seed, i), whole_bill=False, traced=False,
            reader=hear and _reader(Reading(team, spelling.tokenizers, asked.stop), partial(hear, at)),
        )
        for at, (question, before, i) in enumerate(choices)
    ]  # fmt: skip
    try:
        async with asyncio.timeout(most_s):
            answered = await _all(asks)
    except TimeoutError:
        raise Refusal(503, f"no answer within {most_s:g} seconds", code="timeout", retry_s=1.0) from None
    for one in answered:
        metrics.spent(one.ledger)
    failed = next((one for one in answered if one.result.error is not None), None)
    if failed is not None:
        raise of_error(failed.error or RuntimeError(failed.result.error))
    return Whole(served, asked, [said(one, asked, spell) for one in answered], usage(served, answered))


def _reader(reading: Reading, hear: Callable[[str], None]) -> Callable[[Portion], None]:
    def read(portion: Portion) -> None:
        if text := reading.add(portion):
            hear(text)

    return read


def questions(asked: ChatAsked | CompletionsAsked) -> list[tuple[str, tuple[Turn, ...]]]:
    """Each question, and the conversation that led to it."""
    if isinstance(asked, CompletionsAsked):
        return [(prompt, ()) for prompt in asked.prompt]
    *before, last = (message.turn for message in asked.messages)
    return [(last.content, tuple(before))]


def _seed(seed: int, choice: int) -> int:
    return stable_hash(seed, choice) if choice else seed


async def _all(asks: Sequence[Any]) -> list[Answered]:
    """All of them; if this is given up, so are they."""
    if len(asks) == 1:  # as most: without a task of its own
        return [await asks[0]]
    tasks = [asyncio.ensure_future(ask) for ask in asks]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def said(one: Answered, asked: Asked, spell: Any) -> Said:
    """A choice, as far as the client's stop strings let it come."""
    result, reply = one.result, one.reply
    text = result.text or ""
    ends = [at for string in asked.stop if (at := text.find(string)) >= 0]
    cut = text[: min(ends)] if ends else text
    finish = "length" if result.over or (not ends and reply is not None and reply.finish == "length") else "stop"
    return Said(cut, finish, result.confidence, spell(reply) if spell and reply is not None else None, result.over)


def usage(served: Served, answered: Sequence[Answered]) -> dict[str, Any]:
    """What all calls of all members have read and made, and under `aiflow` who, where, and what it cost."""
    where = {agent.name: agent.node for agent in served.team}
    members: dict[str, dict[str, Any]] = {}
    nodes: dict[str, dict[str, Any]] = {}
    links: dict[str, int] = {}
    for ledger in (one.ledger for one in answered):
        for name, spent in ledger.members.items():
            for split, place in ((members, name), (nodes, where.get(name, ""))):
                row = split.setdefault(place, dict.fromkeys(SPENT, 0))
                for key in SPENT:
                    row[key] += getattr(spent, key)
        for (src, dst), nbytes in ledger.links.items():
            links[f"{src}->{dst}"] = links.get(f"{src}->{dst}", 0) + nbytes
    for name, row in members.items():
        row["node"] = where.get(name, "")
    total = _sum([one.ledger for one in answered])
    return {
        "prompt_tokens": total.tokens_in,
        "completion_tokens": total.tokens_out,
        "total_tokens": total.tokens_in + total.tokens_out,
        "aiflow": {
            "calls": total.calls,
            "flops": total.flops,
            "wire_bytes": total.wire_bytes,
            "energy_j": total.energy_j,
            "radio_j": total.radio_j,
            "seconds": max(one.result.usage.latency_s for one in answered),
            "unfinished_calls": sum(one.unfinished for one in answered),
            "members": members,
            "nodes": nodes,
            "links": links,
        },
    }


def _sum(ledgers: Sequence[Ledger]) -> Ledger:
    total = Ledger()
    for name in ("flops", "tokens_in", "tokens_out", "calls", "wire_bytes", "energy_j", "radio_j"):
        setattr(total, name, sum(getattr(ledger, name) for ledger in ledgers))
    return total


@dataclass(frozen=True)
class Whole:
    """The whole answer to one request."""

    served: Served
    asked: ChatAsked | CompletionsAsked
    choices: list[Said]
    usage: dict[str, Any]

    @property
    def chat(self) -> bool:
        return isinstance(self.asked, ChatAsked)

    def body(self) -> dict[str, Any]:
        """At once."""
        choices: list[dict[str, Any]] = []
        for i, one in enumerate(self.choices):
            words: dict[str, Any] = {"message": {"role": "assistant", "content": one.text, "refusal": None}} if self.chat else {"text": one.text}
            choices.append({"index": i, **words, "logprobs": one.logprobs, "finish_reason": one.finish, **one.extra})
        return {**_head(self.served, self.asked, streamed=False), "choices": choices, "usage": self.usage}



class Pieces:
    """An answer in pieces, as server-sent events: deltas while it is made, where its topology streams; the rest, word by word, when it is known."""

    def __init__(self, served: Served, asked: ChatAsked | CompletionsAsked):
        self.asked, self.head = asked, _head(served, asked, streamed=True)
        self.chat = isinstance(asked, ChatAsked)
        options = asked.stream_options
        self.usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
        self.sent: dict[int, str] = {}  # by choice, the text so far

    def delta(self, i: int, text: str) -> Iterator[str]:
        """So much more of choice `i`."""
        if i not in self.sent:
            self.sent[i] = ""
            if self.chat:
                yield self._event([{"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}])
        if text:
            self.sent[i] += text
            words: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
            yield self._event([{"index": i, **words, "logprobs": None, "finish_reason": None}])

    def rest(self, whole: Whole) -> Iterator[str]:
        """The answer is known."""
        for i, one in enumerate(whole.choices):
            text = one.text[len(commonprefix((self.sent.get(i, ""), one.text))) :]
            for piece in PIECE.findall(text) or [text]:
                yield from self.delta(i, piece)
            last: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
            yield self._event([{"index": i, **last, "logprobs": one.logprobs, "finish_reason": one.finish, **one.extra}])
        if self.usage:
            yield self._event([], usage=whole.usage)
        yield "data: [DONE]\n\n"

    def failed(self, refusal: Refusal) -> Iterator[str]:
        """There will be no more of it."""
        yield f"data: {json.dumps(refusal.body, separators=(',', ':'))}\n\n"
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**self.head, 'choices': choices, **self.usage, **more}, separators=(',', ':'))}\n\n"


def _head(served: Served, asked: ChatAsked | CompletionsAsked, *, streamed: bool) -> dict[str, Any]:
    chat = isinstance(asked, ChatAsked)
    kind = ("chat.completion.chunk" if streamed else "chat.completion") if chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": asked.model,
        "system_fingerprint": served.fingerprint,
    }
