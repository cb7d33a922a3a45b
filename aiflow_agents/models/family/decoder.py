"""One decoder for Llama, Qwen2 and Qwen3 checkpoints in the Hugging Face layout: plain functions over tensors, inference only.

    tokens --embed--> hidden --run(blocks)--> hidden --head(exit)--> logits
                                   |
                                 cache (one pair of tensors per block)

The three steps stand apart, so a caller can stop after any block, keep the hidden state, and go on elsewhere. The blocks of a model's branches
stand behind those of its backbone, each with a slot of its own in the cache, so that no exit ever overwrites what another one reads. Weights are
held ready for speed: matrices transposed, q/k/v in one and gate/up in one, the gain of each block norm multiplied into the matrix behind it, and the
two halves of every rotated head interleaved, so that turning a head is one complex product (Su et al., arXiv:2104.09864).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.config import DecoderConfig, open_weights
from aiflow_agents.models.family.rank import Keep, product, ranks


def rope_frequencies(config: DecoderConfig) -> tuple[Tensor, float]:
    """Turning speed of each pair of a head, [head_dim / 2] radians per position, and the factor that the turned heads are scaled by.

    `dynamic` changes speeds only beyond `max_position_embeddings`, where this engine does not go, so there it equals `default`.
    Sources: llama3 from the Llama 3.1 release, YaRN from arXiv:2309.00071.
    """
    rope, dim = dict(config.rope), config.head_dim
    theta, kind = rope["rope_theta"], rope["rope_type"]
    speed = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    if kind == "linear":
        return speed / rope["factor"], 1.0
    if kind == "llama3":
        factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * speed / (2 * math.pi)  # full turns within the first training context
        blend = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow pairs, stretched by the factor; 1: fast pairs, left alone
        return speed * (blend + (1 - blend) / factor), 1.0
    if kind == "yarn":
        return _yarn(rope, speed, dim)
    return speed, 1.0


def _yarn(rope: Mapping[str, Any], speed: Tensor, dim: int) -> tuple[Tensor, float]:
    factor, theta, original = rope["factor"], rope["rope_theta"], rope["original_max_position_embeddings"]

    def pair_with(turns: float) -> float:
        """Index of the pair that makes so many turns within the first training context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def growth(amount: float) -> float:
        return 0.1 * amount * math.log(factor) + 1.0 if factor > 1 else 1.0

    first, last = pair_with(rope.get("beta_fast") or 32), pair_with(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / (last - first or 0.001)).clamp(0, 1)
    scale = rope.get("attention_factor")
    if scale is None:
        m, m_all = rope.get("mscale"), rope.get("mscale_all_dim")
        scale = growth(m) / growth(m_all) if m and m_all else growth(1.0)
    return speed * (ramp / factor + (1 - ramp)), float(scale)


class Layer(NamedTuple):
    """One block, its matrices [in, out]. The gains of both norms are already inside `qkv` and `gate_up`."""

    qkv: Tensor  # [width, kv_heads * (group + 2) * head_dim]: for each key/value head its queries, its key, its value
    qkv_bias: Tensor | None
    qk_gain: Tensor | None  # [group + 1, head_dim]
    out: Tensor  # [heads * head_dim, width]
    out_bias: Tensor | None
    gate_up: Tensor  # [width, 2 * inner]
    gate_up_bias: Tensor | None
    down: Tensor  # [inner, width]
    down_bias: Tensor | None


class Span(NamedTuple):
    """Where a piece of sequence stands: the cache columns it writes, those it may look at, and how far each position turns."""

    first: int  # keys and values go to columns first .. first + positions
    end: int  # columns [0, end) are looked at, as far as the mask lets them
    turn: Tensor  # [rows or 1, positions, 1, 1, head_dim / 2] complex
    mask: Tensor  # 0 or -inf, broadcasts to [rows * kv_heads, positions * group, end]; positions outside, group inside


class Cache:
    """Keys and values of a batch, one tensor of each per block: k [rows * kv_heads, head_dim, columns], v [rows * kv_heads, columns, head_dim].

    Zeroed at the start: a masked column is multiplied by 0, and must not hold a NaN.
    """

    def __init__(self, k: dict[int, Tensor], v: dict[int, Tensor], kv_heads: int):
        self.k, self.v, self.kv_heads = k, v, kv_heads

    @classmethod
    def new(cls, config: DecoderConfig, rows: int, columns: int, dtype: torch.dtype, blocks: Sequence[int]) -> Cache:
        n, dim = rows * config.kv_heads, config.head_dim
        k = {i: torch.zeros(n, dim, columns, dtype=dtype) for i in blocks}
        return cls(k, {i: torch.zeros(n, columns, dim, dtype=dtype) for i in blocks}, config.kv_heads)

    def rows(self, start: int, stop: int) -> Cache:
        """A view of some rows: what is written there is written here."""
        part = slice(start * self.kv_heads, stop * self.kv_heads)
        return Cache({i: k[part] for i, k in self.k.items()}, {i: v[part] for i, v in self.v.items()}, self.kv_heads)

    def take(self, index: Tensor) -> Cache:
        """A copy that holds these rows, in this order; a row may be taken many times."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (-1, self.kv_heads)).index_select(0, index).flatten(0, 1)

        return Cache({i: pick(k) for i, k in self.k.items()}, {i: pick(v) for i, v in self.v.items()}, self.kv_heads)


class Decoder:
    """A loaded checkpoint. Every method is a function of its arguments and the weights: which exit is meant is said with each call."""

    def __init__(self, config: DecoderConfig, embedding: Tensor, blocks: list[Layer], ends: Mapping[int, tuple[Tensor, Tensor]]):
        self.config, self.embedding, self.blocks, self.ends = config, embedding, blocks, ends  # ends: exit -> (gain of its norm, head)
        self.dtype = embedding.dtype
        self._speed, self._scale = rope_frequencies(config)
        self._floor = torch.tensor(math.sqrt(config.width * config.norm_eps))
        self._back: dict[int, Tensor] = {}  # exit -> [width, width]: by least squares, its head times this is the embedding
        self._head_floor = torch.tensor(math.sqrt(config.head_dim * config.norm_eps))

    @classmethod
    def load(cls, path: str | Path, dtype: torch.dtype = torch.float32, keep: Keep = 1.0) -> Decoder:
        """Load a model folder (config.json and *.safetensors, one file or many), a decomposed one at the size that `keep` says.

        Raises `UserError` for a folder without weights, a weight that is missing or has another shape, and a model this decoder cannot run.
        """
        config = DecoderConfig.read(path)
        with ExitStack() as stack:
            reader = _Reader(path, stack, keep)
            take = reader.take
            width, vocab = config.width, config.vocab
            embedding = take("model.embed_tokens.weight", vocab, width).to(dtype)
            names = [f"model.layers.{i}." for i in range(config.layers)] + [f"model.eelayers.{i}." for i in range(len(config.exits) - 1)]
            blocks = [_load_layer(config, take, name, dtype) for name in names]
            shared = None if config.own_heads else embedding if config.tied else take("lm_head.weight", vocab, width).to(dtype)
            ends = {}
            for i, e in enumerate(config.exits):
                norm = "model.norm.weight" if e == config.exits[-1] and "model.norm.weight" in reader.files else f"model.norms.{i}.weight"
                head = take(f"lm_head.{i}.weight", vocab, width).to(dtype) if shared is None else shared
                ends[e] = take(norm, width).float() * math.sqrt(width), head
        return cls(config, embedding, blocks, ends)

    def turns(self, positions: Tensor) -> Tensor:
        """How far heads turn at these positions: complex [..., head_dim / 2], of length `attention_factor` (1 but for YaRN)."""
        angle = positions[..., None].float() * self._speed
        return torch.polar(torch.full_like(angle, self._scale), angle)

    def prompt_span(self, first: int, stop: int, end: int | None = None) -> Span:
        """Positions first..stop of prompts that start at column 0: each sees itself and what is before it, so padding on the right is never read.

        end: columns that take part in the products, where those are to be more than `stop`.
        """
        end = stop if end is None else end
        mask = torch.full((stop - first, end), -torch.inf, dtype=self.dtype).triu_(1 + first).repeat_interleave(self.config.group, 0)
        return Span(first, end, self.turns(torch.arange(first, stop))[None, :, None, None], mask[None])

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [rows, positions] -> hidden [rows, positions, width]."""
        return torch.nn.functional.embedding(tokens, self.embedding)

    def run(self, hidden: Tensor, cache: Cache, span: Span, blocks: Sequence[int], read: Tensor | None = None) -> Tensor:
        """Run these blocks over hidden [rows, positions, width], writing keys and values to the cache.

        `read` [rows, m] names the positions that are wanted after the last of them, and the result is [rows, m, width]: of its other positions that
        block needs only keys and values.
        """
        for i in blocks:
            hidden = self._block(i, hidden, cache, span, read if i == blocks[-1] else None)
        return hidden

    def head(self, hidden: Tensor, exit: int | None = None) -> Tensor:
        """hidden [..., width] after an exit's block (None: the last) -> logits [..., vocab] in float32."""
        gain, head = self.ends[self.config.exits[-1] if exit is None else exit]
        normed = (_unit(hidden, self._floor) * gain).to(self.dtype)
        return torch.nn.functional.linear(normed, head).float()

    def thought(self, hidden: Tensor, exit: int | None = None) -> Tensor:
        """What an exit's block has put out, hidden [rows, width], as an input of the first layer: normed, mapped from the head's space to that of the
        embedding, and as long as an embedded token is on average (LatentMAS, arXiv:2511.20639; where both are one matrix the map only drops what no
        token shows).
        """
        exit = self.config.exits[-1] if exit is None else exit
        gain, head = self.ends[exit]
        if exit not in self._back:
            self._back[exit] = torch.linalg.pinv(head.float()) @ self.embedding.float()
        mapped = _unit(hidden, self._floor) * gain @ self._back[exit]
        length = self.embedding.float().norm(dim=-1).mean()
        return (mapped * (length / mapped.norm(dim=-1, keepdim=True))).to(self.dtype)

    def over(self, hidden: Tensor, blocks: Sequence[int]) -> Tensor:
        """These blocks over whole sequences, without a cache to go on from: hidden [rows, positions, width] -> the same shape."""
        rows, positions, _ = hidden.shape
        cache = Cache.new(self.config, rows, positions, self.dtype, blocks)
        return self.run(hidden, cache, self.prompt_span(0, positions), blocks)

    def logits(self, tokens: Tensor, exit: int | None = None) -> Tensor:
        """One exit over full sequences: tokens [rows, positions] -> logits [rows, positions, vocab]."""
        with torch.inference_mode():
            return self.head(self.over(self.embed(tokens), self.config.path(exit)), exit)

    def _block(self, i: int, hidden: Tensor, cache: Cache, span: Span, read: Tensor | None) -> Tensor:
        c, layer = self.config, self.blocks[i]
        rows, positions, width = hidden.shape
        x = hidden.reshape(-1, width)  # [rows * positions, width]

        # 1. queries, keys and values by key/value head; queries and key are turned together
        qkv = _project(_unit(x, self._floor).to(self.dtype), layer.qkv, layer.qkv_bias).view(rows, positions, c.kv_heads, c.group + 2, c.head_dim)
        qk, v = qkv[:, :, :, :-1].float(), qkv[:, :, :, -1]
        if layer.qk_gain is not None:
            qk = _unit(qk, self._head_floor).mul_(layer.qk_gain)
        turned = torch.view_as_complex(qk.view(rows, positions, c.kv_heads, c.group + 1, c.head_dim // 2, 2)) * span.turn
        qk = torch.view_as_real(turned).view(rows, positions, c.kv_heads, c.group + 1, c.head_dim).to(self.dtype)
        q, k = qk[:, :, :, :-1], qk[:, :, :, -1]

        # 2. keys and values go to their columns
        columns = slice(span.first, span.first + positions)
        cache.k[i].view(rows, c.kv_heads, c.head_dim, -1)[..., columns] = k.permute(0, 2, 3, 1)
        cache.v[i].view(rows, c.kv_heads, -1, c.head_dim)[:, :, columns] = v.transpose(1, 2)
        if read is not None and not read.shape[1]:
            return hidden[:, :0]

        # 3. every query looks at the columns its mask leaves open
        q = q.transpose(1, 2).reshape(rows * c.kv_heads, positions * c.group, c.head_dim)
        scores = torch.baddbmm(span.mask, q, cache.k[i][:, :, : span.end], alpha=c.head_dim**-0.5)
        seen = torch.bmm(torch.softmax(scores, -1), cache.v[i][:, : span.end])  # [rows * kv_heads, positions * group, head_dim]
        seen = seen.view(rows, c.kv_heads, positions, c.group * c.head_dim).transpose(1, 2).reshape(rows, positions, -1)
        if read is not None:
            each, positions = torch.arange(rows)[:, None], read.shape[1]
            x, seen = hidden[each, read].view(-1, width), seen[each, read]
        x = _add_projected(x, seen.view(rows * positions, -1), layer.out, layer.out_bias)

        # 4. the gated inner layer
        inner = _project(_unit(x, self._floor).to(self.dtype), layer.gate_up, layer.gate_up_bias)
        inner = torch.nn.functional.silu(inner[:, : c.inner]).mul_(inner[:, c.inner :])
        return _add_projected(x, inner, layer.down, layer.down_bias).view(rows, positions, width)


def _unit(x: Tensor, floor: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + floor^2) over the last dimension, in float32: RMSNorm without its gain and without its factor sqrt(width)."""
    x = x.float()
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _add_projected(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    total = torch.addmm(residual, x, weight)
    return total if bias is None else total.add_(bias)


def _load_layer(c: DecoderConfig, take: Any, base: str, dtype: torch.dtype) -> Layer:
    """The block whose weights' names begin with `base`."""
    attention, mlp = f"{base}self_attn.", f"{base}mlp."
    q, kv, dim = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.head_dim
    # Turned pairs (j, j + dim/2) become neighbours (2j, 2j+1): a dot product does not mind, and a pair is then a complex number.
    pairs = torch.stack((torch.arange(dim // 2), torch.arange(dim // 2) + dim // 2), 1).flatten()

    def heads(name: str, n: int, *tail: int, turned: bool = True) -> Tensor:
        found = take(attention + name, n, *tail).unflatten(0, (c.kv_heads, -1, dim))
        return found[:, :, pairs] if turned else found

    def qkv(kind: str, *tail: int) -> Tensor:
        parts = heads(f"q_proj.{kind}", q, *tail), heads(f"k_proj.{kind}", kv, *tail), heads(f"v_proj.{kind}", kv, *tail, turned=False)
        return torch.cat(parts, 1).flatten(0, 2)

    def gate_up(kind: str, *tail: int) -> Tensor:
        return torch.cat([take(f"{mlp}gate_proj.{kind}", c.inner, *tail), take(f"{mlp}up_proj.{kind}", c.inner, *tail)])

    def behind(norm: str, matrix: Tensor) -> Tensor:
        gain = take(f"{base}{norm}.weight", c.width).float() * math.sqrt(c.width)
        return (matrix.float() * gain).t().to(dtype).contiguous()

    gains = [(take(f"{attention}{name}.weight", dim)[pairs].float() * math.sqrt(dim)).expand(n, dim)
             for name, n in (("q_norm", c.group), ("k_norm", 1)) if c.qk_norm]  # fmt: skip
    return Layer(
        qkv=behind("input_layernorm", qkv("weight", c.width)),
        qkv_bias=qkv("bias").to(dtype) if c.qkv_bias else None,
        qk_gain=torch.cat(gains) if gains else None,
        out=take(f"{attention}o_proj.weight", c.width, q).t().to(dtype).contiguous(),
        out_bias=take(f"{attention}o_proj.bias", c.width).to(dtype) if c.out_bias else None,
        gate_up=behind("post_attention_layernorm", gate_up("weight", c.width)),
        gate_up_bias=gate_up("bias").to(dtype) if c.mlp_bias else None,
        down=take(f"{mlp}down_proj.weight", c.width, c.inner).t().to(dtype).contiguous(),
        down_bias=take(f"{mlp}down_proj.bias", c.width).to(dtype) if c.mlp_bias else None,
    )


class _Reader:
    """Finds tensors by name over all files of a folder; reads one only when it is asked for."""

    def __init__(self, folder: str | Path, stack: ExitStack, keep: Keep = 1.0):
        self.folder, self.files, self.ranks = folder, open_weights(folder, stack), ranks(folder, keep)

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape; the weight of a decomposed layer is made from its factors."""
        tensor: Tensor
        if (layer := name.removesuffix(".weight")) in self.ranks:
            tensor = product(self.files, layer, self.ranks[layer])
        elif name in self.files:
            tensor = self.files[name].get_tensor(name)
        else:
            raise UserError(f"model folder {self.folder} has no weight '{name}', which its config.json calls for")
        if tuple(tensor.shape) != shape:
            raise UserError(f"model folder {self.folder}: weight '{name}' has shape {list(tensor.shape)}, config.json says {list(shape)}")
        return tensor
