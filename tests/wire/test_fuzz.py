"""Payload frames on a bad wire: a typed error or the right payload, never a crash, a hang or another tensor."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from zlib import crc32

import numpy as np
import pytest

from aiflow_agents.wire.codecs import Codec, Sample, codec, fit
from aiflow_agents.wire.frame import HEADERS, VERSION, FrameError, seal, unseal, varint
from aiflow_agents.wire.handshake import Identity, hello, read_hello
from aiflow_agents.wire.payload import Hidden, KVCache, Logits, Payload

SPECS = ("float32", "float16", "bfloat16", "int8", "int4+range", "hadamard", "klt:step=0.3+range", "klt:step=0.02+range", "outliers:channels=2+range", "predict:boundary=2")


@pytest.fixture(scope="module")
def sent(make_sample: Callable[..., Sample]) -> list[tuple[Codec, bytes, str]]:
    """Codecs, frames of theirs, and the digest of what is in them."""
    sample = make_sample(8)
    assert sample.token_ids is not None
    rows = sample.states[:8].reshape(2, 4, 2, 4)
    payloads: list[Payload] = [Hidden(3, sample.states[:9], sample.token_ids[:9]), Hidden(3, sample.states[:1], sample.token_ids[:1], 4), Hidden(3, sample.states[:0], sample.token_ids[:0])]
    raw: list[Payload] = [KVCache(0, rows, rows + 1), Logits(sample.states[:4]), Logits.top(sample.states[:4], 2)]
    found = []
    for spec in SPECS:
        one = fit(spec, {"hidden.3": sample})
        for payload in payloads + (raw if spec in ("float32", "float16", "bfloat16") else []):
            frame = one.encode(payload)
            found.append((one, frame, one.decode(frame).digest))
    return found


def mutations(frame: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, bytes, cuts, insertions, swaps, repeats."""
    found = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, kind = rng.randrange(len(found) + 1), rng.randrange(7)
        if kind == 0 and found:
            found[at % len(found)] ^= 1 << rng.randrange(8)
        elif kind == 1 and found:
            found[at % len(found)] = rng.randrange(256)
        elif kind == 2:
            found = found[:at]
        elif kind == 3:
            found[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind == 4:
            del found[at : at + rng.randint(1, 9)]
        elif kind == 5:
            other = rng.randrange(len(found) + 1)
            found[at : at + 2], found[other : other + 2] = found[other : other + 2], found[at : at + 2]
        else:
            found += found[at:]
    return bytes(found)


def outcomes(sent: list[tuple[Codec, bytes, str]], count: int, seed: int, reseal: bool = False) -> Iterator[tuple[str, str]]:
    """(digest that was sent, what became of it) for `count` damaged frames. `reseal`: by somebody who knows how to write a checksum."""
    rng = random.Random(seed)
    for _ in range(count):
        one, frame, digest = rng.choice(sent)
        damaged = mutations(frame[:-4] if reseal else frame, rng)
        if reseal:
            damaged += crc32(damaged, crc32(one.fingerprint)).to_bytes(4, "little")
        try:
            found = one.decode(damaged)
        except FrameError:
            yield digest, "refused"
            continue
        assert isinstance(found, Hidden | Logits | KVCache)
        yield digest, found.digest


def test_a_damaged_frame_is_refused_or_right(sent: list[tuple[Codec, bytes, str]], count: int = 1000) -> None:
    found = list(outcomes(sent, count, seed=count))
    assert all(became in ("refused", digest) for digest, became in found)
    assert 0.9 * count < sum(became == "refused" for _, became in found) < count  # a swap may change nothing, and then all is well


def test_somebody_who_forges_the_checksum_gets_no_further_than_a_payload(sent: list[tuple[Codec, bytes, str]], count: int = 1000) -> None:
    """Whoever writes a frame decides what is in it; it must still be a payload of a sane size, or an error."""
    found = list(outcomes(sent, count, seed=count + 1, reseal=True))
    assert {"refused"} < {became for _, became in found}


def test_what_a_frame_says_is_checked_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small frame that speaks of a billion numbers."""
    plain = codec("float16")
    frames = [
        seal(9, [0, 1 << 31], varint(0) + varint(1 << 31), plain.fingerprint),
        seal(2, [0, 0, 1], varint(0) + varint(1 << 62), plain.fingerprint),
        seal(3, [1 << 40, 1 << 20, 1 << 20, 4], b"", plain.fingerprint),
        seal(4, [0, 1 << 20, 1 << 10, 1 << 10, 1 << 10], b"", plain.fingerprint),
        seal(4, [0, 1 << 20, 0, 0, 0], b"", plain.fingerprint),
    ]
    for name in ("zeros", "empty", "frombuffer", "stack"):
        monkeypatch.setattr(np, name, lambda *_, **__: pytest.fail("took memory"))
    for frame in frames:
        with pytest.raises(FrameError, match="numbers; this receiver takes|too early|ends within"):
            plain.decode(frame)


def test_headers_hold_whole_numbers_and_nothing_else() -> None:
    def opened(content: bytes) -> object:
        return unseal(content + crc32(content, crc32(b"")).to_bytes(4, "little"))

    for kind, count in HEADERS.items():
        for last in (b"", b"\x80", b"\x80\x00", b"\xff" * 12):  # missing, cut, longer than needed, too long
            if count:
                with pytest.raises(FrameError, match="whole number"):
                    opened(bytes((kind,)) + b"\x01" * (count - 1) + last)
        assert opened(bytes((kind,)) + b"\x01" * count + b"\x80") == (kind, [1] * count, b"\x80")
    for kind in set(range(256)) - set(HEADERS):
        with pytest.raises(FrameError, match=f"no frame has the kind {kind}"):
            opened(bytes((kind,)) + b"\x01" * 9)
    assert unseal(seal(9, [1, 2**40], b"abc")) == (9, [1, 2**40], b"abc")
    with pytest.raises(FrameError, match="checksum"):
        unseal(seal(9, [1, 2], b"abc", b"agreed"), b"on something else")


def test_a_damaged_hello_is_refused_or_right() -> None:
    me = Identity("willow", "ab" * 32, "cd" * 32, "float32", 128, 8)
    frame, rng = hello(me, {"klt": b"12345678"}), random.Random(0)
    refused = 0
    for _ in range(2000):
        try:
            assert read_hello(mutations(frame, rng)) == (me, {"klt": b"12345678"})
        except FrameError:
            refused += 1
    assert refused > 1800
    for body in (b"", b"\xc1", b"\x90", frame[2:-4] + b"\0"):
        with pytest.raises(FrameError, match="damaged hello"):
            read_hello(seal(5, [VERSION], body))
    with pytest.raises(FrameError, match="not a hello"):
        read_hello(seal(6, [0], b""))
    with pytest.raises(FrameError, match="a hello of version 1; this side speaks version 2"):
        read_hello(seal(5, [1], frame[2:-4]))  # as frames began before
