"""One checkpoint into one file of all its sizes: measure, decompose, tune, write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.info import model_info
from aiflow_agents.models.family.rank import kept, linears, ranks
from aiflow_agents.training.decompose import Method, decompose, save
from aiflow_agents.training.moments import load, measure
from aiflow_agents.training.nested import Progress, Tuning, tune
from aiflow_agents.training.sources import source_of, up_to


def shrink(
    folder: Path,
    out: Path,
    method: Method,
    how: Tuning,
    *,
    measured_tokens: int = 100_000,
    text: Path | None = None,
    dtype: torch.dtype = torch.float32,
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the decomposed model of `folder` into the new folder `out`, tuned on `how.tokens` tokens (0: as it comes), and say what it holds.

    Reads `text`, or training questions of the skills that the model's recipe names. An interrupted tuning goes on from `out/checkpoint`.
    Raises `UserError` for a folder that already holds a model, and for a model that cannot be decomposed.
    """
    if list(out.glob("*.safetensors")):
        raise UserError(f"{out} already holds a model; choose another folder")
    source = source_of(folder, text, how.seed)
    model = load(folder)
    note(f"measuring on {measured_tokens:,} tokens of {source.name}")
    found = decompose(model, measure(model, up_to(source, measured_tokens), how.seed), method)
    about = {"method": method, "data": source.name, "measured_tokens": measured_tokens, "tuning": asdict(how) if how.tokens else None}
    checkpoint = out / "checkpoint" / "tuning.safetensors"
    made_of = f"{model_info(folder).weights_hash} {about}"
    found = tune(model, found, source, how, checkpoint=checkpoint, about=made_of, progress=progress)
    save(folder, out, found, about, dtype)
    shutil.rmtree(checkpoint.parent, ignore_errors=True)
    return {"folder": str(out), **about, "file_bytes": (out / "model.safetensors").stat().st_size, "sizes": sizes(out, how.keeps)}


def sizes(folder: Path, keeps: tuple[float, ...]) -> list[dict[str, Any]]:
    """A row for the full size and each of `keeps`: what is kept of the blocks' linear layers, and the whole model's FLOPs for a token."""
    layers, rows = linears(folder), []
    for keep in (1.0, *keeps):
        shape = model_info(folder, keep=keep).shape
        share = kept(layers, ranks(folder, keep))
        rows.append({"keep": keep, "kept": round(share, 4), "block_params": shape.block_params,
                     "flops_per_token": 2.0 * (shape.block_params + shape.head_params)})  # fmt: skip
    return rows
