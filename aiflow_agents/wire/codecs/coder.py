"""The entropy coder: symbols and their models in, as few bytes as these models allow out, and back.

A range coder (Martin 1979; `constriction`), which writes words of 32 bits. Symbols are a point in an interval that grows narrower with each of them,
and any point in it will do. So the shortest string of bytes that, followed by zeros for ever, lies in it is what travels: less than a byte over what
the model says. A word more or less would be a fifth of a small message.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aiflow_agents.wire.frame import FrameError

STATE = 64  # bits of the interval's lower end and width


class Writer:
    """Symbols go in as they will come out."""

    def __init__(self) -> None:
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: Any, model: Any, *parameters: Any) -> None:
        """One symbol, or an array of them with one model or, with `parameters`, a row of these for each."""
        self._coder.encode(symbols, model, *parameters)

    def body(self) -> bytes:
        """All that was put in."""
        words, (lower, width) = self._coder.pos()
        size = 4 * words + STATE // 8
        inside = int.from_bytes(self._coder.get_compressed().astype(">u4").tobytes().ljust(size, b"\0")[:size], "big")
        low = inside - (inside - lower) % (1 << STATE)  # the whole lower end, of which the coder tells the last bits
        cut = (width.bit_length() - 1) // 8 * 8
        point = -(-low >> cut) << cut
        while cut < 8 * size and (rounder := -(-low >> cut + 8) << cut + 8) < low + width:
            cut, point = cut + 8, rounder
        return point.to_bytes(size, "big").rstrip(b"\0")


class Reader:
    """Raises FrameError for bytes that no writer leaves."""

    def __init__(self, body: bytes):
        import constriction

        self._body, self._again = body, Writer()
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(body + bytes(-len(body) % 4), ">u4").astype(np.uint32))

    def take(self, model: Any, *asked: Any) -> Any:
        """The next symbol; with a number so many; with parameters, as in `put`, one for each row of these."""
        try:
            found = self._coder.decode(model, *asked)
        except AssertionError:  # a point beyond all symbols
            raise FrameError("damaged entropy-coded symbols") from None
        self._again.put(found, model, *(one for one in asked if not isinstance(one, int)))
        return found

    def done(self) -> None:
        """All symbols are read. Raises FrameError where a writer would have left other bytes for them: more, or fewer."""
        if self._again.body() != self._body:
            raise FrameError("entropy-coded symbols are not followed by their end")
