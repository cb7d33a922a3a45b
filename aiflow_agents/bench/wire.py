"""What a codec does to hidden states that travel: bytes, and what the model that goes on from them still knows.

A message is one text: a question of the test split and its right answer, as far as the model reads it, at the input of one layer. Every state of it
is coded, sent as a frame, decoded, and gone on from. Because codecs are causal, what the model says at each place of the answer is what it would
say after greedy tokens that were right so far, so a text is answered rightly exactly if all its answer tokens are the most likely ones.

    bits          of whole frames (header, checksum, token ids where the codec needs them, body) for each number of the states
    told          the same where the receiver has the token ids already
    body          the body alone: what ever longer messages come down to
    single        one position a message, the positions before it known: a relay that sends each new token's state
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aiflow_agents.evals.statistics import tango, wilson
from aiflow_agents.skills.splits import Question
from aiflow_agents.training.cut import Cut, Texts, texts
from aiflow_agents.wire.codecs import Codec
from aiflow_agents.wire.payload import Hidden

SINGLES = 20  # texts that are also sent position by position


class Reference(NamedTuple):
    """One batch of texts, its exact states at the cut, and what the model says to them."""

    texts: Texts
    states: Tensor  # [rows, positions, width]
    said: Tensor  # [rows, positions, vocab], log-probabilities


def references(cut: Cut, questions: Sequence[Question]) -> list[Reference]:
    """What every codec is compared with."""
    found = []
    with torch.inference_mode():
        for batch in texts(questions):
            states = cut.below(batch.ids)
            found.append(Reference(batch, states, cut.above(states).log_softmax(-1)))
    return found


def bench_codec(cut: Cut, codec: Codec, exact: Sequence[Reference]) -> dict[str, Any]:
    """Send every text through one codec.

    Returns `codec, fidelity, messages, numbers, message_bytes, bits, told_bits, body_bits, single_bits, agreement{answers, all}, kl{answers, all}
    (nats a token), accuracy{exact, coded, lost, lost_ci95}, encode_ms, decode_ms` (medians a message, one thread).
    """
    sent, score = _Sent(), Score()
    for batch in exact:
        rows = batch.states.shape[0]
        decoded = torch.zeros_like(batch.states)
        for row in range(rows):
            n = int(batch.texts.present[row].sum())
            message = Hidden(cut.layer, batch.states[row, :n].numpy(), batch.texts.ids[row, :n].numpy())
            decoded[row, :n] = torch.from_numpy(sent.through(codec, message))
        with torch.inference_mode():
            said = cut.above(decoded).log_softmax(-1)
            score.compare(batch.said, said, batch.texts.targets, {"answers": batch.texts.answers, "all": batch.texts.present})
    return {"codec": codec.spec, "fidelity": codec.fidelity(), **sent.summary(), **score.summary()}


class _Sent:
    """Frames counted and timed."""

    def __init__(self) -> None:
        self.frames, self.told, self.body, self.numbers = 0, 0, 0, 0
        self.single, self.single_numbers = 0, 0
        self.encode_s: list[float] = []
        self.decode_s: list[float] = []

    def through(self, codec: Codec, message: Hidden) -> np.ndarray:
        """The states as they arrive."""
        carried = message if codec.needs_tokens else Hidden(message.layer, message.states)
        start = time.perf_counter()
        frame = codec.encode(carried)
        middle = time.perf_counter()
        found = codec.decode(frame)
        end = time.perf_counter()
        assert isinstance(found, Hidden)
        told = codec.encode(carried, told=True)
        self.frames, self.told, self.body = self.frames + len(frame), self.told + len(told), self.body + len(told) - codec.overhead(carried)
        self.numbers += message.states.size
        if len(self.encode_s) < SINGLES:
            self._one_by_one(codec, carried)
        self.encode_s.append(middle - start)
        self.decode_s.append(end - middle)
        return found.states

    def _one_by_one(self, codec: Codec, message: Hidden) -> None:
        before = Hidden(message.layer, message.states[:0], None if message.token_ids is None else message.token_ids[:0])
        for t in range(len(message.states)):
            ids = None if message.token_ids is None else message.token_ids[: t + 1]
            frame = codec.encode(Hidden(message.layer, message.states[t : t + 1], None if ids is None else ids[t:], t), before=before, told=True)
            found = codec.decode(frame, before=before, token_ids=None if ids is None else ids[t:])
            assert isinstance(found, Hidden)
            before = Hidden(message.layer, np.concatenate([before.states, found.states]), ids)
            self.single, self.single_numbers = self.single + len(frame), self.single_numbers + found.states.size

    def summary(self) -> dict[str, Any]:
        messages = len(self.encode_s)
        return {
            "messages": messages,
            "numbers": self.numbers,
            "message_bytes": self.frames / messages,
            "bits": 8 * self.frames / self.numbers,
            "told_bits": 8 * self.told / self.numbers,
            "body_bits": 8 * self.body / self.numbers,
            "single_bits": 8 * self.single / self.single_numbers,
            "encode_ms": 1e3 * float(np.median(self.encode_s)),
            "decode_ms": 1e3 * float(np.median(self.decode_s)),
        }


class Score:
    """What the model says to decoded states, beside what it says to the exact ones."""

    def __init__(self) -> None:
        self.same, self.places, self.kl = {"answers": 0, "all": 0}, {"answers": 0, "all": 0}, {"answers": 0.0, "all": 0.0}
        self.right: list[Tensor] = []  # [texts, 2]: with exact states, with decoded ones

    def compare(self, exact: Tensor, said: Tensor, targets: Tensor, places: Mapping[str, Tensor]) -> None:
        """Log-probabilities [rows, positions, vocab], the right tokens [rows, positions] or -100, and which places count as what."""
        best, mine = exact.argmax(-1), said.argmax(-1)
        kl = (exact.exp() * (exact - said)).sum(-1)
        for name, at in places.items():
            self.same[name] += int((best == mine)[at].sum())
            self.places[name] += int(at.sum())
            self.kl[name] += float(kl[at].sum())
        self.right.append(torch.stack([((one == targets) | (targets < 0)).all(1) for one in (best, mine)], 1))

    def summary(self) -> dict[str, Any]:
        right = torch.cat(self.right)
        lost, won, n = int((right[:, 0] & ~right[:, 1]).sum()), int((right[:, 1] & ~right[:, 0]).sum()), len(right)
        exact, coded = (int(column.sum()) for column in right.T)
        return {
            "agreement": {name: self.same[name] / self.places[name] for name in self.same},
            "agreement_ci95": {name: wilson(self.same[name], self.places[name]) for name in self.same},
            "kl": {name: self.kl[name] / self.places[name] for name in self.kl},
            "accuracy": {"exact": exact / n, "coded": coded / n, "lost": (lost - won) / n, "lost_ci95": tango(lost, won, n), "n": n},
        }
