"""A session: a sequence that grows, and may change its exit at every token, in both directions.

What makes that right is a rule about what is kept. The input of a layer at which some exit leaves (a *station*) is kept for every position, and every
block, a branch's own as well as the backbone's, has its own keys and values, filled up to some position. Before a block runs over new positions it
first catches up on those that it missed while shallower or other exits were used:

    positions      0 1 2 3 4 5 6 7
    layer 0        x x x x x x x x      exit 1 up to position 5, then exit 3: layers 1 and 2 and the block of exit 3 catch up on
    layer 1        x x x x x x . .      0..5, from the kept inputs of layer 1, in one pass. Back at exit 1, its own block catches
    block of 1     x x x x x x . .      up on 6 and 7.

So no cache is ever mixed from two layers, nothing is computed twice, and the result is that of the one exit over the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.decoder import Cache, Decoder, Span

ROOM = 64  # columns that a cache grows by at least


class LowerCache(NamedTuple):
    """Keys and values of layers 0..k-1: what a receiver of hidden states needs besides them to make further tokens.

    keys, values: [layers, rows, positions, kv_heads, head_dim], keys turned to their positions.
    """

    keys: Tensor
    values: Tensor


class Session:
    """`rows` sequences of equal length. `positions` counts what has been fed."""

    def __init__(self, decoder: Decoder, rows: int = 1):
        self.decoder, self.rows, self.positions = decoder, rows, 0
        self._inputs: dict[int, Tensor] = {}  # station -> its inputs so far, [rows, reached, width]
        self._filled: dict[int, int] = {}  # block -> positions whose keys and values it has
        self._cache: Cache | None = None
        self._columns = 0
        self._span: Span | None = None
        self._turns: Tensor | None = None  # of every column
        self._clear: Tensor | None = None  # a mask that hides nothing
        self._stations = sorted({0, *decoder.config.exits})
        self._floor = 0  # after `resume`: below this layer inputs are not known
        self._unseen: Tensor | None = None  # and if they can be had, from these token ids

    # -- growing -----------------------------------------------------------------------------------------------------

    def feed(self, token_ids: Tensor, *, exit: int | None = None) -> Tensor:
        """Append token_ids [rows, new] and give the logits at these new positions at one exit, [rows, new, vocab]. Raises as `append` does."""
        self.append(token_ids)
        return self.logits(exit=exit, last=token_ids.shape[1])

    @torch.inference_mode()
    def append(self, token_ids: Tensor) -> None:
        """Append token_ids [rows, new]; no layer runs before something is asked.

        Raises `UserError` after a `resume` without tokens and without the lower layers' cache: those have never seen what was said before.
        """
        if any(self._filled.get(block, 0) < self.positions for block in range(self._floor)):
            self._rebuild()
        self._add(0, self.decoder.embed(token_ids))
        self.positions += token_ids.shape[1]

    @torch.inference_mode()
    def logits(self, *, exit: int | None = None, last: int | None = None) -> Tensor:
        """Bring one exit up to the last position: logits [rows, caught up, vocab] where its block had not yet been, and at the last.

        `last`: of at most so many, the last ones. Of the others the exit's block then needs only keys and values.
        """
        return self.decoder.head(self._out(exit, last), exit)

    def _out(self, exit: int | None, last: int | None) -> Tensor:
        deepest = self.decoder.config.exits[-1] if exit is None else exit
        block = self.decoder.config.path(exit)[-1]
        hidden = self._reach(deepest)
        start = min(self._filled.get(block, 0), self.positions - 1)  # asked twice, the last position is run again
        new, read = self.positions - start, None
        if last is not None and last < new:
            read = torch.arange(new - last, new).expand(self.rows, last)
        return self._run(hidden[:, start:], (block,), start, read)

    def _reach(self, layer: int) -> Tensor:
        """The inputs of a station for all positions, after catching up."""
        if layer < self._floor:
            self._rebuild()
        for station, following in zip(self._stations, self._stations[1:], strict=False):
            done = self._count(following)
            if following <= layer and done < self._count(station):
                self._add(following, self._run(self._inputs[station][:, done:], range(station, following), done))
        return self._inputs[layer]

    def _run(self, hidden: Tensor, blocks: Sequence[int], start: int, read: Tensor | None = None) -> Tensor:
        """Blocks over positions start.. , of which each has seen exactly what is before; `read` as in `decoder.run`."""
        stop = start + hidden.shape[1]
        assert all(self._filled.get(block, 0) >= start for block in blocks), (blocks, start, self._filled)
        self._filled.update({block: max(self._filled.get(block, 0), stop) for block in blocks})  # what was run again stays as far as it was
        cache = self._room(stop)
        if self._span is None or (self._span.first, self._span.end) != (start, stop):  # the stations of one pass share it
            self._span = self._stands(start, stop)
        return self.decoder.run(hidden, cache, self._span, list(blocks), read)

    def _stands(self, start: int, stop: int) -> Span:
        """As `decoder.prompt_span`. One position sees all that is before it: there a mask leaves everything open."""
        assert self._turns is not None and self._clear is not None
        if stop - start > 1:
            return self.decoder.prompt_span(start, stop)
        return Span(start, stop, self._turns[None, start:stop, None, None], self._clear[..., :stop])

    def _room(self, columns: int) -> Cache:
        """The cache, with at least so many columns."""
        config = self.decoder.config
        if self._cache is None or columns > self._columns:
            old, self._columns = self._cache, max(columns, 2 * self._columns, ROOM)
            self._turns = self.decoder.turns(torch.arange(self._columns))
            self._clear = torch.zeros(1, 1, self._columns, dtype=self.decoder.dtype)
            blocks = range(config.layers + len(config.exits) - 1)
            self._cache = Cache.new(config, self.rows, self._columns, self.decoder.dtype, blocks)
            if old is not None:
                for i in blocks:
                    width = old.k[i].shape[-1]
                    self._cache.k[i][..., :width] = old.k[i]
                    self._cache.v[i][:, :width] = old.v[i]
        return self._cache

    def _count(self, station: int) -> int:
        return self._inputs[station].shape[1] if station in self._inputs else 0

    def _add(self, station: int, hidden: Tensor) -> None:
        before = self._inputs.get(station)
        self._inputs[station] = hidden.clone() if before is None else torch.cat((before, hidden), 1)

    # -- handing over ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def hidden(self, layer: int) -> Tensor:
        """The input of layer `layer` at every position so far, [rows, positions, width]: what another node goes on from."""
        if layer not in self._stations:
            self._open(layer)
        return self._reach(layer)

    def lower(self, layer: int) -> LowerCache:
        """Keys and values of layers 0..layer-1 at every position so far."""
        c = self.decoder.config
        self._reach(layer)
        cache = self._room(self.positions)
        keys = [cache.k[i][..., : self.positions].unflatten(0, (self.rows, c.kv_heads)).permute(0, 3, 1, 2) for i in range(layer)]
        values = [cache.v[i][:, : self.positions].unflatten(0, (self.rows, c.kv_heads)).transpose(1, 2) for i in range(layer)]
        empty = torch.zeros(0, self.rows, self.positions, c.kv_heads, c.head_dim, dtype=self.decoder.dtype)
        return LowerCache(torch.stack(keys) if keys else empty, torch.stack(values) if values else empty)

    @torch.inference_mode()
    def resume(self, hidden: Tensor, *, layer: int, token_ids: Tensor | None = None, lower: LowerCache | None = None) -> None:
        """Begin from the input of layer `layer` at every position so far, hidden [rows, positions, width]. Only in a new session.

        That is enough to answer at any exit at or behind `layer` for these positions. To append further tokens the layers below must have seen them
        too: from their keys and values (`lower`), or from `token_ids` [rows, positions], over which they run anew when the first token is appended.
        """
        if self.positions:
            raise UserError("a session resumes at its beginning; open another one")
        if layer not in self._stations:
            self._open(layer)
        self.positions, self._floor, self._unseen = hidden.shape[1], layer, token_ids
        self._add(layer, hidden.to(self.decoder.dtype))
        unknown = torch.full_like(self._inputs[layer], torch.nan)
        self._inputs.update({station: unknown for station in self._stations if station < layer})
        if lower is not None:
            cache = self._room(self.positions)
            for i in range(layer):
                cache.k[i][..., : self.positions] = lower.keys[i].permute(0, 2, 3, 1).flatten(0, 1)
                cache.v[i][:, : self.positions] = lower.values[i].transpose(1, 2).flatten(0, 1)
            self._filled = dict.fromkeys(range(layer), self.positions)

    def _rebuild(self) -> None:
        """Let the layers below the floor see the tokens. What they give to it is dropped: the inputs that came are those that others have seen."""
        if self._unseen is None:
            raise UserError(f"layers below {self._floor} have not seen what was said: resume with token_ids, or with their cache")
        hidden, known = self.decoder.embed(self._unseen), self._unseen.shape[1]
        for station, following in zip(self._stations, self._stations[1:], strict=False):
            if station < self._floor:
                self._inputs[station] = torch.cat((hidden, self._inputs[station][:, known:]), 1)
                hidden = self._run(hidden, range(station, following), 0)
        self._floor, self._unseen = 0, None

    def _open(self, layer: int) -> None:
        """Make a station of a layer at which no exit leaves."""
        if not 0 <= layer <= self.decoder.config.exits[-1]:
            raise UserError(f"no layer {layer}; this model has 0 to {self.decoder.config.exits[-1]}")
        following = next((s for s in self._stations if s > layer), None)
        done = self._count(following) if following is not None else 0
        self._stations = sorted({*self._stations, layer})
        if done and layer >= self._floor:  # passed without being kept: run again from the station before, into the same columns
            before = max(s for s in self._stations if s < layer)
            self._inputs[layer] = self._run(self._inputs[before][:, :done], range(before, layer), 0)

    # -- taking back, and talking ------------------------------------------------------------------------------------

    def truncate(self, positions: int) -> None:
        """Forget everything from this position on: drafts that were rejected."""
        if not 0 <= positions <= self.positions:
            raise UserError(f"cannot truncate {self.positions} positions to {positions}")
        self.positions = positions
        self._inputs = {station: hidden[:, :positions] for station, hidden in self._inputs.items()}
        self._filled = {block: min(count, positions) for block, count in self._filled.items()}
        if self._unseen is not None:
            self._unseen = self._unseen[:, :positions]

    def generate(self, max_tokens: int, *, exit: int | Callable[[int], int] | None = None, stop: Sequence[int] = ()) -> list[list[int]]:
        """Greedy tokens, up to `max_tokens` for each row; a row ends with a token of `stop`. `exit` may say for the i-th token which exit makes it.

        The prompt must have been fed or resumed. An end token that was made is included, and what other rows make after it is not.
        """
        choose = exit if callable(exit) else (lambda i: exit)
        made: list[list[int]] = [[] for _ in range(self.rows)]
        going = set(range(self.rows))
        for i in range(max_tokens):
            tokens = self.logits(exit=choose(i), last=1)[:, -1].argmax(-1)
            for row in sorted(going):
                made[row].append(int(tokens[row]))
                if made[row][-1] in stop:
                    going.discard(row)
            if not going:
                break
            self.append(tokens[:, None])
        return made
