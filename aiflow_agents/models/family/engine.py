"""Batched generation: prompts as token ids in, tokens and their log-probabilities out.

    prompts --sorted, grouped--> prefill (each prompt once) --a row per request--> decode loop --> Generated

The cache of a batch has the prompts in columns [0, prompt_columns) and the generated tokens behind them, one column a step for all rows.
Columns that a row does not use are masked and hold finite numbers, so padding is never read.

**Rows do not know each other** (`stable=True`). A matrix product may add in another order when it has other sizes, so the sizes that a row can
feel are kept from depending on the batch: never fewer than 16 rows in a product; columns in whole steps of 16, so that a row's own columns stay
in the same lanes and only zeros come between; and rows whose products would be long enough to be added in blocks are batched only with rows of
as many columns. `tests/models/test_engine.py` holds this to be bit-exact in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from aiflow_agents.models.family.decoder import Cache, Decoder, Span

MIN_ROWS = 16
STEP = 16  # columns come in multiples of this: the lanes of the widest vector units (AVX-512), in which softmax adds
SHORT_PROMPT, SHORT_ANSWER = 128, 64  # up to 192 columns are added in one block (MKL)
SMALL_PRODUCT = 400  # below so many multiplications torch takes another path
MAX_ROWS = 256  # rows that run together
PREFILL_TOKENS = 512  # rows * positions run at once
PIECE = 512  # a prompt longer than this (and than PREFILL_TOKENS) is alone in its prefill, which then goes piece by piece
CACHE_BYTES = 1 << 30

Stop = Callable[[Sequence[int]], bool]


@dataclass(frozen=True, slots=True)
class Generated:
    """`logprobs[i]` is the natural log-probability of `token_ids[i]` at temperature 1; an end token that was made is included.

    `next` [vocab] are the log-probabilities of the token before which a row has stopped for its gate. `odds`, where they were wanted, are what each
    token was drawn from: log-probabilities and the tokens that have them, both [tokens, k].
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str  # "stop" | "length" | "unsure"
    next: Tensor | None = None
    odds: tuple[Tensor, Tensor] | None = None


@dataclass(slots=True)
class Row:
    """One request on its way through the loop."""

    place: int  # where its answer goes
    prompt: tuple[int, ...]
    room: int  # tokens it may still make at the start
    temperature: float
    top_p: float
    seed: int
    stop: Stop | None
    gate: float = 0.0  # the row ends before a token that is not likelier than this
    odds: int = 0  # it is drawn from so many likeliest tokens
    told: Callable[[int, int], None] | None = None  # how many tokens it had before, and this one
    next: Tensor | None = None
    drawn: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""


class Engine:
    """Generates with one decoder.

    `stable` makes greedy tokens and log-probabilities independent of the rest of the batch; without it a lone request is not padded and is faster.
    """

    def __init__(self, decoder: Decoder, eos_ids: Sequence[int], pad_id: int = 0, *, stable: bool = True):
        self.decoder, self.eos_ids, self.pad_id, self.stable = decoder, frozenset(eos_ids), pad_id, stable
        self.min_rows, self._step = (MIN_ROWS, STEP) if stable else (1, 1)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
        temperature: Sequence[float] | None = None,
        top_p: Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
        stops: Sequence[Stop | None] | None = None,
        gates: Sequence[float] | None = None,
        odds: Sequence[int] | None = None,
        exit: int | None = None,
        told: Callable[[int, int, int], None] | None = None,
    ) -> list[Generated]:
        """Answer every prompt at one exit (None: the last); all sequences have one entry per prompt.

        A row ends at an end token, when `stops[i](tokens so far)` says so, after `max_tokens[i]`, at the end of the model's context, or before the
        first token whose probability at temperature 1 is not above `gates[i]`.
        `told(prompt, tokens before, token)` is called for every token as it is made, but for what ends an answer.
        Temperature 0 is greedy. A sampled row's draw depends on its seed and its own probabilities only. Where `odds[i]` is above 0 it draws from so
        many likeliest tokens, with their log-probabilities at its temperature as 16 bits leave them, and gives them; its gate then looks at the
        likeliest token, as whether one is drafted must not depend on which was drawn.
        Raises `ValueError` for an empty prompt or one that leaves no room in the context: the caller has checked that.
        """
        n, limit = len(prompts), self.decoder.config.max_context
        heat, nucleus, seed, stop = temperature or [0.0] * n, top_p or [1.0] * n, seeds or [0] * n, stops or [None] * n
        gate, drawn = gates or [0.0] * n, odds or [0] * n
        rows = []
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) < limit:
                raise ValueError(f"prompt {i} has {len(prompt)} tokens; expected 1 to {limit - 1}")
            rows.append(Row(i, tuple(prompt), min(max_tokens[i], limit - len(prompt)), heat[i], nucleus[i], seed[i], stop[i], gate[i], drawn[i]))
        if told is not None:
            for row in rows:
                row.told = partial(told, row.place)
        with torch.inference_mode():
            for batch in self.batches([row for row in rows if row.room > 0]):
                self._run(batch, exit)
        return [Generated(tuple(row.tokens), tuple(row.logprobs), row.finish or "length", row.next, _drawn(row)) for row in rows]

    def batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Rows that run together: of similar prompt length, as many as fit in memory."""

        def lane(row: Row) -> int:
            if not self.stable or (len(row.prompt) <= SHORT_PROMPT and row.room <= SHORT_ANSWER):
                return 0
            return _up(len(row.prompt), 64)

        c = self.decoder.config
        column_bytes = 2 * c.layers * c.kv_heads * c.head_dim * self.decoder.embedding.element_size()
        rows = sorted(rows, key=lambda row: (lane(row), len(row.prompt), row.prompt))
        while rows:
            first = lane(rows[0])
            columns = max(_up(len(row.prompt), 64) + row.room for row in rows[:MAX_ROWS] if lane(row) == first)
            most = min(MAX_ROWS, max(MIN_ROWS, CACHE_BYTES // (columns * column_bytes)))
            count = next((i for i, row in enumerate(rows[:most]) if lane(row) != first), min(most, len(rows)))
            yield rows[:count]
            rows = rows[count:]

    def _run(self, rows: list[Row], exit: int | None) -> None:
        decoder, path = self.decoder, self.decoder.config.path(exit)
        prompts = list(dict.fromkeys(row.prompt for row in rows))  # still sorted by length
        prompt_columns, columns, short = self.columns(rows)

        # 1. every prompt once -> cache [prompts, ...], last [prompts, width]
        cache = Cache.new(decoder.config, len(prompts), columns, decoder.dtype, path)
        last = self._prefill(prompts, cache, 0 if short else prompt_columns, path)

        # 2. a row per request; rows beyond the requests are copies that fill the batch up
        place = {prompt: i for i, prompt in enumerate(prompts)}
        source = [place[row.prompt] for row in rows]
        source += source[-1:] * (self.min_rows - len(source))
        if source != list(range(len(prompts))):
            index = torch.tensor(source)
            cache, last = cache.take(index), last.index_select(0, index)
        self.decode(rows, cache, last, prompt_columns, columns, exit)

    def columns(self, rows: Sequence[Row]) -> tuple[int, int, bool]:
        """(columns for the prompts, columns in all, whether the prompts may be cut to their own lengths) of rows that run together."""
        config, step, longest = self.decoder.config, self._step, max(len(row.prompt) for row in rows)
        short = longest <= SHORT_PROMPT and max(row.room for row in rows) <= SHORT_ANSWER
        fewest = max(MIN_ROWS, SMALL_PRODUCT // (config.group * config.head_dim)) if self.stable else 1
        prompt_columns = _up(max(longest, fewest), step if short or not self.stable else 64)
        return prompt_columns, prompt_columns + _up(max(row.room for row in rows), step), short

    def decode(self, rows: list[Row], cache: Cache, last: Tensor, prompt_columns: int, columns: int, exit: int | None) -> None:
        """Make tokens from where the prompts end, into the rows.

        cache: [rows or more, columns], of which the generated ones lie behind `prompt_columns`; last: [the same, width], after the exit's block.
        """
        decoder, step, path = self.decoder, self._step, self.decoder.config.path(exit)
        state = _State(rows, len(last), prompt_columns, columns, decoder)
        for t in range(max(row.room for row in rows)):  # one token for every row and step
            logits = decoder.head(last, exit)  # [rows, vocab]
            tokens = state.draw(logits, t)
            if not self._record(state, tokens, logits, t):
                return
            cache, tokens = self._shrink(state, cache, tokens)
            first = prompt_columns + t
            state.mask[:, :, first] = 0.0
            end = prompt_columns + _up(t + 1, step)
            span = Span(first, end, decoder.turns(state.lengths + t)[:, None, None, None], state.mask[:, :, :end])
            last = decoder.run(decoder.embed(tokens[:, None]), cache, span, path)[:, 0]

    def _prefill(self, prompts: list[tuple[int, ...]], cache: Cache, columns: int, path: Sequence[int]) -> Tensor:
        """Fill the cache, a few similar prompts at a time. Returns the last position of each prompt after the last block, [prompts, width]."""
        found, start = [], 0
        while start < len(prompts):
            stop, length = start, 0
            while stop < len(prompts):
                longer = columns or max(len(prompts[stop]), self.min_rows)
                if stop > start and (stop + 1 - start) * longer > PREFILL_TOKENS:
                    break
                stop, length = stop + 1, longer
            some = prompts[start:stop]
            tokens = torch.tensor([[*prompt, *[self.pad_id] * (length - len(prompt))] for prompt in some])
            part, first = cache.rows(start, stop), 0
            while length - first > PIECE:  # the scores of a piece take positions * end numbers a head, not the square of the length
                piece, none = slice(first, first + PIECE), torch.zeros(len(some), 0, dtype=torch.long)
                self.decoder.run(self.decoder.embed(tokens[:, piece]), part, self.decoder.prompt_span(piece.start, piece.stop), path, none)
                first = piece.stop
            # Of the last block only the ends of the prompts are read, and as many positions before them as make the rows of its products enough.
            ends = torch.tensor([[len(prompt) - 1 - first] for prompt in some])
            read = (ends - torch.arange(-(-self.min_rows // len(some)))).clamp_(min=0)
            span = self.decoder.prompt_span(first, length, _up(length, self._step))
            found.append(self.decoder.run(self.decoder.embed(tokens[:, first:]), part, span, path, read)[:, 0])
            start = stop
        return torch.cat(found)

    def _record(self, state: _State, tokens: Tensor, logits: Tensor, t: int) -> bool:
        """Book this step's tokens; True while a row goes on."""
        logprobs = torch.log_softmax(logits, -1)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        going = []
        for i, (token, logprob) in enumerate(zip(tokens.tolist(), chosen, strict=True)):
            row = state.rows[i]
            if row is None:
                continue
            if row.gate and math.exp(logprobs[i].max() if row.odds else logprob) <= row.gate:
                row.finish, row.next, state.rows[i] = "unsure", logprobs[i].clone(), None
                continue
            if row.odds:
                row.drawn.append((state.told[0][i, : row.odds].clone(), state.told[1][i, : row.odds].clone()))
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if row.told is not None and token not in self.eos_ids:
                row.told(len(row.tokens) - 1, token)
            if token in self.eos_ids or (row.stop is not None and row.stop(row.tokens)):
                row.finish = "stop"
            elif t + 1 >= row.room:
                row.finish = "length"
            else:
                going.append(i)
                continue
            state.rows[i] = None
        state.going = going
        return bool(going)

    def _shrink(self, state: _State, cache: Cache, tokens: Tensor) -> tuple[Cache, Tensor]:
        """Let finished rows leave once they are a quarter of the batch: copying the cache costs about one step."""
        target = max(len(state.going), self.min_rows)
        if target > 0.75 * len(state.rows):
            return cache, tokens
        keep = (state.going + [i for i, row in enumerate(state.rows) if row is None])[:target]
        index = torch.tensor(keep)
        state.take(index)
        return cache.take(index), tokens.index_select(0, index)


class _State:
    """What each row of a running batch carries besides its cache. A row that has finished is None and is no longer looked at."""

    def __init__(self, rows: list[Row], n: int, prompt_columns: int, columns: int, decoder: Decoder):
        filled = rows + rows[-1:] * (n - len(rows))
        self.rows: list[Row | None] = [*rows, *[None] * (n - len(rows))]
        self.going = list(range(len(rows)))
        self.lengths = torch.tensor([len(row.prompt) for row in filled])
        self.sampled = any(row.temperature > 0 for row in rows)
        self.nucleus = any(row.temperature > 0 and row.top_p < 1 for row in rows)
        self.temperature = torch.tensor([row.temperature for row in filled])[:, None]
        self.top_p = torch.tensor([row.top_p for row in filled], dtype=torch.float64)[:, None]
        self.odds = torch.tensor([row.odds if row.temperature > 0 else 0 for row in filled])[:, None]
        self.most, self.told = int(self.odds.max()), (torch.zeros(0), torch.zeros(0))
        self.uniform = uniforms([row.seed for row in filled], max(row.room for row in rows)) if self.sampled else torch.zeros(n, 0)
        self._kv_heads = decoder.config.kv_heads
        # [rows * kv_heads, 1, columns]: 0 where a row may look; a generated column opens when it is written
        closed = torch.arange(columns)[None] >= self.lengths[:, None]
        self.mask = torch.zeros(n, columns, dtype=decoder.dtype).masked_fill_(closed, -torch.inf).repeat_interleave(self._kv_heads, 0)[:, None]

    def take(self, index: Tensor) -> None:
        keep = index.tolist()
        self.rows = [self.rows[i] for i in keep]
        self.lengths, self.temperature, self.top_p, self.odds, self.uniform = (
            tensor.index_select(0, index) for tensor in (self.lengths, self.temperature, self.top_p, self.odds, self.uniform)
        )
        self.mask = self.mask.unflatten(0, (-1, self._kv_heads)).index_select(0, index).flatten(0, 1)

    def draw(self, logits: Tensor, t: int) -> Tensor:
        """logits [rows, vocab] -> the next token of each row."""
        tokens = logits.argmax(-1)
        if not self.sampled:
            return tokens
        warm = self.temperature > 0
        heated = logits / torch.where(warm, self.temperature, 1.0)
        drawn = draw(heated, self.uniform[:, t : t + 1], self.top_p if self.nucleus else None)
        if self.most:  # of what is drawn, others are told: so it is drawn from what can be told
            values, indices = likeliest(heated, self.most)
            self.told = values.masked_fill(torch.arange(values.shape[1])[None] >= self.odds, -torch.inf), indices
            drawn = torch.where(self.odds[:, 0] > 0, indices.gather(1, _invert(self.told[0].double().exp(), self.uniform[:, t : t + 1]))[:, 0], drawn)
        return torch.where(warm[:, 0], drawn, tokens)


def draw(logits: Tensor, uniform: Tensor, top_p: Tensor | None = None) -> Tensor:
    """One token per row by inverting the cumulative distribution: logits [rows, vocab], uniform [rows, 1] in [0, 1) -> [rows].

    Where top_p [rows, 1] < 1 only the likeliest tokens count, up to and with the one that brings their sum to top_p
    (Holtzman et al., arXiv:1904.09751).
    """
    p = torch.softmax(logits, -1, dtype=torch.float64)
    tokens = _invert(p, uniform)
    if top_p is not None:
        ranked, order = p.sort(dim=-1, descending=True, stable=True)
        kept = torch.where(ranked.cumsum(-1) - ranked < top_p.clamp(min=1e-9), ranked, 0.0)
        tokens = torch.where(top_p < 1, order.gather(1, _invert(kept, uniform)), tokens)
    return tokens[:, 0]


def likeliest(heated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(log-probabilities as 16 bits leave them, tokens) of the k likeliest, [rows, k] each: what others can be told. heated [rows, vocab]."""
    values, indices = torch.log_softmax(heated, -1).topk(min(k, heated.shape[-1]))
    return values.half().float(), indices


def _invert(mass: Tensor, uniform: Tensor) -> Tensor:
    """mass [rows, choices], uniform [rows, 1] -> the choice of each row, [rows, 1]."""
    total = mass.cumsum(-1)
    return (total <= uniform * total[:, -1:]).sum(-1, keepdim=True).clamp_(max=mass.shape[-1] - 1)


def _drawn(row: Row) -> tuple[Tensor, Tensor] | None:
    """What a row's tokens were drawn from, [tokens, k] each; None where nobody asked."""
    if not row.drawn:
        return None
    values, indices = zip(*row.drawn, strict=True)
    return torch.stack(values), torch.stack(indices)


def uniforms(seeds: Sequence[int], n: int) -> Tensor:
    """[len(seeds), n] numbers in [0, 1): SplitMix64 (Steele et al., 2014) of seed and position, so no draw depends on another row."""

    def mix(z: np.ndarray) -> np.ndarray:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    golden, start = np.uint64(0x9E3779B97F4A7C15), np.array([seed & (1 << 64) - 1 for seed in seeds], dtype=np.uint64)[:, None]
    bits = mix(mix(start + golden) + np.arange(1, n + 1, dtype=np.uint64) * golden)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
