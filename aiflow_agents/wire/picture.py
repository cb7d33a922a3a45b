"""Pictures: what a camera has seen, and where it has to stay.

    picture   | camera, rows, columns | pixels: rows * columns * 3 bytes |      a sealed frame, see `wire.frame`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.frame import PICTURE, FrameError, seal, unseal
from aiflow_agents.wire.payload import PayloadError, _digest, _natural, _set

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
