"""Token ids in fewer bits than they have: a table of which token follows which, counted on calibration text and shipped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aiflow_agents.wire.codecs.coder import Reader, Writer
from aiflow_agents.wire.codecs.sample import Sample
from aiflow_agents.wire.codecs.stored import Arrays, Stored
from aiflow_agents.wire.codecs.symbols import categorical
from aiflow_agents.wire.frame import FrameError
from aiflow_agents.wire.payload import Ints

LARGEST = 4096  # a vocabulary beyond this has no such table: it would outweigh what it saves


@dataclass(frozen=True, eq=False)
class TokenModel:
    """counts: [vocab + 1, vocab + 1] uint16, of the token after each. The last row is for the first token, the last column for any other token."""

    counts: NDArray[np.uint16]

    @classmethod
    def fit(cls, sample: Sample) -> TokenModel | None:
        """None where the sample has no text, or one of too many tokens."""
        if sample.token_ids is None or sample.lengths is None or sample.token_ids.max(initial=0) >= LARGEST:
            return None
        vocab = int(sample.token_ids.max(initial=0)) + 1
        before = np.concatenate([[vocab], sample.token_ids[:-1]])
        before[np.concatenate([[0], sample.lengths.cumsum()[:-1]])] = vocab
        pairs, alone = np.zeros((vocab + 1, vocab + 1)), np.bincount(sample.token_ids, minlength=vocab + 1)
        np.add.at(pairs, (before, sample.token_ids), 1)
        pairs += 5 * (alone + 0.1) / (alone + 0.1).sum()  # what never followed is as likely as it is anywhere, with the weight of five
        return cls(np.maximum(np.round(pairs / pairs.sum(1, keepdims=True) * 60_000), 1).astype(np.uint16))

    @classmethod
    def restore(cls, stored: Stored) -> TokenModel:
        counts = stored.take("pairs", "uint16", None, None)
        if len(counts) < 2 or counts.shape[0] != counts.shape[1] or not counts.all():
            raise stored.error("pairs", "must be square and have no zero")
        return cls(counts)

    def arrays(self) -> Arrays:
        return {"pairs": self.counts}

    @property
    def vocab(self) -> int:
        return len(self.counts) - 1

    def pack(self, ids: Ints) -> bytes:
        coder, inside = Writer(), np.minimum(ids, self.vocab)
        for i in range(len(ids)):
            coder.put(int(inside[i]), self._model(int(inside[i - 1]) if i else self.vocab))
            if inside[i] == self.vocab:
                coder.put(np.array([ids[i] & 0xFFFF, ids[i] >> 16], np.int32), self._any16)
        return coder.body()

    def unpack(self, body: bytes, positions: int) -> Ints:
        """Raises FrameError for what `pack` does not make."""
        coder, ids, last = Reader(body), np.zeros(positions, np.int64), self.vocab
        for i in range(positions):
            last = int(coder.take(self._model(last)))
            ids[i] = last
            if last == self.vocab:
                low, high = coder.take(self._any16, 2)
                ids[i] = int(high) << 16 | int(low)
                if ids[i] < self.vocab:
                    raise FrameError("a token that needs no escape")
        coder.done()
        return ids

    def _model(self, last: int) -> Any:
        if last not in self._models:
            self._models[last] = categorical(self.counts[last])
        return self._models[last]

    @cached_property
    def _models(self) -> dict[int, Any]:
        return {}

    @cached_property
    def _any16(self) -> Any:
        import constriction

        return constriction.stream.model.Uniform(1 << 16)
