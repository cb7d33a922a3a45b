"""What one call costs on a node: `overhead + max(bytes / bandwidth, FLOPs / rate)` per phase, and the energy of being busy that long.

`call_s` is paid once, by the first pass.

The roofline of one request at a time: the prompt reads the weights once, every generated token after the first reads them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import UnknownName, UserError


class Computes(Protocol):
    """What pricing needs to know of a node (`net.network.Node` has it)."""

    @property
    def flops_rate(self) -> float: ...
    @property
    def bandwidth_Bps(self) -> float: ...
    @property
    def overhead_s(self) -> float: ...
    @property
    def call_s(self) -> float: ...
    @property
    def power_w(self) -> float: ...
    @property
    def slots(self) -> int: ...


@dataclass(frozen=True, slots=True)
class CallCost:
    """One call on an idle node, in seconds and joules."""

    prefill_s: float
    decode_s: float
    energy_j: float

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s


def price_call(
    node: Computes,
    *,
    prefill_flops: float,
    decode_flops: float,
    weight_bytes: float,
    steps: int,
    prefill_bytes: float | None = None,
    cache_bytes: float = 0.0,
) -> CallCost:
    """Price one call.

    `steps` counts the passes that follow the prompt's, which makes the first token itself: generated tokens - 1. `weight_bytes` are read once
    per pass (`prefill_bytes` instead for the prompt's pass, if given), `cache_bytes` in all of decoding on top (the KV cache, where it counts).
    Raises ValueError for a negative number.
    """
    if min(prefill_flops, decode_flops, weight_bytes, steps, prefill_bytes or 0.0, cache_bytes) < 0:
        raise ValueError("a call's FLOPs, bytes and steps must not be negative")
    read = weight_bytes if prefill_bytes is None else prefill_bytes
    prefill_s = node.call_s + node.overhead_s + max(read / node.bandwidth_Bps, prefill_flops / node.flops_rate)
    decode_s = 0.0
    if steps:
        decode_s = steps * node.overhead_s + max((steps * weight_bytes + cache_bytes) / node.bandwidth_Bps, decode_flops / node.flops_rate)
    return CallCost(prefill_s, decode_s, energy_j(node, prefill_s + decode_s))


def energy_j(node: Computes, busy_s: float) -> float:
    """Joules of one call that holds a slot for so long, also of one that was cancelled half-way.

    A slot is billed its share of the node's power: `power_w` is what the node draws with all slots busy.
    """
    return node.power_w / node.slots * busy_s


@dataclass(frozen=True, slots=True)
class ShapeNumbers:
    """The shape of a published decoder, field for field that of `models.protocol.Shape`, for `costs_as`.

    Parameters without the input embedding; `head_params` is the output projection, tied or not; norms are counted in `block_params`.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    block_params: int
    head_params: int
    vocab: int
    dtype_bytes: float = 2  # bfloat16, as published


@dataclass(frozen=True, slots=True)
class _Config:
    """What a model's `config.json` says."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab: int
    qk_norm: bool


# Source: `config.json` of Qwen/Qwen3-0.6B ... 32B, meta-llama/Meta-Llama-3-8B and -70B, Llama-3.2-1B and -3B on huggingface.co.
_CONFIGS = {
    "qwen3-0.6b": _Config(28, 1024, 16, 8, 128, 3072, 151936, True),
    "qwen3-1.7b": _Config(28, 2048, 16, 8, 128, 6144, 151936, True),
    "qwen3-4b": _Config(36, 2560, 32, 8, 128, 9728, 151936, True),
    "qwen3-8b": _Config(36, 4096, 32, 8, 128, 12288, 151936, True),
    "qwen3-14b": _Config(40, 5120, 40, 8, 128, 17408, 151936, True),
    "qwen3-32b": _Config(64, 5120, 64, 8, 128, 25600, 151936, True),
    "llama-3.2-1b": _Config(16, 2048, 32, 8, 64, 8192, 128256, False),
    "llama-3.2-3b": _Config(28, 3072, 24, 8, 128, 8192, 128256, False),
    "llama-3-8b": _Config(32, 4096, 32, 8, 128, 14336, 128256, False),
    "llama-3-70b": _Config(80, 8192, 64, 8, 128, 28672, 128256, False),
}


def named_shape(name: str) -> ShapeNumbers:
    """The shape that `costs_as: qwen3-8b` means; `qwen3-8b@4` has 4 bits a weight instead of 16. Raises UnknownName with the nearest ones, and
    UserError for bits that are none.

    Counted from the published configuration: per layer q, k, v and o projections, a gated feed-forward of three matrices, two norms (and Qwen3's
    norms of q and k), and one norm at the end.
    """
    known, _, bits = name.lower().partition("@")
    c = _CONFIGS.get(known)
    if c is None:
        raise UnknownName("shape", known, _CONFIGS)
    if bits not in ("", "2", "3", "4", "5", "6", "8", "16", "32"):
        raise UserError(f"costs_as {name}: {bits!r} bits a weight; expected 2 to 8, 16 or 32, such as {known}@4")
    size = int(bits or 16) / 8
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + (2 * c.head_dim if c.qk_norm else 0)
    layer = attention + 3 * c.width * c.feed_forward + 2 * c.width
    return ShapeNumbers(c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.layers * layer + c.width, c.width * c.vocab, c.vocab, size)


def shape_names() -> list[str]:
    """The names that `named_shape` knows."""
    return sorted(_CONFIGS)
