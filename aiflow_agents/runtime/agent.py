"""An agent: a model on a node with a role. It is asked, hears what it is given, and answers with a message that stays where it is."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from aiflow_agents.errors import MemberFailed, UnmetNeed
from aiflow_agents.models.confidence import AS_IT_IS, Calibration, told
from aiflow_agents.models.protocol import GREEDY, CallError, Model, ModelInfo, Parcel, Reply, Request, Sampling, Shape, Top, Turn, Want
from aiflow_agents.net.together import gather
from aiflow_agents.runtime import drafting
from aiflow_agents.runtime.delivery import Stream, pieces
from aiflow_agents.runtime.extraction import Extract
from aiflow_agents.runtime.handover import Call
from aiflow_agents.runtime.hooks import Called
from aiflow_agents.runtime.memory import fingerprint
from aiflow_agents.runtime.scene import SCENE, stable_hash
from aiflow_agents.runtime.trace import Span
from aiflow_agents.wire.handshake import Identity, SpacesDiffer, hello, meet
from aiflow_agents.wire.message import Draft, Message, Usage, bring, standing_at

_SINGLE = struct.Struct("<f")


@dataclass(frozen=True, eq=False)
class Agent:
    """`folder` holds the model (or is the key of another backend), `node` is where it computes, `home` where questions arise."""

    name: str
    folder: str
    info: ModelInfo
    node: str
    home: str
    role: str = "member"
    prompt: str | None = None
    sampling: Sampling = GREEDY
    max_tokens: int = 32
    shape: Shape | None = None  # `costs_as`
    calibration: Calibration = AS_IT_IS
    exit: int | None = None  # of a family; None is the whole model
    keep: float | None = None  # the share of a decomposed model's parameters; None is all
    extract: Extract = str.strip  # what of its text is the answer
    model: Model | None = None  # where it is an object and not loaded by `folder`
    stop: tuple[str, ...] = ()  # what it says ends before any of these

    @cached_property
    def fingerprint(self) -> str:
        """What decides this agent's answers besides what it is asked."""
        return fingerprint(self.info)

    @cached_property
    def hello(self) -> bytes:
        """What it says of itself before it exchanges more than text: see `wire.handshake`. A folder's name is not part of it."""
        layers = self.info.shape.layers if self.exit is None else self.exit
        space = self.info.space or self.info.engine
        me = Identity(space, self.info.weights_hash, self.info.tokenizer_hash, self.info.dtype, self.info.shape.width, layers)
        return hello(me, {codec.name: bytes.fromhex(codec.fingerprint) for codec in self.info.codecs})

    def codec(self, layer: int, *, tokens: bool = True) -> str:
        """The codec that its family ships for states at the input of `layer`, float16 where it ships none.

        `tokens`: token ids may travel along, and are what the smallest codecs predict from.
        """
        fit = [codec for codec in self.info.codecs if f"hidden.{layer}" in codec.spaces and tokens >= codec.needs_tokens]
        return max(fit, key=lambda codec: codec.needs_tokens).name if fit else "float16"

    async def ask(
        self,
        question: str | Message,
        *,
        heard: Sequence[Message] = (),
        instruct: str | None = None,
        sampling: Sampling | None = None,
        sample: int = 0,
        want: Want | None = None,
        resume: Message | None = None,
        otherwise: Literal["text", "refuse"] = "refuse",
        max_tokens: int | None = None,
        begin: Message | None = None,
        top: Top | None = None,
        dialogue: bool = False,
        last: bool = False,
        sees: Message | None = None,
        features: Sequence[Message] = (),
        rate: Message | None = None,
        stream: bool = False,
    ) -> Message:
        """Ask this agent a question, with what it shall hear first. The answer is a message at this agent's node.

        `sample` tells apart several draws of the same question. `want` keeps the hidden states of the call with its message, which then travel with
        `message.as_("hidden")`; with `max_tokens` 0 that is all that is done: the layers below run, and nothing is said. From such a message, of a
        member of the same family, `resume` goes on instead of reading the question: greedily, and the question itself does not travel. Whether both
        mean the same by a state is settled by a handshake, once a session; where they do not, `otherwise` says whether the question is read as text.

        `dialogue`: what it has said itself, among `heard`, are its own turns of a conversation that goes on; else it hears itself as it hears others.
        `last`: the question comes behind what is heard. What everybody has agreed on goes as `instruct` with an empty question, and is not sent.

        `top` asks for a draft: the answer up to where this agent is not sure, and what it holds likely there. `begin`, a draft as "tokens" of a
        member with the same tokenizer, is what the answer begins with.

        A model that sees answers from the picture that lies at its node (or from `sees`, another one there), and from `features`: messages as
        "hidden" of others of its family, who kept them of their pictures with `want`. An empty question, with `max_tokens` 0, is not sent at all.
        What is said of a picture that stays at its node travels only in the forms that were released.

        `stream`: the user reads the answer while it is made. Its tokens go home one by one, as frames of their own, and the message itself only
        closes the stream (see `runtime.delivery`). It has to be what the topology answers.

        `rate`: another one's answer to this question. Nothing is generated: the message repeats it, with how likely this agent holds it to be right.

        Raises MemberFailed when the model refuses the call, or a node dies or a link is gone for good that it needs (`net.faults`; of another member
        where what that one said can never come), OverBudget where the task's budget does not reach, UnmetNeed for a message without hidden states,
        SpacesDiffer for those of another model.
        """
        scene = SCENE.get()
        asked = scene.question(question, self.home) if isinstance(question, str) else question
        if scene.meter is not None:
            scene.meter.may_ask()
            if isinstance(question, Message):
                scene.inquired(question)
        picture = self._picture(sees, features)
        if stream and (begin or top or rate):
            raise UnmetNeed(f"{self.name} cannot stream a draft or a rating: what the user reads is an answer from its first token on")
        with scene:
            request = None if resume is None else await self._from_states(asked, resume, otherwise, want)
            if resume is not None and request is not None:
                heard = (resume,)
            else:
                drafted = self._begun(begin, top, want)
                parcels = [parcel for message in features if (parcel := await self._understood(message, "refuse"))]
                brought = (begin if drafted.token_ids else None, *features, rate)
                await self._hear(asked, [*heard, *(message for message in brought if message is not None)])
                room = self.max_tokens if max_tokens is None else max_tokens
                request = replace(
                    self._request(asked, scene.before(asked), heard, instruct, sampling or self.sampling, sample, dialogue, last),
                    max_tokens=room if rate is None else 0,
                    want=want,
                    begin=drafted.token_ids,
                    top=top,
                    picture=None if picture is None else picture._seen,
                    features=tuple(parcels),
                    score="" if rate is None else self._rated(rate),
                    ended=rate is not None,
                )
            streamed = scene.told.stream(scene, self.name, self.node) if stream else None
            reply, usage, start_s = await self._replied(request, streamed)
        draft = None if begin is None and top is None else self._drafted(request, reply, None if begin is None else drafted)
        sources = [*heard, *features, *(message for message in (begin, picture, rate) if message is not None)]
        message = self._message(asked, sources, reply, usage, start_s, draft)
        if scene.meter is not None and rate is None:
            scene.answered(message, question)
        if streamed is not None:
            streamed.close(message, pieces(request, reply))
        return message

    async def rate(self, question: str | Message, drafts: Sequence[Message]) -> list[Message]:
        """How likely this agent holds each answer among these drafts to be right: a message for every different one that it has not given itself.

        Raises as `ask` does.
        """
        await SCENE.get().bring(drafts, self.node, self.name)
        here = await bring(drafts, self.node)
        with standing_at(self.node):
            own = {draft.answer for draft in here if draft.author == self.name}
            others = {draft.answer: draft for draft in reversed(here) if draft.answer and draft.answer not in own}
        return await gather(self.ask(question, rate=draft) for draft in reversed(others.values()))

    async def draft(
        self, question: str | Message, tokens: int, *, after: Message | None = None, gate: float = 0.0, want: Want | None = None,
        states: Message | None = None, odds: int = 0, sampling: Sampling | None = None, sample: int = 0,
    ) -> Message:  # fmt: skip
        """Speak on by at most `tokens` tokens, for another one to check: a draft, as tokens.

        `after`, a draft as tokens, or as words of one with another tokenizer, is what the answer begins with. Fewer are made where the next is no
        likelier than `gate`, or the answer ends.
        `want` keeps the hidden states of new positions (`Want.since`), which then travel `as_("states")`; `states` is the draft that brought those
        before them. With `tokens` 0 nothing is said, and only the layers below `want.layer` run. At a temperature, tokens are drawn from the `odds`
        likeliest and bring along what they were drawn from.

        Raises as `ask` does.
        """
        how = {"gate": gate, "want": want, "states": states, "odds": odds, "sampling": sampling, "sample": sample}
        return await drafting.draft(self, question, after=after, tokens=tokens, **how)  # type: ignore[arg-type]

    async def check(
        self, question: str | Message, claimed: Message | None = None, *, after: Message | None = None, own: bool = True, odds: int = 0,
        sampling: Sampling | None = None, sample: int = 0,
    ) -> Message:  # fmt: skip
        """Read a draft in one pass: keep the tokens that this agent would have said too, and say one of its own behind them. As tokens, for others
        to go on from.

        `after` is what was settled before, and `claimed` a draft that begins with it; None: nothing is claimed, and one token is said. That of an
        agent with another tokenizer comes `as_("words")`: it is cut into this one's own tokens, and checked greedily. Sent
        `as_("states")` it is checked from the drafter's hidden states, and the question itself does not travel. Without `own` nothing is said behind
        a draft that is kept whole. With `odds`, at a temperature, what stays is drawn from so many likeliest tokens, for a further one to check.

        Raises as `ask` does, and UnmetNeed for a model that does not verify, or a draft that does not go on from `after`.
        """
        return await drafting.check(self, question, claimed, after=after, own=own, odds=odds, sampling=sampling, sample=sample)

    def read(self, message: Message) -> Message:
        """A draft as text, that is at this agent's node or at home, where users have its tokenizer. Free: nothing moves or is computed."""
        return drafting.read(self, message)

    async def _from_states(self, asked: Message, resume: Message, otherwise: Literal["text", "refuse"], want: Want | None) -> Request | None:
        """The request that goes on from another one's hidden states, when they have come; None where text shall do instead."""
        parcel = await self._understood(resume, otherwise)
        if parcel is None:
            return None
        await SCENE.get().bring((resume,), self.node, self.name)
        return Request((Turn("user", asked._said),), self.max_tokens, exit=self.exit, keep=self.keep, want=want, parcel=parcel)

    async def _hear(self, asked: Message, others: Sequence[Message]) -> None:
        """Wait for the question, with what led to it, and for what else is heard or read."""
        scene = SCENE.get()
        led = ([asked] if asked._said else []) + ([scene.transcript()] if scene.before(asked) else [])
        await scene.bring((*led, *others), self.node, self.name)

    async def _replied(self, request: Request, stream: Stream | None = None) -> tuple[Reply, Usage, float]:
        """What the model replies, the call's own usage, and when it was asked. Raises MemberFailed."""
        scene = SCENE.get()
        start_s = scene.now()
        call = Call(self.folder, self.fingerprint, request)
        reply, usage = await scene.call(self.name, self.node, self.shape or self.info.shape, call, stream)
        if scene.called:
            scene.called(Called(self, request, reply, usage, start_s, scene.now()))
        if isinstance(reply, CallError):
            raise MemberFailed(self.name, reply.message, reply.kind)
        assert usage is not None
        return reply, usage, start_s

    def _message(
        self, asked: Message, sources: Sequence[Message], reply: Reply, usage: Usage, start_s: float, draft: tuple[Draft, float | None] | None
    ) -> Message:
        """What was replied, as a message at this agent's node; of a draft, with what `_drafted` says of it."""
        sure = _as_sent(self.calibration(math.exp(math.fsum(reply.logprobs)))) if reply.logprobs else None
        cargo, confidence = draft or (reply.parcel, sure)
        stays = next((message._stays for message in (asked, *sources) if message.node == self.node and message._stays is not None), None)
        id, parents = self._spoken(sources, reply, reply.text, start_s, confidence)
        if reply.parcel is not None:
            SCENE.get().hellos[id] = self.hello
        return Message(id, self.name, self.node, parents, usage, "text", reply.text, self.extract(reply.text), confidence, cargo, stays)

    def _spoken(self, sources: Sequence[Message], reply: Reply, new: str, start_s: float, confidence: float | None) -> tuple[str, tuple[str, ...]]:
        """The id of the message that a reply becomes, and those of what it was made from. Who follows the task is told, of the text that is `new`."""
        scene = SCENE.get()
        id, parents = scene.next_id(self.name), tuple([message.id for message in sources])
        scene.made(id, reply)
        if scene.listener:
            scene.listener(Span("call", self.name, self.node, start_s, scene.now(), id, new, heard=parents, confidence=confidence))
        return id, parents

    def _rated(self, message: Message) -> str:
        """What is rated, if this agent can: the text that has come."""
        if "score" not in self.info.capabilities:
            raise UnmetNeed(f"{self.name} cannot rate an answer: its model {self.info.name} does not say how likely a given text is")
        if not message._said:
            raise UnmetNeed(f"{self.name} cannot rate message {message.id}, which says nothing")
        return message._said

    def _picture(self, sees: Message | None, features: Sequence[Message]) -> Message | None:
        """The picture that lies at this agent's node, if its model sees."""
        if "vision" not in self.info.capabilities:
            if features or sees is not None:
                raise UnmetNeed(f"{self.name} does not see: its model {self.info.name} takes neither pictures nor their features")
            return None
        picture = SCENE.get().task.inputs.get(self.node) if sees is None else sees
        if picture is not None and (picture.node != self.node or picture._seen is None):
            raise UnmetNeed(f"{self.name} sees pictures at {self.node}; message {picture.id} is none, or at {picture.node}")
        return picture

    def _drafted(self, request: Request, reply: Reply, begin: Draft | None) -> tuple[Draft, float | None]:
        """The draft that a reply is, with the confidence in all of it: None where it began with what another one said, or with nothing."""
        before, token_ids = 0.0 if begin is None else begin.logprob, (request.begin or reply.begun) + reply.token_ids
        logprob = None if before is None or reply.logprobs is None else before + math.fsum(reply.logprobs)
        codec = request.top.codec if request.top else "float16"
        draft = Draft(token_ids, logprob, reply.next or b"", codec, tokenizer=self.info.tokenizer_hash)
        return draft, None if logprob is None or not token_ids else _as_sent(self.calibration(math.exp(logprob)))

    async def _understood(self, message: Message, otherwise: Literal["text", "refuse"]) -> Parcel | None:
        """The hidden states of a message, if they mean the same to this agent's model; None where text shall do instead."""
        parcel = message._cargo
        if message.form != "hidden" or not isinstance(parcel, Parcel):
            raise UnmetNeed(f"{self.name} cannot go on from message {message.id}, which brings no hidden states: as_('hidden') sends them along")
        return parcel if await self._met(message, parcel, otherwise) else None

    async def _met(self, message: Message, parcel: Parcel, otherwise: Literal["text", "refuse"] = "refuse") -> bool:
        """Whether hidden states of this message mean the same to this agent's model. Raises SpacesDiffer where they must."""
        scene = SCENE.get()
        theirs = scene.hellos[message.id]
        await scene.greet((message.node, theirs), (self.node, self.hello), message.author, self.name)
        found = meet(theirs, self.hello, parcel.want.layer, [parcel.want.codec, *(["lower"] if parcel.want.lower else [])])
        if "hidden" in found.forms:
            return True
        if otherwise == "text":
            return False
        raise SpacesDiffer(f"{self.name} cannot go on from hidden states of {message.author}: {'; '.join(found.reasons)}; send text instead")

    def _begun(self, begin: Message | None, top: Top | None, want: Want | None) -> Draft:
        """The draft that an answer begins with, an empty one where there is none."""
        if want is not None and (begin is not None or top is not None):
            raise UnmetNeed(f"{self.name} cannot keep hidden states of a draft: ask for one or the other")
        if begin is not None and begin.form != "tokens":
            raise UnmetNeed(f"{self.name} cannot go on from message {begin.id}, which brings no tokens: as_('tokens') sends them")
        return Draft() if begin is None else begin._draft("tokens")

    def _request(
        self, asked: Message, before: Sequence[Turn], heard: Sequence[Message], instruct: str | None, sampling: Sampling, sample: int, dialogue: bool,
        last: bool,
    ) -> Request:  # fmt: skip
        system = ([self.prompt] if self.prompt else []) + [turn.content for turn in before if turn.role == "system" and turn.content]
        turns = [Turn("system", "\n\n".join(system))] if system else []  # a template knows one, at the beginning
        turns += [turn for turn in before if turn.role != "system"]
        question = [Turn("user", asked._said)] if asked._said or not instruct else []
        turns += [] if last else question
        for message in heard:
            own = dialogue and message.author == self.name
            said = told(message._said, message._confidence) if "confidence" in self.info.capabilities and not own else message._said
            turns.append(Turn("assistant", said) if own else Turn("user", said, message.author))
        turns += question if last else []
        if instruct:
            turns.append(Turn("user", instruct))
        seed = 0
        if sampling.temperature > 0:
            scene = SCENE.get()
            seed = stable_hash(scene.seed, scene.task.id, scene.repeat, self.name, sample, turns)
        return Request(tuple(turns), self.max_tokens, sampling, seed, self.stop, exit=self.exit, keep=self.keep)

    def __str__(self) -> str:
        return f"{self.name} ({self.info.name} at {self.node})"


def _as_sent(confidence: float) -> float:
    """With the 32 bits that a frame carries, so that a confidence is the same wherever it is read."""
    return _SINGLE.unpack(_SINGLE.pack(confidence))[0]
