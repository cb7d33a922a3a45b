from __future__ import annotations

import struct

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from aiflow_agents.wire.frame import (
    FrameError,
    TextFrame,
    decode_part,
    decode_text,
    decode_tokens,
    encode_text,
    encode_tokens,
    read_varint,
    seal,
    varint,
)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
texts = st.text(st.characters(), max_size=300)  # half characters too
confidences = st.none() | st.floats(0, 1, width=32)
payloads = st.binary(max_size=40)


def written(found: TextFrame) -> bytes:
    """The one way to say this."""
    return encode_text(*found[:4], loaded=bool(found.payload)) + found.payload


@given(names, names, texts, confidences, payloads)
def test_what_goes_in_comes_out(id: str, author: str, text: str, confidence: float | None, payload: bytes) -> None:
    said = TextFrame(id, author, text, confidence, payload)
    assert decode_text(written(said)) == said


@given(names, st.integers(0, 10**18 - 1) | st.sampled_from(["", "01", "-1", "1_0", "\u0661", "1.2", str(10**30)]))
@example("", 0)
@example("a.1", 7)
def test_an_id_that_counts_its_author_is_a_number(author: str, number: int | str) -> None:
    frame = encode_text(f"{author}.{number}", author, "", None)
    assert decode_text(frame).id == f"{author}.{number}"
    counted, letters = isinstance(number, int), len(author.encode())
    if counted:
        assert len(frame) == 1 + len(varint(letters)) + letters + len(varint(int(number)))


def test_a_message_takes_no_byte_that_it_does_not_need() -> None:
    assert encode_text("ann.1", "ann", "42", None) == b"\x01\x03ann\x0142"
    assert encode_text("ann.300", "ann", "42", 0.5) == b"\x11\x03ann\xac\x02" + struct.pack("<f", 0.5) + b"42"
    assert encode_text("q0", "user", "7*8=", None) == b"\x21\x04user\x02q07*8="
    assert encode_text("ann.1", "ann", "", None, loaded=True) == b"\x41\x03ann\x01"  # says nothing, and brings something
    assert encode_text("ann.1", "ann", "42", None, loaded=True) == b"\xc1\x03ann\x01\x0242"


@given(st.floats(0, 1))
def test_confidence_keeps_32_bits(confidence: float) -> None:
    found = decode_text(encode_text("a", "b", "c", confidence)).confidence
    assert found == pytest.approx(confidence, rel=2**-24, abs=1e-44)
    assert found is not None and 0 <= found <= 1


@given(st.integers(0, 2**70 - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_a_whole_number_takes_seven_bits_a_byte(number: int, before: bytes, behind: bytes) -> None:
    assert len(varint(number)) == max(-(-number.bit_length() // 7), 1)
    assert read_varint(before + varint(number) + behind, len(before)) == (number, len(before) + len(varint(number)))


def test_a_number_that_is_none_is_refused() -> None:
    for wrong in (b"", b"\x80", b"\x80\x00", b"\xff" * 10 + b"\x01", b"\xff" * 10):  # cut, cut, longer than needed, too long
        with pytest.raises(FrameError, match="expected a whole number"):
            read_varint(wrong, 0)
    for number in (-1, 2**70):
        with pytest.raises(FrameError, match="does not fit"):
            varint(number)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x01")
@example(b"\x01\xff\xff")
@example(b"\x01\x01")  # a name that is missing
@example(b"\x01\x01\xff\x01")  # a name of half a character
@example(b"\x01\x80\x00\x01rest")  # a length in more bytes than it needs
@example(b"\x21\x00\x02.1rest")  # an id spelled out that need not be
@example(b"\x11\x00\x01\x00\x00\xc0\x7frest")  # not a number
@example(b"\x11\x00\x01\x00\x00\x00\x40rest")  # twice certain
@example(b"\x11\x00\x01\x00\x00\x00\x80rest")  # minus zero is zero, said otherwise
@example(b"\x41\x00\x01")  # a payload that is missing
@example(b"\x81\x00\x01\x01xrest")  # text with a length, and nothing behind it
@example(b"\xc1\x00\x01\x00rest")  # text that is empty
@example(b"\xc1\x00\x01\xff\xff\xff\xff\x7frest")  # text that is longer than all there is
def test_any_bytes_are_a_frame_or_a_frame_error(noise: bytes) -> None:
    for frame in (noise, *(bytes((flags | 1,)) + noise for flags in range(0, 256, 16))):
        try:
            found = decode_text(frame)
        except FrameError:
            continue
        assert isinstance(found.id, str) and isinstance(found.author, str) and isinstance(found.text, str) and isinstance(found.payload, bytes)
        assert found.confidence is None or 0 <= found.confidence <= 1
        assert written(found) == frame  # nothing is said in two ways


@settings(max_examples=300)
@given(names, names, texts, confidences, payloads, st.data())
def test_a_damaged_frame_is_refused_or_says_something_decodable(
    id: str, author: str, text: str, confidence: float | None, payload: bytes, data: st.DataObject
) -> None:
    frame = bytearray(written(TextFrame(id, author, text, confidence, payload)))
    kind = data.draw(st.sampled_from(["cut", "flip", "insert"]))
    at = data.draw(st.integers(0, len(frame) - 1))
    if kind == "cut":
        frame = frame[:at]
    elif kind == "flip":
        frame[at] ^= data.draw(st.integers(1, 255))
    else:
        frame[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    try:
        found = decode_text(bytes(frame))
    except FrameError:
        return
    assert written(found) == bytes(frame)
    if kind == "cut":  # only the end may be missing without anybody noticing: the frame's length is the wire's business
        assert (found.id, found.author, found.confidence) == (id, author, confidence)
        assert text.startswith(found.text) and payload.startswith(found.payload) and (not payload or found.text == text)


@given(st.lists(st.integers(0, 2**40), max_size=20), st.binary(min_size=1, max_size=20))
def test_tokens_come_back_and_noise_is_refused(tokens: list[int], noise: bytes) -> None:
    frame = encode_tokens(tokens)
    assert decode_part(encode_tokens(tokens, 7)) == (7, tuple(tokens))
    assert decode_tokens(frame) == tuple(tokens) and len(frame) == 6 + sum(len(varint(token)) for token in tokens)
    assume(noise[-1] >= 0x80)  # a body that ends in the middle of a number
    for wrong in (noise, frame[:-1], seal(6, [0], noise), encode_tokens(tokens, 3), seal(2, [1, 2, 3], b""), b""):
        with pytest.raises(FrameError):
            decode_tokens(wrong)
