"""How likely is a text that somebody else wrote? Every token is read behind all before it (teacher forcing), and nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.engine import STEP

ROWS = 64  # sequences that are read at once


@torch.inference_mode()
def likelihood(
    decoder: Decoder, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], exit: int | None = None
) -> list[tuple[float, ...]]:
    """The natural log-probability of each token of `texts[i]` behind `prompts[i]`, at one exit (None: the last). No prompt may be empty."""
    found: list[tuple[float, ...]] = [()] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(prompts[i]) + len(texts[i]))
    for begin in range(0, len(order), ROWS):
        places = order[begin : begin + ROWS]
        rows = [[*prompts[i], *texts[i]] for i in places]
        longest = -(-max(map(len, rows)) // STEP) * STEP  # so that a row does not feel its company, as in `engine`
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # padding on the right is never read
        hidden = decoder.over(decoder.embed(tokens), decoder.config.path(exit))  # [rows, positions, width]
        for row, i in enumerate(places):
            ends = slice(len(prompts[i]) - 1, len(prompts[i]) + len(texts[i]) - 1)  # what stands before each token says how likely it is
            logprobs = torch.log_softmax(decoder.head(hidden[row, ends], exit), -1)
            found[i] = tuple(logprobs.gather(1, torch.tensor(texts[i], dtype=torch.long)[:, None])[:, 0].tolist())
    return found
