"""Going on from another node's hidden states, in batches: check its draft in one pass, keep what this exit would have said too, speak on from there.

    hidden of prompt and draft --blocks k..--> this exit's own next token at each place
                                               | agrees to the end: done, not one token was made
                                               | differs at i: the token is this exit's, and so is all that follows

Checking a draft is what speculative decoding does (Leviathan et al., arXiv:2211.17192), greedily, with a draft that came over a wire. The result is
what this exit says by itself, up to the loss of the codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.decoder import Cache, Decoder, Span
from aiflow_agents.models.family.engine import Engine, Generated, Row
from aiflow_agents.models.family.session import LowerCache
from aiflow_agents.models.protocol import Pass


@dataclass(frozen=True)
class Start:
    """What one row goes on from. `draft` are the tokens of the answer, the one that ended it included; it was never fed, so there are
    `prompt + len(draft) - 1` positions, and `prompt` where there is no draft.

    hidden: [positions, width], the input of `layer`; `first` is the place of the first. To make tokens of its own a row also needs `lower`
    (rows = 1) or `token_ids` [positions].
    """

    layer: int
    hidden: Tensor
    prompt: int
    draft: tuple[int, ...]
    token_ids: tuple[int, ...] | None = None
    lower: LowerCache | None = None
    first: int = 0


@torch.inference_mode()
def hidden_states(decoder: Decoder, sequences: Sequence[Sequence[int]], layer: int, *, lower: bool = False) -> list[tuple[Tensor, LowerCache | None]]:
    """The input of `layer` at every position of each sequence, [positions, width], and with `lower` the keys and values of the layers below."""
    c, found = decoder.config, []
    for begin in range(0, len(sequences), 64):
        some = sequences[begin : begin + 64]
        longest = max(map(len, some))
        tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in some])  # padding on the right is never read
        cache = Cache.new(c, len(some), longest, decoder.dtype, range(layer))
        states = decoder.run(decoder.embed(tokens), cache, decoder.prompt_span(0, longest), range(layer))
        keys = [cache.k[i].unflatten(0, (len(some), c.kv_heads)).permute(0, 3, 1, 2) for i in range(layer)]  # [rows, positions, kv_heads, head_dim]
        values = [cache.v[i].unflatten(0, (len(some), c.kv_heads)).transpose(1, 2) for i in range(layer)]
        for row, ids in enumerate(some):
            kv = None
            if lower and layer:
                kv = LowerCache(*(torch.stack([one[row : row + 1, : len(ids)] for one in both]) for both in (keys, values)))
            found.append((states[row, : len(ids)].clone(), kv))
    return found


@torch.inference_mode()
def think(engine: Engine, prompts: Sequence[Sequence[int]], layer: int, steps: int, exit: int | None) -> list[tuple[Tensor, LowerCache | None]]:
    """As `hidden_states` with `lower`, of prompts with `steps` latent positions of one exit behind each.

    Rows and columns come as in the engine, so that no row feels what it is run with; latent positions stand behind all prompts, and a row's padding
    between is masked.
    """
    decoder, c, found = engine.decoder, engine.decoder.config, []
    path = c.path(exit)
    for some in engine.batches([Row(i, tuple(prompt), steps, 0.0, 1.0, 0, None) for i, prompt in enumerate(prompts)]):
        filled = some + some[-1:] * (engine.min_rows - len(some))
        before, columns, _ = engine.columns(some)
        lengths = torch.tensor([len(row.prompt) for row in filled])
        tokens = torch.zeros(len(filled), before, dtype=torch.long)
        for i, row in enumerate(filled):
            tokens[i, : len(row.prompt)] = torch.tensor(row.prompt)
        cache, span = Cache.new(c, len(filled), columns, decoder.dtype, path), decoder.prompt_span(0, before)
        states = torch.zeros(len(filled), columns, c.width, dtype=decoder.dtype)
        states[:, :before] = decoder.run(decoder.embed(tokens), cache, span, path[:layer])
        last = decoder.run(states[:, :before], cache, span, path[layer:])[torch.arange(len(filled)), lengths - 1]
        closed = torch.arange(columns)[None] >= lengths[:, None]
        mask = torch.zeros(len(filled), columns, dtype=decoder.dtype).masked_fill_(closed, -torch.inf).repeat_interleave(c.kv_heads, 0)[:, None]
        for t in range(steps):
            at = before + t
            mask[:, :, at] = 0.0
            span = Span(at, columns, decoder.turns(lengths + t)[:, None, None, None], mask)
            states[:, at : at + 1] = decoder.run(decoder.thought(last, exit)[:, None], cache, span, path[:layer])
            last = decoder.run(states[:, at : at + 1], cache, span, path[layer:])[:, 0]
        for i, row in enumerate(some):
            own = torch.cat((torch.arange(len(row.prompt)), torch.arange(before, before + steps)))
            block = slice(i * c.kv_heads, (i + 1) * c.kv_heads)
            keys = [cache.k[j][block][..., own].permute(2, 0, 1)[None] for j in range(layer)]  # [1, positions, kv_heads, head_dim]
            values = [cache.v[j][block][:, own].transpose(0, 1)[None] for j in range(layer)]
            found.append((row.place, states[i, own], LowerCache(torch.stack(keys), torch.stack(values)) if layer else None))
    return [(hidden, lower) for _, hidden, lower in sorted(found, key=lambda one: one[0])]


@dataclass
class Resumed:
    """What this exit answers, the passes that it took, and where `onward` was asked: a `Start` at that layer for the next node.

    Onward go the positions that were checked, and of the answer as much as they can be checked by: the draft up to where this exit differed, and its
    own token there.
    """

    made: Generated
    work: list[Pass]
    onward: Start | None = None


@torch.inference_mode()
def resume(
    engine: Engine, starts: Sequence[Start], *, exit: int | None, max_tokens: Sequence[int], onward: Sequence[int | None] | None = None
) -> list[Resumed]:
    """Go on from each start, greedily.

    Raises `UserError` for an exit before the hidden states' layer, and for a wrong draft where nothing tells the layers below what was said.
    """
    last = len(engine.decoder.config.path(exit)) - 1
    wanted = onward or [None] * len(starts)
    groups: dict[tuple[int, int | None], list[Row]] = {}
    rows, found = [], []
    for i, start in enumerate(starts):
        for layer in (start.layer, wanted[i] or 0):
            if layer > last:
                raise UserError(f"exit {last} has no input of layer {layer}: it leaves the backbone before")
        rows.append(Row(i, tuple(range(len(start.hidden))), max_tokens[i], 0.0, 1.0, 0, None))  # of its prompt only the length counts
        found.append(Resumed(Generated((), (), ""), []))
        groups.setdefault((start.layer, wanted[i]), []).append(rows[-1])
    for (layer, further), some in groups.items():
        for batch in engine.batches(some):
            _Batch(engine, batch, starts, layer, further, exit, found).run()
    for row, one in zip(rows, found, strict=True):
        one.made = Generated(tuple(row.tokens), tuple(row.logprobs), row.finish or "length")
        if one.onward is not None:
            one.onward = replace(one.onward, draft=one.made.token_ids[: len(one.onward.hidden) - one.onward.prompt + 1])
    return found


class _Batch:
    """Rows of similar length that go on from one layer."""

    def __init__(
        self, engine: Engine, rows: list[Row], starts: Sequence[Start], layer: int, further: int | None, exit: int | None, found: list[Resumed]
    ):
        self.engine, self.rows, self.layer, self.further, self.exit, self.found = engine, rows, layer, further, exit, found
        self.starts = [starts[row.place] for row in rows]
        self.path = engine.decoder.config.path(exit)
        self.prompt_columns, self.columns, short = engine.columns(rows)
        self.positions = max(engine.min_rows, *(len(row.prompt) for row in rows)) if short else self.prompt_columns
        self.height = max(len(rows), engine.min_rows)

    def run(self) -> None:
        decoder = self.engine.decoder
        # 1. the rest of the path over what came -> out [height, longest draft, width], after the exit's block where the answer was drafted
        hidden = torch.zeros(self.height, self.positions, decoder.config.width, dtype=decoder.dtype)
        for i, start in enumerate(self.starts):
            hidden[i, : len(start.hidden)] = start.hidden.to(decoder.dtype)
        cache = Cache.new(decoder.config, self.height, self.columns, decoder.dtype, self.path)
        span, between = decoder.prompt_span(0, self.positions, self.prompt_columns), self.layer if self.further is None else self.further
        halfway = decoder.run(hidden, cache, span, self.path[self.layer : between])
        drafted = max(len(start.hidden) - start.prompt + 1 for start in self.starts)
        begins = torch.tensor([start.prompt - 1 for start in self.starts] + [0] * (self.height - len(self.starts)))[:, None]
        out = decoder.run(halfway, cache, span, self.path[between:], (begins + torch.arange(drafted)).clamp_(max=self.positions - 1))
        # 2. how much of each draft this exit would have said
        going = [i for i, row in enumerate(self.rows) if not self._check(i, row, out)]
        for i in range(len(self.rows)) if self.further is not None else ():
            self._send_on(i, halfway, cache)
        if not going:
            return
        # 3. the others speak on, once their lower layers know what was said
        self._fill_lower(cache, going)
        picked = torch.tensor(going + going[-1:] * (self.engine.min_rows - len(going)))
        rows = [self.rows[i] for i in going]
        ends = torch.tensor([len(row.prompt) - self.starts[i].prompt for i, row in zip(going, rows, strict=True)])
        last = out[picked, torch.cat((ends, ends[-1:].expand(len(picked) - len(ends))))]
        made = [len(row.tokens) for row in rows]
        self.engine.decode(rows, cache.take(picked), last, self.prompt_columns, self.columns, self.exit)
        for row, before in zip(rows, made, strict=True):
            new = len(row.tokens) - before
            self.found[row.place].work += [Pass(1.0, 1, len(row.prompt) + t, 1) for t in range(new - 1)]

    def _check(self, i: int, row: Row, out: Tensor) -> bool:
        """Keep what agrees of the draft; True when it is the whole answer. Else the row's prompt ends where this exit differs."""
        start, engine = self.starts[i], self.engine
        logits = engine.decoder.head(out[i, : len(start.hidden) - start.prompt + 1], self.exit)  # [draft, vocab]
        logprobs = torch.log_softmax(logits, -1)
        limit = min(len(start.draft), row.room)
        tokens = logits.argmax(-1).tolist()
        agreed = next((t for t in range(limit) if tokens[t] != start.draft[t]), limit)
        row.tokens += start.draft[:agreed]
        row.logprobs += logprobs[torch.arange(agreed), torch.tensor(start.draft[:agreed], dtype=torch.long)].tolist()
        share = (len(self.path) - self.layer) / len(self.path)
        self.found[row.place].work.append(Pass(share, len(start.hidden), 0, len(logits), len(logits)))
        if agreed and row.tokens[-1] in engine.eos_ids:
            row.finish = "stop"
            return True
        if agreed == row.room:
            row.finish = "length"
            return True
        row.prompt = tuple(range(start.prompt + agreed))
        row.room -= agreed
        if agreed and agreed == len(start.draft):  # it was cut short, not ended: its last token was never fed
            row.tokens.pop()
            row.logprobs.pop()
            row.prompt, row.room = row.prompt[:-1], row.room + 1
        return False

    def _send_on(self, i: int, halfway: Tensor, cache: Cache) -> None:
        """The inputs of the layer `further` at the positions that were checked, with what the start had for the layers below it."""
        start, row, c = self.starts[i], self.rows[i], self.engine.decoder.config
        n = len(start.hidden) if row.finish else len(row.prompt)
        block, lower = slice(i * c.kv_heads, (i + 1) * c.kv_heads), None
        if start.lower is not None or not self.layer:
            between = range(self.layer, self.further or 0)
            keys = [cache.k[j][block, :, :n].permute(2, 0, 1)[None] for j in between]  # [1, positions, kv_heads, head_dim]
            values = [cache.v[j][block, :n].transpose(0, 1)[None] for j in between]
            below = start.lower or LowerCache(*torch.zeros(2, 0, 1, n, c.kv_heads, c.head_dim))
            lower = LowerCache(*(torch.cat((old[:, :, :n], *(one[None] for one in new))) for old, new in zip(below, (keys, values), strict=True)))
        tokens = None if start.token_ids is None else start.token_ids[:n]
        self.found[row.place].onward = Start(self.further or 0, halfway[i, :n].clone(), start.prompt, (), tokens, lower)

    def _fill_lower(self, cache: Cache, going: Sequence[int]) -> None:
        """Keys and values of the layers below for these rows: those that came, or made anew from the tokens."""
        config, decoder = self.engine.decoder.config, self.engine.decoder
        if not self.layer:
            return
        anew = []
        for i in going:
            start, n = self.starts[i], len(self.starts[i].hidden)
            block = slice(i * config.kv_heads, (i + 1) * config.kv_heads)
            if start.lower is not None:
                for layer in range(self.layer):
                    cache.k[layer][block, :, :n] = start.lower.keys[layer][0].permute(1, 2, 0)
                    cache.v[layer][block, :n] = start.lower.values[layer][0].transpose(0, 1)
            elif start.token_ids is not None:
                anew.append(i)
                self.found[self.rows[i].place].work.append(Pass(self.layer / len(self.path), len(self.rows[i].prompt), 0, 0, 0))
            else:
                raise UserError(f"layers below {self.layer} have not seen what was said: send the tokens along, or the lower layers' cache")
        if anew:
            tokens = torch.zeros(self.height, self.positions, dtype=torch.long)
            for i in anew:
                tokens[i, : len(self.starts[i].hidden)] = torch.tensor(self.starts[i].token_ids)
            fresh = Cache.new(config, self.height, self.prompt_columns, decoder.dtype, range(self.layer))
            span, none = decoder.prompt_span(0, self.positions, self.prompt_columns), torch.zeros(self.height, 0, dtype=torch.long)
            decoder.run(decoder.embed(tokens), fresh, span, range(self.layer), none)
            for i in anew:
                block = slice(i * config.kv_heads, (i + 1) * config.kv_heads)
                for layer in range(self.layer):
                    cache.k[layer][block, :, : self.prompt_columns] = fresh.k[layer][block]
                    cache.v[layer][block, : self.prompt_columns] = fresh.v[layer][block]
