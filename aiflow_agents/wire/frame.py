"""Frames: a small typed header and raw bytes, the same on every wire.

    | kind: 1 byte | header length: 2 bytes | header: msgpack list | body: raw |

Nothing is ever unpickled. The size of a message is the length of its frame, never an estimate.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgpack

from aiflow_agents.errors import AIFlowError

TEXT = 1
_START = struct.Struct("<BH")


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
