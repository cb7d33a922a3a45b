"""What stands behind a member: our own engine, transformers, vLLM, an HTTP endpoint, or what another package brings. All of them are a `Model`.

A backend is named in a team file and travels to the hosts as text, so that whichever process gets a batch can load the model: `key_of` and `load`.
"""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.models.protocol import Model, ModelInfo, Shape

Kind = Literal["family", "transformers", "vllm", "http"]
GROUP = "aiflow_agents.backends"  # entry points of installed packages: a name, and what makes a `Model` of a model's name and options


def _known(name: str) -> str:
    if name not in (ours := get_args(Kind)) and name not in (theirs := entry_points(group=GROUP).names):
        raise ValueError(str(UnknownName("backend", name, [*ours, *theirs])) + f"; packages bring others as entry points {GROUP}")
    return name


Backend = Annotated[str, AfterValidator(_known)]


class Behind(BaseModel):
    """Which backend answers for a model, with what that needs.

    For transformers and vllm a `dtype`, and an `exit` where the model is a family; for vllm its `options`; for http those of an `Endpoint`, and a
    shape; for an installed one the `options` are its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Backend
    model: str
    dtype: str = "float32"
    options: dict[str, Any] = {}
    shape: dict[str, int] = {}
    exit: int | None = None

    @property
    def key(self) -> str:
        """As text. A model of our own engine is its folder."""
        return self.model if self.kind == "family" else json.dumps(self.model_dump(), sort_keys=True)

    def info(self) -> ModelInfo:
        """What the model is. Raises `UserError` where it cannot be had."""
        if self.kind == "family":
            from aiflow_agents.models.family.info import model_info

            return model_info(self.model)
        if self.kind == "transformers":
            from aiflow_agents.models.hub import hub_info

            return hub_info(self.model, self.dtype)
        if self.kind not in get_args(Kind):
            return self._installed().info
        if self.kind == "vllm":
            from aiflow_agents.models.vllm import Options, vllm_info

            return vllm_info(self.model, self.dtype, Options.model_validate(self.options))
        from aiflow_agents.models.http import Endpoint, http_info

        return http_info(self.model, Endpoint.model_validate(self.options), Shape(**self.shape))

    def _installed(self) -> Model:
        """The model of an installed package's backend. Raises UserError, by the backend's name, for whatever goes wrong in there."""
        [point, *_] = entry_points(group=GROUP, name=self.kind)
        try:
            model = point.load()(self.model, **self.options)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"the backend '{self.kind}' ({point.value}) cannot make a model of '{self.model}': {why}") from error
        return as_model(model, f"the backend '{self.kind}' ({point.value})")

    def load(self) -> Model:
        """The model itself, in a process that gives torch one thread."""
        if self.kind == "http":
            from aiflow_agents.models.http import Endpoint, HttpModel

            return HttpModel(self.info(), Endpoint.model_validate(self.options))
        import torch

        torch.set_num_threads(1)
        if self.kind not in get_args(Kind):
            return self._installed()
        if self.kind == "transformers":
            from aiflow_agents.models.hub import HubModel

            return HubModel.load(self.model, dtype=self.dtype, exit=self.exit)
        if self.kind == "vllm":
            from aiflow_agents.models.vllm import Options, VllmModel

            return VllmModel.load(self.model, dtype=self.dtype, options=Options.model_validate(self.options), exit=self.exit)
        from aiflow_agents.models.family.model import FamilyModel

        return FamilyModel.load(Path(self.model))


def behind(key: str) -> Behind:
    """What a key stands for: a folder is one of our own engine."""
    return Behind.model_validate_json(key) if key.startswith("{") else Behind(kind="family", model=key)


def as_model(given: Any, who: str) -> Model:
    """What was given, if it is a model. Raises UserError, which says what is missing."""
    if isinstance(getattr(given, "info", None), ModelInfo) and callable(getattr(given, "generate", None)):
        return given
    raise UserError(f"{who} gives {type(given).__name__}; a model has `info`, a ModelInfo, and a method `generate(requests)`")
