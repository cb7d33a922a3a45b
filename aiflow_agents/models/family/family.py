"""A family: one checkpoint, several sizes. All of them share the first layers, so a hidden state means the same to each of them.

    tokens - layer 0 .. layer e-1 -+- layer e .. layer n-1 - norm - head      exit n-1: the whole model
                                   +- own block - own norm - head             exit e: a smaller one

An exit is named by the integer e, as in the released Ruyi checkpoints (AI Flow, arXiv:2506.12479): the first e backbone layers, then one block. Which
one is meant is said with every call; nothing is switched, so families may be shared by threads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.session import Session


class Family:
    """Reads a family's folder, the published Ruyi checkpoints, and any Llama, Qwen2 or Qwen3 checkpoint (a family with the one exit layers - 1)."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    @classmethod
    def load(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> Family:
        """Load a model folder in the Hugging Face layout. Raises `UserError` by name for what is missing or cannot be run."""
        return cls(Decoder.load(path, dtype))

    @property
    def exits(self) -> tuple[int, ...]:
        """Ascending."""
        return self.decoder.config.exits

    def logits(self, token_ids: Tensor, *, exit: int | None = None) -> Tensor:
        """token_ids [batch, positions] -> logits [batch, positions, vocab] of one exit (None: the last), float32."""
        return self.decoder.logits(token_ids, exit)

    @torch.inference_mode()
    def hidden(self, token_ids: Tensor, *, layer: int) -> Tensor:
        """token_ids [batch, positions] -> the input of backbone layer `layer` at every position, [batch, positions, width]."""
        if not 0 <= layer <= self.exits[-1]:
            raise UserError(f"no layer {layer}; this model has 0 to {self.exits[-1]}")
        return self.decoder.over(self.decoder.embed(token_ids), range(layer))

    @torch.inference_mode()
    def resume(self, hidden: Tensor, *, layer: int, exit: int | None = None) -> Tensor:
        """Go on from the input of layer `layer`, [batch, positions, width], to an exit at or behind it -> logits [batch, positions, vocab]."""
        return self.decoder.head(self.decoder.over(hidden.to(self.decoder.dtype), self.after(layer, exit)), exit)

    def after(self, layer: int, exit: int | None = None) -> tuple[int, ...]:
        """The blocks that are left from the input of `layer` to an exit. Raises `UserError` where the exit lies before."""
        path, last = self.decoder.config.path(exit), self.exits[-1] if exit is None else exit
        if not 0 <= layer <= last:
            raise UserError(f"exit {last} cannot go on from the input of layer {layer}: it leaves the backbone before layer {last}")
        return path[layer:]

    def session(self, rows: int = 1) -> Session:
        """A sequence that grows token by token, at any exit, changed at will. See `Session`."""
        return Session(self.decoder, rows)
