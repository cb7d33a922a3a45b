"""How agents draft and check: one speaks on by a few tokens, another one reads them in one pass and says how many it would have said too.

    drafter  --tokens, and as asked for: what they were drawn from, hidden states--> checker
             <--the tokens that stay, and one of its own--

Both ways only what is new travels (`Message.as_("tokens", since=n)`); that a receiver has what was before is the topology's to know.

Between tokenizers text travels (`as_("words", since=n)`), of which each side makes tokens of its own; what an agent has settled itself it never cuts
anew. Text of a draft is told as far as no later token can change it: not half a character, nor what may become a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import HALF, Parcel, Reply, Request, Sampling, Top, Want
from aiflow_agents.runtime.scene import SCENE, stable_hash
from aiflow_agents.wire.message import Draft, Message
from aiflow_agents.wire.odds import count, joined, last

if TYPE_CHECKING:
    from aiflow_agents.runtime.agent import Agent

NOTHING = Draft(logprob=0.0)


async def draft(
    agent: Agent, question: str | Message, *, after: Message | None, tokens: int, gate: float, want: Want | None, states: Message | None, odds: int,
    sampling: Sampling | None, sample: int,
) -> Message:  # fmt: skip
    """See `Agent.draft`."""
    scene = SCENE.get()
    asked = scene.question(question, agent.home) if isinstance(question, str) else question
    with scene:
        so_far = _tokens(agent, after)
        await scene.bring([*_asked(asked), *([] if after is None else [after])], agent.node, agent.name)
        request = _request(agent, asked, so_far, sampling, sample)
        settled = len(request.begin)
        room = max(min(settled + tokens, agent.max_tokens), settled)
        request = replace(request, max_tokens=room, want=want, odds=odds if request.sampling.temperature > 0 else 0)
        if gate:
            request = replace(request, top=Top(1, gate))
        message, reply = await _said(agent, request, so_far, () if after is None else (after,))
    drafted, new = message._draft("tokens"), len(reply.token_ids)
    full = reply.finish != "stop" and (settled + new >= agent.max_tokens or reply.finish == "length" and settled + new < room)  # or the context is
    parcel = reply.parcel
    if parcel is not None:
        before = None if states is None else states._draft("states").states
        parcel = parcel._replace(before=before if isinstance(before, Parcel) else None)
        scene.hellos[message.id] = agent.hello
    scene.ledger.spent(agent.name).drafted += reply.tokens_out
    ended = full or reply.finish == "stop"
    return _as_draft(message, replace(drafted, ended=ended, full=full, states=parcel, odds=_told(so_far, request, reply)), agent)


async def check(
    agent: Agent, question: str | Message, claimed: Message | None, *, after: Message | None, own: bool, odds: int, sampling: Sampling | None,
    sample: int,
) -> Message:  # fmt: skip
    """See `Agent.check`."""
    scene = SCENE.get()
    asked = scene.question(question, agent.home) if isinstance(question, str) else question
    if "verify" not in agent.info.capabilities:
        raise UnmetNeed(f"{agent.name} cannot check a draft: its model {agent.info.name} does not verify tokens")
    with scene:
        so_far, draft = _tokens(agent, after), NOTHING if claimed is None else _readable(agent, claimed)
        spelled = draft.words or so_far.words
        goes_on = draft.said.startswith(so_far.said) if spelled else draft.token_ids[: len(so_far.token_ids)] == so_far.token_ids
        if claimed is not None and (draft.token_ids or draft.words) and not goes_on:
            raise UnmetNeed(f"{agent.name} cannot check message {claimed.id if claimed else ''}, which does not go on from what is settled")
        sources = [message for message in (after, claimed) if message is not None]
        await scene.bring(([] if claimed is not None and claimed.form == "states" else _asked(asked)) + sources, agent.node, agent.name)
        states = await _states(agent, claimed)
        request = _request(agent, asked, so_far, sampling, sample)
        tokens = draft.token_ids[len(so_far.token_ids) :]
        room = len(so_far.token_ids) + len(tokens) + own
        if spelled and request.sampling.temperature > 0:
            raise UnmetNeed(f"{agent.name} draws at a temperature, and cannot check words: what they were drawn from is another tokenizer's")
        if spelled:
            request = replace(request, check_text=(so_far if claimed is None else draft).said, ended=draft.ended)
        else:
            request = replace(request, check=tokens, parcel=states, max_tokens=min(request.max_tokens, room))
        if request.sampling.temperature > 0:
            if count(draft.odds) < len(tokens):
                raise UnmetNeed(f"{agent.name} draws at a temperature, and cannot check tokens without what they were drawn from: draft(odds=k)")
            request = replace(request, seed=stable_hash(request.seed, tokens), odds=odds, odds_told=last(draft.odds, len(tokens)))
        message, reply = await _said(agent, request, so_far, tuple(sources))
    spent = scene.ledger.spent(agent.name)
    spent.checked, spent.kept = spent.checked + len(tokens or reply.checked), spent.kept + reply.kept
    said = message._draft("tokens")
    cut = reply.finish == "length" and (request.check_text is not None or len(said.token_ids) < room)  # the context is full
    full = reply.finish != "stop" and (len(said.token_ids) >= agent.max_tokens or cut)
    ended = full or reply.finish == "stop"
    return _as_draft(message, replace(said, ended=ended, full=full, odds=_told(so_far, request, reply)), agent)


def read(agent: Agent, message: Message) -> Message:
    """See `Agent.read`."""
    if message.node not in (agent.node, agent.home):
        raise UnmetNeed(f"{agent.name} is at {agent.node} and cannot read message {message.id}, which is at {message.node}")
    draft = message._draft("tokens")
    text = draft.said if draft.words else draft.text
    return replace(message, form="text", _text=text, _answer=agent.extract(text))


def _asked(asked: Message) -> list[Message]:
    """The question, with what led to it."""
    scene = SCENE.get()
    return [asked, scene.transcript()] if scene.before(asked) else [asked]


def _as_draft(message: Message, draft: Draft, agent: Agent) -> Message:
    """As tokens; how sure its author is travels when the answer is whole."""
    draft = replace(draft, sure=len(steady(draft.text, agent.stop)))
    return replace(message, form="tokens", _cargo=draft, _confidence=message._confidence if draft.ended else None)


def steady(text: str, stop: Sequence[str]) -> str:
    """What stays of a text whatever follows: without a character of which some bytes are missing, and without what may become a stop string."""
    text = text.rstrip(HALF)
    begun = [n for string in stop for n in range(1, len(string)) if text.endswith(string[:n])]
    return text[: len(text) - max(begun, default=0)]


def _told(so_far: Draft, request: Request, reply: Reply) -> bytes:
    """What the last tokens were drawn from, these with those before them."""
    return joined(so_far.odds, reply.next) if request.odds and reply.token_ids and reply.next else b""


def _tokens(agent: Agent, after: Message | None) -> Draft:
    """What is settled, or drafted, before."""
    if after is None:
        return NOTHING
    if after.form not in ("tokens", "states", "words"):
        raise UnmetNeed(f"{agent.name} cannot go on from message {after.id}, which brings no tokens: as_('tokens') sends them")
    return _readable(agent, after)


def _readable(agent: Agent, message: Message) -> Draft:
    """A draft, if this agent can read it: its words, or tokens of its own tokenizer."""
    draft = message._draft("tokens")
    if draft.token_ids and draft.tokenizer not in ("", agent.info.tokenizer_hash):
        raise UnmetNeed(f"{agent.name} cannot read message {message.id}, which brings tokens of another tokenizer: as_('words') sends what they say")
    return draft


def _request(agent: Agent, asked: Message, so_far: Draft, sampling: Sampling | None, sample: int) -> Request:
    """The request that goes on from these tokens. Its seed depends on them: no place is drawn twice with the same numbers."""
    request = agent._request(asked, SCENE.get().before(asked), (), None, sampling or agent.sampling, sample, False, False)
    if request.sampling.temperature > 0:
        request = replace(request, seed=stable_hash(request.seed, so_far.said if so_far.words else so_far.token_ids))
    return replace(request, begin=so_far.token_ids, begin_text=so_far.said if so_far.words or so_far.told else "")


async def _states(agent: Agent, claimed: Message | None) -> Parcel | None:
    """The hidden states that came with a draft, which must mean the same to this agent. Raises SpacesDiffer, and UnmetNeed where some are missing."""
    if claimed is None or claimed.form != "states":
        return None
    parcel = claimed._draft("states").states
    assert isinstance(parcel, Parcel)
    await agent._met(claimed, parcel)
    here = SCENE.get().states.get(agent.node, set())
    if any(part.digest not in here for part in parcel.chain[:-1]):
        raise UnmetNeed(f"{agent.name} cannot check message {claimed.id}: hidden states of tokens before it have never come to {agent.node}")
    return parcel


async def _said(agent: Agent, request: Request, so_far: Draft, sources: tuple[Message, ...]) -> tuple[Message, Reply]:
    """What the model replies, as a message with the draft so far. Raises MemberFailed."""
    reply, usage, start_s = await agent._replied(request)
    cargo, confidence = agent._drafted(request, reply, so_far)
    cargo = replace(cargo, coded=b"", text=reply.text, told=so_far.words or so_far.told)
    new = reply.text.removeprefix(so_far.said if so_far.words else so_far.text)
    id, parents = agent._spoken(sources, reply, new, start_s, confidence)
    return Message(id, agent.name, agent.node, parents, usage, "tokens", reply.text, agent.extract(reply.text), confidence, cargo), reply
