"""How agents draft and check: one speaks on by a few tokens, another one reads them in one pass and says how many it would have said too.

    drafter  --tokens, and as asked for: what they were drawn from, hidden states--> checker
             <--the tokens that stay, and one of its own--

Both ways only what is new travels (`Message.as_("tokens", since=n)`); that a receiver has what was before is the topology's to know.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from aiflow_agents.errors import MemberFailed, UnmetNeed
from aiflow_agents.models.protocol import CallError, Parcel, Reply, Request, Sampling, Top, Want
from aiflow_agents.runtime.handover import Call
from aiflow_agents.runtime.hooks import Called
from aiflow_agents.runtime.scene import SCENE, stable_hash
from aiflow_agents.runtime.trace import Span
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
        room = max(min(len(so_far.token_ids) + tokens, agent.max_tokens), len(so_far.token_ids))
        request = replace(request, max_tokens=room, want=want, odds=odds if request.sampling.temperature > 0 else 0)
        if gate:
            request = replace(request, top=Top(1, gate))
        message, reply = await _said(agent, request, so_far, () if after is None else (after,))
    drafted = message._draft("tokens")
    cut = reply.finish == "length" and len(drafted.token_ids) < room  # the context is full
    ended = reply.finish == "stop" or len(drafted.token_ids) >= agent.max_tokens or cut
    parcel = reply.parcel
    if parcel is not None:
        before = None if states is None else states._draft("states").states
        parcel = parcel._replace(before=before if isinstance(before, Parcel) else None)
        scene.hellos[message.id] = agent.hello
    scene.ledger.spent(agent.name).drafted += reply.tokens_out
    return _as_draft(message, replace(drafted, ended=ended, states=parcel, odds=_told(so_far, request, reply)))


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
        so_far, draft = _tokens(agent, after), NOTHING if claimed is None else claimed._draft("tokens")
        if draft.token_ids and draft.token_ids[: len(so_far.token_ids)] != so_far.token_ids:
            raise UnmetNeed(f"{agent.name} cannot check message {claimed.id if claimed else ''}, which does not go on from what is settled")
        sources = [message for message in (after, claimed) if message is not None]
        await scene.bring(([] if claimed is not None and claimed.form == "states" else _asked(asked)) + sources, agent.node, agent.name)
        states = await _states(agent, claimed)
        request = _request(agent, asked, so_far, sampling, sample)
        tokens = draft.token_ids[len(so_far.token_ids) :]
        room = len(so_far.token_ids) + len(tokens) + own
        request = replace(request, check=tokens, parcel=states, max_tokens=min(request.max_tokens, room))
        if request.sampling.temperature > 0:
            if count(draft.odds) < len(tokens):
                raise UnmetNeed(f"{agent.name} draws at a temperature, and cannot check tokens without what they were drawn from: draft(odds=k)")
            request = replace(request, seed=stable_hash(request.seed, tokens), odds=odds, odds_told=last(draft.odds, len(tokens)))
        message, reply = await _said(agent, request, so_far, tuple(sources))
    spent = scene.ledger.spent(agent.name)
    spent.checked, spent.kept = spent.checked + len(tokens), spent.kept + reply.kept
    said = message._draft("tokens")
    full = reply.finish == "length" and len(said.token_ids) < room  # the context is
    ended = reply.finish == "stop" or len(said.token_ids) >= agent.max_tokens or full
    return _as_draft(message, replace(said, ended=ended, odds=_told(so_far, request, reply)))


def read(agent: Agent, message: Message) -> Message:
    """See `Agent.read`."""
    if message.node not in (agent.node, agent.home):
        raise UnmetNeed(f"{agent.name} is at {agent.node} and cannot read message {message.id}, which is at {message.node}")
    draft = message._draft("tokens")
    return replace(message, form="text", _text=draft.text, _answer=agent.extract(draft.text))


def _asked(asked: Message) -> list[Message]:
    """The question, with what led to it."""
    scene = SCENE.get()
    return [asked, scene.transcript()] if scene.before(asked) else [asked]


def _as_draft(message: Message, draft: Draft) -> Message:
    """As tokens; how sure its author is travels when the answer is whole."""
    return replace(message, form="tokens", _cargo=draft, _confidence=message._confidence if draft.ended else None)


def _told(so_far: Draft, request: Request, reply: Reply) -> bytes:
    """What the last tokens were drawn from, these with those before them."""
    return joined(so_far.odds, reply.next) if request.odds and reply.token_ids and reply.next else b""


def _tokens(agent: Agent, after: Message | None) -> Draft:
    """What is settled, or drafted, before."""
    if after is None:
        return NOTHING
    if after.form not in ("tokens", "states"):
        raise UnmetNeed(f"{agent.name} cannot go on from message {after.id}, which brings no tokens: as_('tokens') sends them")
    return after._draft("tokens")


def _request(agent: Agent, asked: Message, so_far: Draft, sampling: Sampling | None, sample: int) -> Request:
    """The request that goes on from these tokens. Its seed depends on them: no place is drawn twice with the same numbers."""
    request = agent._request(asked, SCENE.get().before(asked), (), None, sampling or agent.sampling, sample, False, False)
    if request.sampling.temperature > 0:
        request = replace(request, seed=stable_hash(request.seed, so_far.token_ids))
    return replace(request, begin=so_far.token_ids)


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
    scene = SCENE.get()
    start_s = scene.now()
    reply, usage = await scene.call(agent.name, agent.node, agent.shape or agent.info.shape, Call(agent.folder, agent.fingerprint, request))
    if scene.called:
        scene.called(Called(agent, request, reply, usage, start_s, scene.now()))
    if isinstance(reply, CallError):
        raise MemberFailed(agent.name, reply.message, reply.kind)
    assert usage is not None
    cargo, confidence = agent._drafted(request, reply, so_far)
    cargo = replace(cargo, coded=b"", text=reply.text)
    id, parents = scene.next_id(agent.name), tuple([message.id for message in sources])
    scene.made(id, reply)
    if scene.listener:
        new = reply.text.removeprefix(so_far.text)
        scene.listener(Span("call", agent.name, agent.node, start_s, scene.now(), id, new, heard=parents, confidence=confidence))
    return Message(id, agent.name, agent.node, parents, usage, "tokens", reply.text, agent.extract(reply.text), confidence, cargo), reply

