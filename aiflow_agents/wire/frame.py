"""Frames: a few bytes of header and then what is said, the same on every wire.

    message   | kind and flags: 1 byte | author | id | confidence: 4 bytes, if any | text | or: text with its length, if any; a payload's frame |
    others    | kind: 1 byte | header: as many whole numbers as the kind has | body: raw | crc32: 4 bytes |

A whole number is a varint: seven bits a byte, the lowest first, the top bit where more follow. A name is its length and its letters; an id that is
the author's name and a number is that number alone. What both sides know is not sent again: a message that says nothing has no text, and what a
handshake or a codec has settled stands in no header.

Nothing is ever unpickled. The size of a message is the length of its frame, never an estimate. Damaged text can be seen; a damaged tensor looks
like any other, so those frames end with a checksum. It also covers what both sides have agreed on (codec and calibration), which costs no further
byte: a frame for another codec is refused like a damaged one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from aiflow_agents.errors import AIFlowError

VERSION = 2  # said in every hello, and beside remembered payloads: frames of other versions are not read
TEXT, HIDDEN, LOGITS, KV, HELLO, TOKENS, PICTURE, JPEG, STATES, WORDS = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
HEADERS = {HIDDEN: 3, STATES: 2, LOGITS: 4, KV: 5, HELLO: 1, TOKENS: 1, PICTURE: 3, JPEG: 5, WORDS: 1}  # how many whole numbers each has
SURE, NAMED, LOADED, SAID = 0x10, 0x20, 0x40, 0x80  # confidence there; id spelled out; a payload's frame follows; and text is before that
LONGEST = 10  # bytes of a whole number
_CONFIDENCE, _SEAL = struct.Struct("<f"), struct.Struct("<I")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


class FrameError(AIFlowError):
    """These bytes are no frame of ours."""


class TextFrame(NamedTuple):
    """A message as it came off the wire. `confidence` has 32 bits: 16 would make every very sure member equally sure. `payload` is a frame too."""

    id: str
    author: str
    text: str
    confidence: float | None
    payload: bytes = b""


def encode_text(message_id: str, author: str, text: str, confidence: float | None, *, loaded: bool = False) -> bytes:
    """Encode a message. Confidence in [0, 1], or None. `loaded`: this is its beginning, and the frame of a payload follows."""
    flags, words = TEXT, text.encode(errors="surrogatepass")  # a terminal may hand over half a character
    number = message_id[len(author) + 1 :] if message_id.startswith(f"{author}.") else ""
    if _NUMBER.fullmatch(number):
        names = _name(author) + varint(int(number))
    else:
        flags, names = flags | NAMED, _name(author) + _name(message_id)
    if confidence is not None:
        flags, names = flags | SURE, names + _CONFIDENCE.pack(confidence)
    if loaded:
        flags, names = flags | LOADED | (SAID if words else 0), names + (varint(len(words)) if words else b"")
    return bytes((flags,)) + names + words


def decode_text(frame: bytes) -> TextFrame:
    """Decode a message. Raises FrameError for anything else, whatever the bytes."""
    flags = frame[0] if frame else 0
    if flags & 0xF != TEXT or flags & SAID and not flags & LOADED:
        raise FrameError("not a message")
    author, at = _read_name(frame, 1)
    if flags & NAMED:
        message_id, at = _read_name(frame, at)
    else:
        number, at = read_varint(frame, at)
        message_id = f"{author}.{number}"
    confidence = None
    if flags & SURE:
        confidence, at = _CONFIDENCE.unpack(_part(frame, at, _CONFIDENCE.size))[0], at + _CONFIDENCE.size
        if not 0 <= confidence <= 1:
            raise FrameError("damaged message: confidence out of range")
    words, payload = frame[at:], b""
    if flags & LOADED:
        size, at = read_varint(frame, at) if flags & SAID else (0, at)
        words, payload = _part(frame, at, size), frame[at + size :]
        if not payload or flags & SAID and not words:
            raise FrameError("damaged message: what it says or brings is missing")
    found = TextFrame(message_id, author, _letters(words, "surrogatepass"), confidence, payload)
    if encode_text(*found[:4], loaded=bool(payload)) + payload != frame:
        raise FrameError("damaged message: it could be said in fewer bytes")
    return found


def encode_tokens(token_ids: Sequence[int], since: int = 0) -> bytes:
    """Encode token ids, for a receiver who has the same tokenizer: text would be cut into tokens anew, and perhaps otherwise.

    `since`: they follow the first so many tokens of a sequence, which the receiver has.
    """
    return seal(TOKENS, [since], b"".join(map(varint, token_ids)))


def decode_tokens(frame: bytes) -> tuple[int, ...]:
    """Decode token ids, as `decode_part` does, of a whole sequence."""
    since, found = decode_part(frame)
    if since:
        raise FrameError("not a frame of tokens from the beginning")
    return found


def decode_part(frame: bytes) -> tuple[int, tuple[int, ...]]:
    """(how many tokens come before, token ids). Raises FrameError for anything else, whatever the bytes."""
    sealed, found, at = unseal(frame), [], 0
    if sealed.kind != TOKENS:
        raise FrameError("not a frame of tokens")
    while at < len(sealed.body):
        token, at = read_varint(sealed.body, at)
        found.append(token)
    return sealed.header[0], tuple(found)


def encode_words(text: str, since: int = 0, ended: bool = False) -> bytes:
    """Encode what a draft says behind its first `since` characters, for a receiver who has these and another tokenizer. `ended`: nothing follows."""
    return seal(WORDS, [2 * since + ended], text.encode(errors="surrogatepass"))


def decode_words(frame: bytes) -> tuple[int, bool, str]:
    """(how many characters come before, whether nothing follows, text). Raises FrameError for anything else, whatever the bytes."""
    sealed = unseal(frame)
    if sealed.kind != WORDS:
        raise FrameError("not a frame of words")
    since, ended = divmod(sealed.header[0], 2)
    return since, bool(ended), _letters(sealed.body, "surrogatepass")


class Sealed(NamedTuple):
    """A frame whose checksum is right."""

    kind: int
    header: list[int]
    body: bytes


def seal(kind: int, header: Iterable[int], body: bytes, agreed: bytes = b"") -> bytes:
    """Frame a body with as many whole numbers as its kind has; `agreed` is what sender and receiver know already and must have in common."""
    frame = bytes((kind,)) + b"".join(map(varint, header)) + body
    return frame + _SEAL.pack(crc32(frame, crc32(agreed)))


def unseal(frame: bytes, agreed: bytes = b"") -> Sealed:
    """Open a sealed frame. Raises FrameError for anything else, whatever the bytes."""
    if len(frame) < 1 + _SEAL.size:
        raise FrameError("the frame ends too early")
    content, at, header = frame[: -_SEAL.size], 1, []
    if _SEAL.unpack(frame[-_SEAL.size :])[0] != crc32(content, crc32(agreed)):
        raise FrameError("wrong checksum: the frame is damaged, or was written with another codec or calibration")
    if frame[0] not in HEADERS:
        raise FrameError(f"no frame has the kind {frame[0]}")
    for _ in range(HEADERS[frame[0]]):
        number, at = read_varint(content, at)
        header.append(number)
    return Sealed(frame[0], header, content[at:])


def varint(number: int) -> bytes:
    """A whole number, not negative, in as few bytes as it needs."""
    if not 0 <= number < 1 << 7 * LONGEST:
        raise FrameError(f"{number} does not fit into a frame")
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def read_varint(frame: bytes, at: int) -> tuple[int, int]:
    """The whole number that begins there, and where the next thing begins. Raises FrameError, also for one that has more bytes than it needs."""
    number = 0
    for place, byte in enumerate(frame[at : at + LONGEST]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if place and not byte:
                break
            return number, at + place + 1
    raise FrameError("damaged frame: expected a whole number")


def _name(name: str) -> bytes:
    letters = name.encode()
    return varint(len(letters)) + letters


def _read_name(frame: bytes, at: int) -> tuple[str, int]:
    size, at = read_varint(frame, at)
    return _letters(_part(frame, at, size)), at + size


def _letters(found: bytes, errors: str = "strict") -> str:
    try:
        return found.decode(errors=errors)
    except ValueError as error:
        raise FrameError(f"damaged frame: {error}") from None


def _part(frame: bytes, at: int, size: int) -> bytes:
    if at + size > len(frame):
        raise FrameError("the frame ends too early")
    return frame[at : at + size]
