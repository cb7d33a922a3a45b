"""Branches for training: exits on a transformers model, each with a block and a norm of its own.

    embed - layer 0 .. layer e-1 -+- layer e .. layer n-1 - norm - head      the last exit, n-1
                                  +- own block - own norm - head             exit e

All share the embedding, the first layers and the head. Names are those of the released Ruyi checkpoints (`model.eelayers.i`, `model.norms.i`), which
put a norm at the last exit too; here that is `model.norm`, so that a family's folder is also a plain checkpoint of its backbone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def add_branches(model: Any, exits: Sequence[int]) -> None:
    """Give a transformers model the exits (the last one is its own), in place. A new block begins as a copy of the layer it stands beside."""
    inner, branches = model.model, list(exits[:-1])
    inner.eelayers = torch.nn.ModuleList(copy.deepcopy(inner.layers[e]) for e in branches)
    inner.norms = torch.nn.ModuleList(copy.deepcopy(inner.norm) for _ in branches)
    model.config.early_exit_points = list(exits)
    model.config.shared_heads = True


Disturb = Callable[[Tensor], Tensor]


def exit_states(model: Any, ids: Tensor, exits: Sequence[int], disturb: Disturb = lambda hidden: hidden) -> dict[int, Tensor]:
    """What the head reads at each exit: ids [rows, positions] -> exit: [rows, positions, width], causal, nothing padded on the left.

    disturb: what happens to the states that deeper exits go on from, as to those that travel; an exit's own block reads them as they are.
    """
    inner = model.model
    hidden = inner.embed_tokens(ids)
    turns = inner.rotary_emb(hidden, torch.arange(ids.shape[1], device=ids.device)[None])
    found = {}
    for i, layer in enumerate(inner.layers):
        if i in exits[:-1]:
            branch = exits.index(i)
            found[i] = inner.norms[branch](inner.eelayers[branch](hidden, position_embeddings=turns))
            hidden = disturb(hidden)
        hidden = layer(hidden, position_embeddings=turns)
    found[exits[-1]] = inner.norm(hidden)
    return found


def travel_noise(hidden: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """States [rows, positions, width] with noise as a lossy codec leaves it: half of the rows as they are, the others with white noise of a deviation
    between 0 and `most` times that of all these states."""
    deviation = most * hidden.detach().std() * (2 * torch.rand(hidden.shape[0], 1, 1, generator=generator) - 1).clamp(min=0)
    return hidden + deviation.to(hidden.device) * torch.randn(hidden.shape, generator=generator).to(hidden.device)
