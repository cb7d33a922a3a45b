"""A model folder as a `Model`: turns in, text out, by our own decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.chat import Chat
from aiflow_agents.models.family.info import end_ids, model_info
from aiflow_agents.models.family.rank import Keep, spend
from aiflow_agents.models.protocol import CallError, ModelInfo, Parcel, Pass, Reply, Request, Told, Want, telling

if TYPE_CHECKING:
    from aiflow_agents.models.family.courier import Courier
    from aiflow_agents.models.family.engine import Engine, Generated, Stop
    from aiflow_agents.models.family.resume import Start
    from aiflow_agents.models.family.verify import Claim, Verdict
    from aiflow_agents.models.family.vision import Eyes


class FamilyModel:
    """Answers requests with a checkpoint in the Hugging Face layout (Llama, Qwen2 or Qwen3)."""

    streams = True

    def __init__(self, info: ModelInfo, chat: Chat, engine: Engine, courier: Courier, eyes: Eyes | None = None):
        self.info, self.chat, self.engine, self.courier, self.eyes = info, chat, engine, courier, eyes
        self._sizes: dict[float, FamilyModel] = {}

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "float32", stable: bool = True, keep: Keep = 1.0) -> FamilyModel:
        """Load a model folder, a decomposed one at the size `keep`. Raises `UserError` by name.

        `stable` keeps greedy answers independent of what else is in the batch.
        """
        info, chat = model_info(path, dtype=dtype, keep=keep), Chat(path)
        import torch

        from aiflow_agents.models.family.courier import Courier
        from aiflow_agents.models.family.decoder import Decoder
        from aiflow_agents.models.family.engine import Engine

        decoder = Decoder.load(path, getattr(torch, dtype), keep)
        ends = end_ids(path)
        if chat.vocab > info.shape.vocab:
            raise UserError(
                f"model folder {path}: its tokenizer knows {chat.vocab} tokens, the model {info.shape.vocab}; they do not belong together"
            )
        engine, eyes = Engine(decoder, ends, ends[0] if ends else 0, stable=stable), None
        if decoder.config.vision:
            from aiflow_agents.models.family.vision import Eyes

            eyes = Eyes.load(path, engine)
        return cls(info, chat, engine, Courier(Path(path), info.codecs), eyes)

    def sized(self, keep: float | None) -> FamilyModel:
        """This model with a share of its parameters, spread over layers by their spectra; loaded once. Raises `UserError` where it has one size."""
        if keep is None:
            return self
        if keep not in self._sizes:
            folder = self.courier.folder
            self._sizes[keep] = FamilyModel.load(folder, dtype=self.info.dtype, stable=self.engine.stable, keep=spend(folder, keep))
        return self._sizes[keep]

    def generate(self, requests: Sequence[Request], told: Told | None = None) -> list[Reply | CallError]:
        """Answer each request; one that cannot be answered gives a `CallError` in its place. Equal requests are computed once.

        `told` hears the tokens of answers that begin with their prompts.
        """
        return self.exchange(requests, {}, told)[0]

    def exchange(
        self, requests: Sequence[Request], parcels: Mapping[str, bytes], told: Told | None = None
    ) -> tuple[list[Reply | CallError], dict[str, bytes]]:
        """As `generate`, with the coded hidden states that requests go on from, by digest; gives those that requests want, by digest, too."""
        asked, requests = requests, [self._in_tokens(request) for request in requests]
        replies: list[Reply | CallError | None] = [None] * len(requests)
        packed: dict[str, bytes] = {}
        groups: dict[tuple[float | None, int | None, str], list[int]] = {}
        for i, request in enumerate(requests):
            if self.eyes is None and (request.picture or request.features):
                replies[i] = CallError("refused", f"{self.info.name} does not see: it takes neither pictures nor their features")
            else:
                how = "check" if request.check is not None else "score" if request.score else "resume" if request.parcel is not None else "read"
                groups.setdefault((request.keep, request.exit, how), []).append(i)
        for (keep, exit, how), places in groups.items():
            some, model = [requests[i] for i in places], self.sized(keep)
            if how == "score":
                made = model._score(some, exit)
            elif how == "check":
                made = model._check(some, exit, parcels)
            elif model.eyes is not None:
                from aiflow_agents.models.family.sight import see

                made = see(model, model.eyes, some, parcels, packed)
            elif how == "resume":
                made = model._resume(some, exit, parcels, packed)
            else:
                made = model._read(some, exit, packed, told and telling(told, places))
            for i, reply in zip(places, made, strict=True):
                replies[i] = reply if asked[i] is requests[i] else _as_cut(asked[i], requests[i], reply)
        return replies, packed  # type: ignore[return-value]

    def _in_tokens(self, request: Request) -> Request:
        """The same request where an answer began, or was drafted, as text."""
        if request.begin_text and not request.begin:
            begin = tuple(self.chat.ids(request.begin_text))
            request = replace(request, begin=begin, max_tokens=request.max_tokens + len(begin))
        if request.check_text is not None:
            spelled, room = self._text(request, ()), max(request.max_tokens - len(request.begin), 0)
            end = end_ids(self.courier.folder)[:1] if request.ended and request.check_text.startswith(spelled) else ()
            request = replace(request, check=(*self.chat.behind(request.begin, spelled, request.check_text), *end)[:room])
        return request

    def _read(
        self, requests: Sequence[Request], exit: int | None, packed: dict[str, bytes], told: Told | None
    ) -> list[Reply | CallError]:
        """Answer requests that begin with their prompts, at one exit."""
        prompts: dict[Any, list[int] | CallError] = {}
        asked: dict[Any, int] = {}  # what decides an answer -> its place in the batch
        batch: list[tuple[list[int], Request]] = []
        places: list[int | Reply | CallError] = []
        for request in requests:
            if request.messages not in prompts:
                prompts[request.messages] = self._prompt(request)
            prompt = prompts[request.messages]
            if request.want and request.want.steps and not isinstance(prompt, CallError):
                prompt = self._room(prompt, request, request.want)
            if isinstance(prompt, CallError):
                places.append(prompt)
                continue
            if request.begin and not request.want and (over := self._over(len(prompt), request)):
                places.append(Reply(self._text(request, ()), (), (), len(prompt), 0, over, ()))
                continue
            greedy = request.sampling.temperature <= 0
            how = (None, None) if greedy else (request.sampling, request.seed)
            begun = request.begin, request.begin_text
            key = (tuple(prompt), request.max_tokens, request.stop, request.want, begun, request.top, request.odds, *how)
            if key not in asked:
                asked[key] = len(batch)
                batch.append((prompt, request))
            places.append(asked[key])
        sharing: dict[int, list[int]] = {}
        for i, place in enumerate(places):
            if isinstance(place, int):
                sharing.setdefault(place, []).append(i)

        def tell(row: int, at: int, token: int) -> None:
            for i in sharing[row]:
                told(i, at, (token,), "")  # type: ignore[misc]

        made = self.engine.generate(
            [[*prompt, *request.begin] for prompt, request in batch],
            max_tokens=[request.max_tokens - len(request.begin) for _, request in batch],
            temperature=[max(request.sampling.temperature, 0.0) for _, request in batch],
            top_p=[request.sampling.top_p for _, request in batch],
            seeds=[request.seed for _, request in batch],
            stops=[self._stopper(request) for _, request in batch],
            gates=[request.top.gate if request.top else 0.0 for _, request in batch],
            odds=[request.odds for _, request in batch],
            exit=exit,
            told=tell if told else None,
        )
        replies = [self._reply(prompt, request, one) for (prompt, request), one in zip(batch, made, strict=True)]
        self._keep(batch, replies, packed)
        return [replies[place] if isinstance(place, int) else place for place in places]

    def _score(self, requests: Sequence[Request], exit: int | None) -> list[Reply | CallError]:
        """How likely given texts are behind their prompts, at one exit."""
        from aiflow_agents.models.family.likelihood import likelihood

        if self.eyes is not None:
            return [CallError("refused", f"{self.info.name} sees, and does not say how likely a given text is")] * len(requests)
        end = end_ids(self.courier.folder)[:1]
        prompts = [self._prompt(request) for request in requests]
        texts = [[*self.chat.ids(request.score), *(end if request.ended else ())] for request in requests]
        replies: list[Reply | CallError] = []
        batch: list[tuple[list[int], list[int]]] = []
        for prompt, text, request in zip(prompts, texts, requests, strict=True):
            if isinstance(prompt, CallError):
                replies.append(prompt)
            elif len(prompt) + len(text) > self.info.max_context:
                replies.append(CallError("too-long", f"{len(prompt)} tokens and a text of {len(text)}; the context is {self.info.max_context}"))
            else:
                read = len(text) - (request.ended and bool(end))  # the end is only predicted
                replies.append(Reply(request.score, tuple(text), None, len(prompt) + read, 0))
                batch.append((prompt, text))
        found = iter(likelihood(self.engine.decoder, *zip(*batch, strict=True), exit) if batch else ())
        return [replace(reply, logprobs=next(found)) if isinstance(reply, Reply) else reply for reply in replies]

    def _check(self, requests: Sequence[Request], exit: int | None, parcels: Mapping[str, bytes]) -> list[Reply | CallError]:
        """Verify drafted tokens, at one exit, alone or with a shallower one's hidden states."""
        from aiflow_agents.models.family.verify import Claim, verify
        from aiflow_agents.wire.frame import FrameError
        from aiflow_agents.wire.payload import PayloadError

        if self.eyes is not None:
            return [CallError("refused", f"{self.info.name} sees, and does not check what another one has drafted")] * len(requests)
        path = self.engine.decoder.config.path(exit)
        replies: list[Reply | CallError] = []
        claims: list[tuple[Request, Claim, int]] = []
        for request in requests:
            start = None if request.parcel is None else self.courier.joined(parcels, request.parcel)
            prompt = self._prompt(request) if start is None else [0] * start.prompt
            tokens, begin = request.check or (), request.begin
            if isinstance(prompt, CallError):
                replies.append(prompt)
                continue
            room = min(request.max_tokens, self.info.max_context - len(prompt)) - len(begin)
            known = len(prompt) + len(begin)
            wrong = ""
            if start is not None and not known <= len(start.hidden) <= known + len(tokens):
                wrong = f"hidden states of {len(start.hidden)} positions; {known} are known"
            elif start is not None and start.layer >= len(path):
                wrong = f"exit {exit} has no input of layer {start.layer}: it leaves the backbone before"
            elif request.sampling.temperature > 0 and tokens and not request.odds_told:
                wrong = "a draft that is checked at a temperature brings the odds of its tokens along"
            odds = None
            if request.sampling.temperature > 0 and request.odds_told and not wrong:
                try:
                    odds = self.courier.odds(request.odds_told, len(tokens), self.info.shape.vocab)
                except (FrameError, PayloadError) as error:
                    wrong = str(error)
            if wrong:
                replies.append(CallError("refused", f"{self.info.name}: {wrong}"))
            elif room <= 0 or (begin and begin[-1] in self.engine.eos_ids):
                replies.append(Reply(self._text(request, ()), (), (), len(prompt), 0, "length" if room <= 0 else "stop", ()))
            else:
                heat = max(request.sampling.temperature, 0.0)
                hidden, layer = (None, 0) if start is None else (start.hidden, start.layer)
                how = heat, request.sampling.top_p, request.seed, odds, request.odds, self._stopper(request)
                claims.append((request, Claim((*prompt, *begin), tokens[:room], room, layer, hidden, *how), len(prompt)))
                replies.append(Reply("", (), (), len(prompt), 0, "checked"))
        found = verify(self.engine.decoder, [claim for _, claim, _ in claims], self.engine.eos_ids, exit) if claims else []
        made = iter([self._verdict(*claim, verdict, len(path)) for claim, verdict in zip(claims, found, strict=True)])
        return [next(made) if isinstance(reply, Reply) and reply.finish == "checked" else reply for reply in replies]

    def _verdict(self, request: Request, claim: Claim, prompt: int, verdict: Verdict, blocks: int) -> Reply:
        """`work` is one pass over all positions: who has kept some of their keys and values from an earlier call reads only the others."""
        run = Pass((blocks - claim.layer) / blocks, claim.fed, 0, claim.fed - len(claim.known) + 1)
        text, said = self._text(request, verdict.token_ids), verdict.token_ids
        told = None if verdict.odds is None else self.courier.told(verdict.odds, self.info.shape.vocab)
        return Reply(text, said, verdict.logprobs, prompt, len(said), verdict.finish, (run,), next=told, kept=verdict.kept)

    def _keep(self, batch: Sequence[tuple[list[int], Request]], replies: list[Reply], packed: dict[str, bytes]) -> None:
        """Put the hidden states that were wanted beside the replies. The last token of an answer was never fed, so it has none."""
        from aiflow_agents.models.family.resume import Start, hidden_states, think

        wanted: dict[tuple[int, bool, int], list[int]] = {}
        for i, (_, request) in enumerate(batch):
            if request.want is not None:
                wanted.setdefault((request.want.layer, request.want.lower, request.want.steps), []).append(i)
        for (layer, lower, steps), places in wanted.items():
            said = [self._fed(*batch[i], replies[i]) for i in places]
            if steps:
                states = think(self.engine, said, layer, steps, batch[places[0]][1].exit)
            else:
                states = hidden_states(self.engine.decoder, said, layer, lower=lower)
            for i, ids, (hidden, kv) in zip(places, said, states, strict=True):
                want = batch[i][1].want
                tokens = None if lower and not (want and self.courier.codec(want.codec).needs_tokens) else ids
                start = Start(layer, hidden, len(batch[i][0]) + steps, replies[i].token_ids, tokens, kv)
                if want and want.since is not None:  # of a draft: its tokens travel as such
                    first = len(batch[i][0]) + want.since if want.since >= 0 else 0
                    start = Start(layer, hidden[first:], len(batch[i][0]), (*batch[i][1].begin, *replies[i].token_ids), None, None, first)
                parcel = self._pack(start, want, packed)
                work: tuple[Pass, ...] | None = None
                if not replies[i].token_ids and not batch[i][1].begin:  # nothing was to be said, so only the layers below were run
                    work = (Pass(layer / len(self.engine.decoder.config.path(batch[i][1].exit)), len(ids), 0, 0),)
                if steps:
                    work = (Pass(1.0, len(ids), 0, 0), *(Pass(1.0, 1, len(ids) + t, 0) for t in range(steps)))
                replies[i] = replace(replies[i], parcel=parcel, work=work)

    def _resume(
        self, requests: Sequence[Request], exit: int | None, parcels: Mapping[str, bytes], packed: dict[str, bytes]
    ) -> list[Reply | CallError]:
        """Answer requests that go on from another one's hidden states, at one exit."""
        from aiflow_agents.models.family.resume import resume

        starts = [self.courier.unpack(parcels[request.parcel.digest], request.parcel) for request in requests if request.parcel]
        further = [None if request.want is None else request.want.layer for request in requests]
        found = resume(self.engine, starts, exit=exit, max_tokens=[request.max_tokens for request in requests], onward=further)
        replies: list[Reply | CallError] = []
        for request, one in zip(requests, found, strict=True):
            parcel = None if one.onward is None else self._pack(one.onward, request.want, packed)
            made = one.made
            text = self.chat.text(made.token_ids)
            replies.append(Reply(text, made.token_ids, made.logprobs, 0, len(made.token_ids), made.finish, tuple(one.work), parcel))
        return replies

    def _fed(self, prompt: list[int], request: Request, reply: Reply) -> tuple[int, ...]:
        """What was read: the last token of what was generated was not."""
        return (*prompt, *request.begin, *reply.token_ids[:-1])

    def _pack(self, start: Start, want: Want | None, packed: dict[str, bytes]) -> Parcel:
        assert want is not None
        coded = self.courier.pack(start, want)
        digest = hashlib.sha256(coded).hexdigest()
        packed[digest] = coded
        return Parcel(digest, len(coded), self.info.weights_hash, want, start.prompt, start.draft)

    def _prompt(self, request: Request) -> list[int] | CallError:
        try:
            prompt = self.chat.prompt(request.messages)
        except jinja2.TemplateError as error:
            return CallError("refused", f"{self.info.name}: its chat template refuses this conversation: {error}")
        if not prompt:
            return CallError("refused", f"{self.info.name}: the conversation is empty")
        if len(prompt) >= self.info.max_context:
            return CallError("too-long", f"the prompt has {len(prompt)} tokens, its context is {self.info.max_context}")
        return prompt

    def _room(self, prompt: list[int], request: Request, want: Want) -> list[int] | CallError:
        """The prompt, if so many latent steps can follow it."""
        if want.layer and not want.lower:
            return CallError("refused", f"{self.info.name}: latent steps have no tokens that could be read again: want lower=True")
        if request.max_tokens:
            return CallError("refused", f"{self.info.name}: who takes latent steps says nothing: max_tokens=0")
        if want.layer >= len(self.engine.decoder.config.path(request.exit)):
            return CallError("refused", f"{self.info.name}: exit {request.exit} has no input of layer {want.layer}: it leaves the backbone before")
        if len(prompt) + want.steps >= self.info.max_context:
            return CallError("too-long", f"{len(prompt)} tokens and {want.steps} latent steps; the context is {self.info.max_context}")
        return prompt

    def _over(self, prompt: int, request: Request) -> str:
        """Why nothing can follow what an answer begins with; empty where it goes on."""
        if request.begin[-1] in self.engine.eos_ids:
            return "stop"
        return "length" if len(request.begin) >= request.max_tokens or prompt + len(request.begin) >= self.info.max_context else ""

    def _stopper(self, request: Request) -> Stop | None:
        """Says after each token whether a stop string has appeared. Looks at the end of the text only; a token may be as little as one byte."""
        if not request.stop:
            return None
        tail = 4 * max(len(string) for string in request.stop) + 8

        def stopped(tokens: Sequence[int]) -> bool:
            text = self.chat.text([*request.begin, *tokens][-tail:])
            return any(string in text for string in request.stop)

        return stopped

    def _text(self, request: Request, token_ids: Sequence[int]) -> str:
        """The whole answer, up to the first stop string."""
        if request.begin_text:
            text = request.begin_text + self.chat.adds(request.begin, token_ids)
        else:
            text = self.chat.text((*request.begin, *token_ids))
        return text[: min((at for string in request.stop if (at := text.find(string)) >= 0), default=len(text))]

    def _reply(self, prompt: list[int], request: Request, made: Generated) -> Reply:
        text = self._text(request, made.token_ids)
        coded = None if made.next is None or request.top is None else self.courier.next_tokens(made.next, request.top)
        if made.odds is not None:
            coded = self.courier.told(made.odds, self.info.shape.vocab)
        return Reply(text, made.token_ids, made.logprobs, len(prompt), len(made.token_ids), made.finish, next=coded)


def _as_cut(asked: Request, cut: Request, reply: Reply | CallError) -> Reply | CallError:
    """A reply that says into which tokens text was cut."""
    if isinstance(reply, CallError):
        return reply
    return replace(reply, begun=() if asked.begin else cut.begin, checked=() if asked.check_text is None else cut.check or ())
