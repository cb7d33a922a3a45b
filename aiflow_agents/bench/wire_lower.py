"""What a codec does to the keys and values of lower layers, which a receiver of hidden states needs to make further tokens of its own.

The states of the question arrive exactly, the cache below them through the codec. The first token of an answer is then as it was; those after it look
back through the decoded cache, and only they are compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aiflow_agents.bench.wire import Score
from aiflow_agents.models.family.resume import hidden_states
from aiflow_agents.models.family.session import LowerCache
from aiflow_agents.skills.splits import Question
from aiflow_agents.training.cut import Cut
from aiflow_agents.training.tokenizer import EOS, encode, prompt_ids
from aiflow_agents.wire.codecs import Codec
from aiflow_agents.wire.payload import KVCache


@torch.inference_mode()
def bench_lower(cut: Cut, codec: Codec, questions: Sequence[Question]) -> dict[str, Any]:
    """Send the cache of every question through one codec. Returns what `bench_codec` does, `numbers` being those of keys and values."""
    score, sizes, numbers, encode_s, decode_s = Score(), 0, 0, [], []
    for question in questions:
        ids, answer = prompt_ids(question.text), [*encode(question.answer), EOS]
        ((states, lower),) = hidden_states(cut.family.decoder, [ids], cut.layer, lower=True)
        assert lower is not None
        start = time.perf_counter()
        frame = codec.encode(KVCache(0, *(one[:, 0].numpy() for one in lower)))
        middle = time.perf_counter()
        there = codec.decode(frame)
        decode_s.append(time.perf_counter() - middle)
        encode_s.append(middle - start)
        assert isinstance(there, KVCache)
        sizes, numbers = sizes + len(frame), numbers + 2 * there.keys.size
        exact = cut.family.logits(torch.tensor([ids + answer[:-1]]), exit=cut.exits[0])[0, len(ids) - 1 :]
        said = _go_on(cut, states, LowerCache(*(torch.from_numpy(one)[:, None] for one in (there.keys, there.values))), answer)
        later = torch.arange(len(answer)) > 0
        score.compare(exact.log_softmax(-1)[None], said.log_softmax(-1)[None], torch.tensor([answer]), {"answers": later[None], "all": later[None]})
    return {
        "codec": codec.spec,
        "fidelity": codec.fidelity(),
        "messages": len(questions),
        "numbers": numbers,
        "message_bytes": sizes / len(questions),
        "bits": 8 * sizes / numbers,
        **score.summary(),
        "encode_ms": 1e3 * float(np.median(encode_s)),
        "decode_ms": 1e3 * float(np.median(decode_s)),
    }


def _go_on(cut: Cut, states: Tensor, lower: LowerCache, answer: list[int]) -> Tensor:
    """Logits [answer tokens, vocab] where each is to come, after those before it."""
    session = cut.family.session()
    session.resume(states[None], layer=cut.layer, lower=lower)
    first = session.logits(exit=cut.exits[0], last=1)[0]
    return torch.cat([first, session.feed(torch.tensor([answer[:-1]]), exit=cut.exits[0])[0]]) if len(answer) > 1 else first
