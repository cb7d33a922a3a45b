"""Frames: a small typed header and raw bytes, the same on every wire.

    text      | kind: 1 byte | header length: 2 bytes | header: msgpack list | body: raw |
    others    | kind: 1 byte | header length: 1 byte  | header: msgpack list of whole numbers | body: raw | crc32: 4 bytes |

Nothing is ever unpickled. The size of a message is the length of its frame, never an estimate. Damaged text can be seen; a damaged tensor looks
like any other, so those frames end with a checksum. It also covers what both sides have agreed on (codec and calibration), which costs no further
byte: a frame for another codec is refused like a damaged one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import msgpack

from aiflow_agents.errors import AIFlowError

TEXT, HIDDEN, LOGITS, KV, HELLO, TOKENS, PICTURE, JPEG = 1, 2, 3, 4, 5, 6, 7, 8
_START = struct.Struct("<BH")
_SEAL = struct.Struct("<I")


class FrameError(AIFlowError):
    """These bytes are no frame of ours."""


class TextFrame(NamedTuple):
    """A text message as it came off the wire. `confidence` has 32 bits: 16 would make every very sure member equally sure."""

    id: str
    author: str
    text: str
    confidence: float | None


def encode_text(message_id: str, author: str, text: str, confidence: float | None) -> bytes:
    """Encode a text message. Confidence in [0, 1], or None. Raises FrameError when the names do not fit into a header."""
    header = msgpack.packb([message_id, author, confidence], use_single_float=True)
    if len(header) > 0xFFFF:
        raise FrameError(f"a header of {len(header)} bytes; id and author have room for {0xFFFF} together")
    return _START.pack(TEXT, len(header)) + header + text.encode(errors="surrogatepass")  # a terminal may hand over half a character


def decode_text(frame: bytes) -> TextFrame:
    """Decode a text frame. Raises FrameError for anything else, whatever the bytes."""
    if len(frame) < _START.size or frame[0] != TEXT:
        raise FrameError("not a text frame")
    end = _START.size + _START.unpack_from(frame)[1]
    if end > len(frame):
        raise FrameError("the frame ends inside its header")
    try:
        header = msgpack.unpackb(frame[_START.size : end], strict_map_key=True)
        text = frame[end:].decode(errors="surrogatepass")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FrameError(f"damaged frame: {error}") from None
    if not isinstance(header, list) or len(header) != 3:
        raise FrameError("damaged header: expected id, author and confidence")
    message_id, author, confidence = header
    if not (isinstance(message_id, str) and isinstance(author, str)):
        raise FrameError("damaged header: id and author must be text")
    if not (confidence is None or isinstance(confidence, float) and 0 <= confidence <= 1):
        raise FrameError("damaged header: confidence out of range")
    return TextFrame(message_id, author, text, confidence)


def encode_tokens(token_ids: Sequence[int], since: int = 0) -> bytes:
    """Encode token ids, for a receiver who has the same tokenizer: text would be cut into tokens anew, and perhaps otherwise.

    `since`: they follow the first so many tokens of a sequence, which the receiver has.
    """
    return seal(TOKENS, [since] if since else [], msgpack.packb(list(token_ids)))


def decode_tokens(frame: bytes) -> tuple[int, ...]:
    """Decode token ids, as `decode_part` does, of a whole sequence."""
    since, found = decode_part(frame)
    if since:
        raise FrameError("not a frame of tokens from the beginning")
    return found


def decode_part(frame: bytes) -> tuple[int, tuple[int, ...]]:
    """(how many tokens come before, token ids). Raises FrameError for anything else, whatever the bytes."""
    sealed = unseal(frame)
    try:
        found = msgpack.unpackb(sealed.body, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FrameError(f"damaged tokens: {error}") from None
    whole = isinstance(found, list) and all(type(token) is int and token >= 0 for token in found)
    if sealed.kind != TOKENS or len(sealed.header) > 1 or not whole:
        raise FrameError("not a frame of tokens")
    return sum(sealed.header), tuple(found)


class Sealed(NamedTuple):
    """A frame whose checksum is right."""

    kind: int
    header: list[int]
    body: bytes


def seal(kind: int, header: Sequence[int], body: bytes, agreed: bytes = b"") -> bytes:
    """Frame a body with a header of whole numbers; `agreed` is what sender and receiver know already and must have in common."""
    packed = msgpack.packb(list(header))
    if len(packed) > 0xFF:
        raise FrameError(f"a header of {len(packed)} bytes; there is room for 255")
    frame = bytes((kind, len(packed))) + packed + body
    return frame + _SEAL.pack(crc32(frame, crc32(agreed)))


def unseal(frame: bytes, agreed: bytes = b"") -> Sealed:
    """Open a sealed frame. Raises FrameError for anything else, whatever the bytes."""
    if len(frame) < 2 + _SEAL.size or 2 + frame[1] + _SEAL.size > len(frame):
        raise FrameError("the frame ends too early")
    content, end = frame[: -_SEAL.size], 2 + frame[1]
    if _SEAL.unpack(frame[-_SEAL.size :])[0] != crc32(content, crc32(agreed)):
        raise FrameError("wrong checksum: the frame is damaged, or was written with another codec or calibration")
    try:
        header = msgpack.unpackb(frame[2:end], strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FrameError(f"damaged header: {error}") from None
    if not isinstance(header, list) or not all(type(number) is int and number >= 0 for number in header):
        raise FrameError("damaged header: expected whole numbers")
    return Sealed(frame[0], header, content[end:])
