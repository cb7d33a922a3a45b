"""Ten thousand damaged payload frames: each gives a typed error or the payload that was sent, never another one."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from aiflow_agents.wire.codecs import Sample, codec, fit
from aiflow_agents.wire.frame import FrameError, encode_text
from aiflow_agents.wire.payload import Hidden, KVCache, Logits

FRAMES = 10_000


def payloads() -> list[Any]:
    draw = np.random.default_rng(3)
    states = draw.normal(size=(9, 16)).astype(np.float32)
    return [
        Hidden(2, states, np.arange(9)),
        Hidden(0, states[:0]),
        Logits.top(draw.normal(size=(3, 20)).astype(np.float32), 4),
        KVCache(0, *draw.normal(size=(2, 2, 5, 2, 4)).astype(np.float32)),
    ]


def mutations(frame: bytes, others: list[bytes], rng: Random, count: int) -> Iterator[bytes]:
    """Bits turned, bytes set, pieces cut out, doubled or put in, ends of other frames; a few at a time."""
    for _ in range(count):
        damaged = bytearray(frame)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(damaged) + 1)
            kind = rng.randrange(5)
            if kind == 0 and damaged:
                damaged[at % len(damaged)] ^= 1 << rng.randrange(8)
            elif kind == 1 and damaged:
                damaged[at % len(damaged)] = rng.choice((0, 0x7F, 0x80, 0xC1, 0xFF))
            elif kind == 2:
                del damaged[at : at + rng.randint(1, 8)]
            elif kind == 3:
                damaged[at:at] = damaged[at : at + rng.randint(1, 8)] or b"\x00"
            else:
                damaged[at:] = rng.choice(others)[at:]
        yield bytes(damaged)


@pytest.mark.parametrize("spec", ["float16", "klt:step=0.5+range", "merge:step=0.5"])
def test_a_damaged_frame_is_an_error_or_what_was_sent(spec: str) -> None:
    states = np.random.default_rng(1).normal(size=(500, 16)).astype(np.float32)
    coder = codec(spec) if spec == "float16" else fit(spec, dict.fromkeys(("hidden.2", "hidden.0"), Sample(states, lengths=np.full(50, 10))))
    sent = [one for one in payloads() if spec == "float16" or isinstance(one, Hidden)]
    frames = [coder.encode(one) for one in sent]
    others, rng, right = [*frames, encode_text("a.1", "a", "42", 0.5)], Random(7), 0
    for frame in frames:
        expected = coder.decode(frame).digest
        for damaged in mutations(frame, others, rng, FRAMES // (2 * len(frames))):
            try:
                found = coder.decode(damaged)
            except FrameError:
                assert damaged != frame
                continue
            if damaged == frame or damaged in frames:  # some damage undoes itself, or makes another whole frame
                right += 1
                continue
            assert found.digest == expected
    assert right < FRAMES // 4
