"""The vision front of a model in training: from pixels to the width of its decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aiflow_agents.skills import scenes
from aiflow_agents.skills.scenes import CELL, CELLS, SEEN, SIDE, VIEW

CAMERAS, PATCHES = len(scenes.CAMERAS), VIEW * VIEW


class Front(nn.Module):
    """From pixels to the width of the decoder: a projection of each patch, and what its place in the picture of its camera adds.

    Cameras know where they look: patches that show the same place begin alike.
    """

    def __init__(self, width: int):
        super().__init__()
        self.patch = nn.Linear(CELL * CELL * 3, width)
        cells, cameras = torch.randn(CELLS, width), torch.randn(CAMERAS, width)
        self.place_embed = nn.Embedding(CAMERAS * PATCHES, width)
        with torch.no_grad():  # as large as what patches give at first: who asks for a place must find it
            self.place_embed.weight.copy_(0.5 * (cells[SEEN.flatten()] + cameras.repeat_interleave(PATCHES, 0)))

    def forward(self, pictures: Tensor) -> Tensor:
        """[scenes, cameras, 24, 24, 3] -> [scenes, cameras, 9, width]."""
        patches = pictures.float().div(127.5).sub(1).unflatten(2, (VIEW, CELL)).unflatten(4, (VIEW, CELL))  # [n, cameras, 3, 8, 3, 8, 3]
        patches = patches.transpose(3, 4).flatten(4).flatten(2, 3)  # [n, cameras, 9, 192]
        return self.patch(patches) + self.place_embed.weight.unflatten(0, (CAMERAS, PATCHES))


def add_front(model: Any, layer: int) -> None:
    """Give a transformers model eyes, in place. `layer` is the first that reads all cameras together."""
    model.vision = Front(model.config.hidden_size).to(model.dtype)
    model.config.vision = {"size": SIDE, "patch": CELL, "channels": 3, "cameras": CAMERAS, "layer": layer}
