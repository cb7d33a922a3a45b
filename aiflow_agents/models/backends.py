"""What stands behind a member: our own engine, transformers, or an HTTP endpoint. All of them are a `Model`.

A backend is named in a team file and travels to the hosts as text, so that whichever process gets a batch can load the model: `key_of` and `load`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from aiflow_agents.models.protocol import Model, ModelInfo, Shape

Kind = Literal["family", "transformers", "http"]


class Behind(BaseModel):
    """Which backend answers for a model, with what that needs: `dtype` for transformers; for http the `options` of an `Endpoint`, and a shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind
    model: str
    dtype: str = "float32"
    options: dict[str, Any] = {}
    shape: dict[str, int] = {}

    @property
    def key(self) -> str:
        """As text. A model of our own engine is its folder."""
        return self.model if self.kind == "family" else json.dumps(self.model_dump(), sort_keys=True)

    def info(self) -> ModelInfo:
        """What the model is. Raises `UserError` where it cannot be had."""
        if self.kind == "family":
            from aiflow_agents.models.family.model import model_info

            return model_info(self.model)
        if self.kind == "transformers":
            from aiflow_agents.models.hub import hub_info

            return hub_info(self.model, self.dtype)
        from aiflow_agents.models.http import Endpoint, http_info

        return http_info(self.model, Endpoint.model_validate(self.options), Shape(**self.shape))

    def load(self) -> Model:
        """The model itself, in a process that gives torch one thread."""
        if self.kind == "http":
            from aiflow_agents.models.http import Endpoint, HttpModel

            return HttpModel(self.info(), Endpoint.model_validate(self.options))
        import torch

        torch.set_num_threads(1)
        if self.kind == "transformers":
            from aiflow_agents.models.hub import HubModel

            return HubModel.load(self.model, dtype=self.dtype)
        from aiflow_agents.models.family.model import FamilyModel

        return FamilyModel.load(Path(self.model))


def behind(key: str) -> Behind:
    """What a key stands for: a folder is one of our own engine."""
    return Behind.model_validate_json(key) if key.startswith("{") else Behind(kind="family", model=key)
