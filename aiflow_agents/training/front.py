"""The vision front of a model in training: from pixels to the width of its decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from aiflow_agents.skills.scenes import CELL, CORNERS, SIDE, VIEW

CAMERAS, PATCHES = len(CORNERS), VIEW * VIEW


class Front(nn.Module):
    """From pixels to the width of the decoder: a projection of each patch, with what its place in the picture and its camera add."""

    def __init__(self, width: int):
        super().__init__()
        self.patch = nn.Linear(CELL * CELL * 3, width)
        self.place_embed, self.camera_embed = nn.Embedding(PATCHES, width), nn.Embedding(CAMERAS, width)
        for part in (self.place_embed, self.camera_embed):
            nn.init.normal_(part.weight, std=0.5)  # as large as what patches give at first: who asks for a place must find it

    def forward(self, pictures: Tensor) -> Tensor:
        """[scenes, cameras, 24, 24, 3] -> [scenes, cameras, 9, width]."""
        patches = pictures.float().div(127.5).sub(1).unflatten(2, (VIEW, CELL)).unflatten(4, (VIEW, CELL))  # [n, cameras, 3, 8, 3, 8, 3]
        patches = patches.transpose(3, 4).flatten(4).flatten(2, 3)  # [n, cameras, 9, 192]
        return self.patch(patches) + self.place_embed.weight + self.camera_embed.weight[:, None]


def add_front(model: Any, layer: int) -> None:
    """Give a transformers model eyes, in place. `layer` is the first that reads all cameras together."""
    model.vision = Front(model.config.hidden_size).to(model.dtype)
    model.config.vision = {"size": SIDE, "patch": CELL, "channels": 3, "cameras": CAMERAS, "layer": layer}
