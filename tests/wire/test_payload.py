from __future__ import annotations

import hashlib

import numpy as np
import pytest

from aiflow_agents.wire.payload import Hidden, KVCache, Logits, PayloadError

STATES = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_a_digest_is_that_of_the_content() -> None:
    digest = hashlib.sha256(b"hidden 2 0 (3, 4) " + STATES.astype("<f4").tobytes() + b" none ").hexdigest()
    assert Hidden(2, STATES).digest == digest
    same = [Hidden(2, STATES.astype(np.float64)), Hidden(2, np.asfortranarray(STATES))]
    assert {one.digest for one in same} == {digest}
    changed = STATES.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], 99)
    others = [Hidden(3, STATES), Hidden(2, changed), Hidden(2, STATES, np.arange(3)), Hidden(2, STATES, first=1), Hidden(2, STATES.reshape(4, 3))]
    kv = STATES.reshape(1, 3, 2, 2)
    others += [KVCache(0, kv, kv), KVCache(1, kv, kv), KVCache(0, kv, kv + 1), Logits(STATES), Logits.top(STATES, 2)]  # type: ignore[list-item]
    assert len({digest, *(one.digest for one in others)}) == 11


def test_top_logits_are_the_largest() -> None:
    top = Logits.top(np.array([[1, 5, 3, 5], [9, 0, 0, 0]], np.float32), 3)
    assert top.indices is not None and top.indices.tolist() == [[1, 3, 2], [0, 1, 2]] and top.values.tolist() == [[5, 5, 3], [9, 0, 0]]
    assert top.vocab == 4 and Logits(STATES).vocab == 4 and Logits.top(STATES, 99).values.shape == (3, 4)


def test_arrays_that_do_not_fit_are_refused() -> None:
    kv = np.zeros((2, 3, 2, 4))
    wrong = [
        lambda: Hidden(0, STATES[0]),
        lambda: Hidden(-1, STATES),
        lambda: Hidden(0, STATES, first=-1),
        lambda: Hidden(0, STATES, np.arange(4)),
        lambda: Hidden(0, STATES, np.array([0, -1, 2])),
        lambda: Hidden(0, STATES, np.array([0.5, 1, 2])),
        lambda: Logits(STATES, vocab=5),
        lambda: Logits(STATES, np.zeros((3, 3), int), 9),
        lambda: Logits(STATES, np.full((3, 4), 9), 9),
        lambda: KVCache(0, kv, kv[:1]),
        lambda: KVCache(0, kv[0], kv[0]),
    ]
    for make in wrong:
        with pytest.raises(PayloadError):
            make()
    assert KVCache(3, kv, kv).stop == 5
