"""The entropy coder: what goes in comes out, in less than a byte more than its models say, and in one way only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiflow_agents.wire.codecs.coder import Reader, Writer
from aiflow_agents.wire.codecs.symbols import categorical
from aiflow_agents.wire.frame import FrameError

counts = st.lists(st.integers(1, 60_000), min_size=2, max_size=9)


@settings(deadline=None)
@given(st.lists(st.tuples(counts, st.integers(0, 40)), max_size=6), st.integers(0, 2**32 - 1))
def test_symbols_come_back_and_take_less_than_a_byte_more_than_they_must(rows: list[tuple[list[int], int]], seed: int) -> None:
    rng, writer, bits, said = np.random.default_rng(seed), Writer(), 0.0, []
    for row, n in rows:
        p = np.array(row) / sum(row)
        symbols = rng.choice(len(row), n, p=p).astype(np.int32)
        said.append((categorical(np.array(row)), symbols))
        writer.put(symbols, said[-1][0])
        bits -= float(np.log2(p[symbols]).sum())
    body = writer.body()
    assert len(body) < 1.001 * bits / 8 + 1  # 24 bits of precision cost next to nothing
    reader = Reader(body)
    assert all(np.array_equal(reader.take(model, len(symbols)), symbols) for model, symbols in said)
    reader.done()


def test_what_is_nearly_certain_takes_no_byte_however_often_it_is_said() -> None:
    model, writer = categorical(np.array([60_000, 1])), Writer()
    writer.put(np.zeros(30_000, np.int32), model)
    assert writer.body() == b"" and not Reader(b"").take(model, 30_000).any()


@settings(deadline=None)
@given(st.binary(max_size=20), counts, st.integers(0, 60))
@example(b"\xff" * 12, [1, 1, 1], 5)  # beyond all symbols, as a third is no whole number of steps
@example(b"\1\0", [1, 1], 5)
@example(b"\0", [1, 1], 0)
def test_any_bytes_are_what_a_writer_leaves_or_refused(noise: bytes, row: list[int], n: int) -> None:
    model, again = categorical(np.array(row)), Writer()
    reader = Reader(noise)
    try:
        found: Any = reader.take(model, n)
        reader.done()
    except FrameError:
        return
    again.put(found, model)
    assert again.body() == noise


def test_a_body_that_has_more_to_say_is_refused() -> None:
    model, writer = categorical(np.array([5, 3, 1])), Writer()
    writer.put(np.arange(30, dtype=np.int32) % 3, model)
    body = writer.body()
    for wrong, n in ((body + b"\0", 30), (body + b"\1", 30), (body, 24)):
        reader = Reader(wrong)
        with pytest.raises(FrameError, match="not followed by their end|damaged"):
            reader.take(model, n)
            reader.done()
