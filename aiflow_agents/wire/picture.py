"""Pictures: what a camera has seen, and where it has to stay.

    picture   | camera, rows, columns | pixels: rows * columns * 3 bytes |                             a sealed frame, see `wire.frame`
    jpeg      | camera, rows, columns, quality, subsampling | scan: entropy-coded data alone |

A whole JPEG file of a tiny picture is nearly all tables. So both sides have agreed on them: on the standard's own Huffman tables (ITU-T T.81, annex
K), and on quantisation tables that follow from the quality, as libjpeg makes them. Only the scan travels (the standard's abbreviated format, without
markers), and only that and its header are counted.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.frame import JPEG, PICTURE, FrameError, seal, unseal
from aiflow_agents.wire.payload import PayloadError, _digest, _natural, _set

QUALITIES = (1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 24, 30, 38, 47, 58, 70, 80, 88, 94, 98)
SUBSAMPLINGS = (0, 2)  # 4:4:4 and 4:2:0
MAX_PIXELS = 1 << 24  # what a small frame may make a receiver allocate


class Private(NamedTuple):
    """Something stays at a node, and so does what is derived from it, but for what is released: `answer`, `features`, `tokens`, `logits`."""

    node: str
    released: tuple[str, ...] = ("answer", "features")


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: [rows, columns, 3], 8 bits a number. `camera` is the place among several that look at one scene. Equal where the content is."""

    pixels: NDArray[np.uint8]
    camera: int = 0

    def __post_init__(self) -> None:
        given = np.asarray(self.pixels)
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3:
            raise PayloadError(f"pixels must be [rows, columns, 3] of 8 bits, not {list(given.shape)} of {given.dtype}")
        _set(self, pixels=np.ascontiguousarray(given))
        _natural(camera=self.camera)

    @cached_property
    def digest(self) -> str:
        return _digest("picture", self.camera, 0, self.pixels)

    @property
    def nbytes(self) -> int:
        """Bytes of its frame."""
        return len(encode_picture(self))

    def jpeg(self, budget: int) -> Jpeg:
        """This picture in at most so many bytes; made once."""
        if budget not in self._jpegs:
            self._jpegs[budget] = Jpeg(encode_jpeg(self, budget))
        return self._jpegs[budget]

    @cached_property
    def _jpegs(self) -> dict[int, Jpeg]:
        return {}

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def encode_picture(picture: Picture) -> bytes:
    """The frame that travels where it may."""
    rows, columns, _ = picture.pixels.shape
    return seal(PICTURE, [picture.camera, rows, columns], picture.pixels.tobytes())


def decode_picture(frame: bytes) -> Picture:
    """Decode a picture. Raises FrameError for anything else, whatever the bytes."""
    sealed = unseal(frame)
    if sealed.kind != PICTURE or len(sealed.header) != 3:
        raise FrameError("not a frame of a picture")
    camera, rows, columns = sealed.header
    if rows * columns > MAX_PIXELS or len(sealed.body) != rows * columns * 3:
        raise FrameError(f"{len(sealed.body)} bytes of pixels, expected {rows} * {columns} * 3")
    return Picture(np.frombuffer(sealed.body, np.uint8).reshape(rows, columns, 3), camera)


@dataclass(frozen=True, eq=False)
class Jpeg:
    """A picture as JPEG, ready to travel. `coded` is its frame."""

    coded: bytes

    @cached_property
    def picture(self) -> Picture:
        """What a receiver sees of it."""
        return decode_jpeg(self.coded)

    @cached_property
    def digest(self) -> str:
        return _digest("jpeg", 0, 0, np.frombuffer(self.coded, np.uint8))

    @property
    def nbytes(self) -> int:
        return len(self.coded)


def encode_jpeg(picture: Picture, budget: int) -> bytes:
    """The frame of at most `budget` bytes that comes nearest to the picture by squared error: the highest quality that fits, with or without colour
    thinned out. Where none is so small, the smallest."""
    rows, columns, _ = picture.pixels.shape

    def made(place: int, subsampling: int) -> bytes:
        quality = QUALITIES[place]
        return seal(JPEG, [picture.camera, rows, columns, quality, subsampling], _compressed(picture.pixels, quality, subsampling)[1])

    best = [made(bisect_right(QUALITIES, budget, 1, key=lambda q: len(made(QUALITIES.index(q), way))) - 1, way) for way in SUBSAMPLINGS]
    fitting = [frame for frame in best if len(frame) <= budget]
    if not fitting:
        return encode_jpeg(picture, min(map(len, best)))
    return min(fitting, key=lambda frame: float(((decode_jpeg(frame).pixels.astype(np.float32) - picture.pixels) ** 2).sum()))


def decode_jpeg(frame: bytes) -> Picture:
    """Decode a picture. Raises FrameError for anything else, whatever the bytes."""
    from PIL import Image, UnidentifiedImageError

    sealed = unseal(frame)
    if sealed.kind != JPEG or len(sealed.header) != 5:
        raise FrameError("not a frame of a JPEG")
    camera, rows, columns, quality, subsampling = sealed.header
    if not 0 < rows * columns <= MAX_PIXELS or max(rows, columns) > 0xFFFF or not 1 <= quality <= 100 or subsampling not in SUBSAMPLINGS:
        raise FrameError("damaged JPEG: its header makes no sense")
    if b"\xff" in sealed.body.replace(b"\xff\0", b""):
        raise FrameError("damaged JPEG: a marker within its scan")
    head, _ = _compressed(np.zeros((rows, columns, 3), np.uint8), quality, subsampling)
    try:
        with Image.open(io.BytesIO(head + sealed.body + b"\xff\xd9")) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise FrameError(f"damaged JPEG: {error}") from None
    return Picture(pixels, camera)


def _compressed(pixels: NDArray[np.uint8], quality: int, subsampling: int) -> tuple[bytes, bytes]:
    """A baseline JPEG in two parts: all that is agreed on, which does not depend on the pixels, and the scan."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    whole, at = file.getvalue(), 2
    while whole[at + 1] != 0xDA:  # segment by segment, up to the start of the scan
        at += 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
    at += 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
    return whole[:at], whole[at:-2]
