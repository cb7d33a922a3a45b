from __future__ import annotations

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiflow_agents.wire.frame import FrameError, TextFrame, decode_text, encode_text

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
texts = st.text(st.characters(), max_size=300)  # half characters too
confidences = st.none() | st.floats(0, 1, width=32)


@given(names, names, texts, confidences)
def test_what_goes_in_comes_out(id: str, author: str, text: str, confidence: float | None) -> None:
    assert decode_text(encode_text(id, author, text, confidence)) == TextFrame(id, author, text, confidence)


@given(st.floats(0, 1))
def test_confidence_keeps_32_bits(confidence: float) -> None:
    found = decode_text(encode_text("a", "b", "c", confidence)).confidence
    assert found == pytest.approx(confidence, rel=2**-24, abs=1e-44)
    assert found is not None and 0 <= found <= 1


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x01\x00\x00")
@example(b"\x01\xff\xff")
@example(b"\x01\x01\x00\x81")
@example(b"\x01\x04\x00\x93\xa0\xa0\xc3rest")  # a confidence of `true`
@example(b"\x01\x08\x00\x93\xa0\xa0\xca\x7f\xc0\x00\x00rest")  # not a number
@example(b"\x01\x08\x00\x93\xa0\xa0\xca\x40\x00\x00\x00rest")  # twice certain
@example(b"\x01\x09\x00\x83\xa1a\xc0\xa1b\xc0\xa1c\xc0")  # a map of three
@example(b"\x01\x08\x00\xd6\xff\x00\x00\x00\x00\xa0\xa0")  # a date and more
def test_any_bytes_are_a_frame_or_a_frame_error(noise: bytes) -> None:
    for frame in (noise, b"\x01" + noise, b"\x01" + len(noise).to_bytes(2, "little") + noise):
        try:
            found = decode_text(frame)
        except FrameError:
            continue
        assert isinstance(found.id, str) and isinstance(found.author, str) and isinstance(found.text, str)
        assert found.confidence is None or 0 <= found.confidence <= 1
        assert decode_text(encode_text(*found)) == found


@settings(max_examples=300)
@given(names, names, texts, confidences, st.data())
def test_a_damaged_frame_is_refused_or_says_something_decodable(id: str, author: str, text: str, confidence: float | None, data: st.DataObject) -> None:
    frame = bytearray(encode_text(id, author, text, confidence))
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
    assert decode_text(encode_text(*found)) == found
    if kind == "cut":  # only the text's end may be missing without anybody noticing: the frame's length is the wire's business
        assert (found.id, found.author, found.confidence) == (id, author, confidence) and text.startswith(found.text)


def test_nothing_that_could_run_is_read() -> None:
    for header in ([msgpack.ExtType(5, b"cbuiltins"), "b", None], [b"id", "b", None], ["a", "b"], {"a": 1}, "abc", 3, None):
        packed = msgpack.packb(header)
        with pytest.raises(FrameError):
            decode_text(b"\x01" + len(packed).to_bytes(2, "little") + packed)


def test_names_too_long_for_a_header() -> None:
    with pytest.raises(FrameError, match="room for 65535"):
        encode_text("x" * 70000, "b", "c", None)
