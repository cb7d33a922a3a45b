"""What the model in a folder is, told without loading it: shape, hashes, capabilities, ends of answers. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.chat import chat_hash
from aiflow_agents.models.family.config import DecoderConfig, read_json, weight_files
from aiflow_agents.models.family.rank import Keep, cut, linears, ranks
from aiflow_agents.models.protocol import ModelInfo

if TYPE_CHECKING:
    from aiflow_agents.wire.calibration import Shipped

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def model_info(path: str | Path, *, dtype: str = "float32", keep: Keep = 1.0) -> ModelInfo:
    """What the model in this folder is, a decomposed one at the size `keep`. Reads config.json and hashes files; imports no torch.

    `weights_hash` covers the weights and the settings they are computed with, `tokenizer_hash` the tokenizer, its template and special tokens.
    Raises `UserError` for a folder that cannot be used.
    """
    if dtype not in DTYPE_BYTES:
        raise UserError(f"dtype '{dtype}' is not known; expected one of {', '.join(DTYPE_BYTES)}")
    if not Path(path).is_dir():
        raise UserError(f"no model folder at {path}")
    config, digest, at = DecoderConfig.read(path), _digest(path), ranks(path, keep)
    whole = digest.hexdigest()
    if at:
        digest.update(repr(sorted(at.items())).encode())
    return ModelInfo(
        name=Path(path).resolve().name,
        weights_hash=digest.hexdigest(),
        tokenizer_hash=chat_hash(path),
        engine="family",
        dtype=dtype,
        shape=cut(config.shape(DTYPE_BYTES[dtype]), linears(path), at),
        capabilities=_capabilities(config) | ({"confidence"} if read_json(Path(path) / "config.json").get("hears") == "confidence" else set()),
        max_context=config.max_context,
        codecs=_codecs(Path(path), whole),
    )


def _capabilities(config: DecoderConfig) -> frozenset[str]:
    if config.vision:  # its features are hidden states, but nobody resumes a draft from them
        return frozenset({"logprobs", "vision"})
    return frozenset({"logprobs", "logits", "hidden", "resume", "score", "verify"} | ({"exits"} if len(config.exits) > 1 else set()))


def weights_hash(path: str | Path) -> str:
    """What `model_info` says of a model at full size, whatever codecs lie beside it: they may be what is to be made anew."""
    return _digest(path).hexdigest()


def _digest(path: str | Path) -> Any:
    config = DecoderConfig.read(path)
    digest = hashlib.sha256(repr(config).encode() + (repr(config.vision).encode() if config.vision else b""))
    for file in weight_files(path):
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest


def _codecs(folder: Path, weights_hash: str) -> tuple[Shipped, ...]:
    if not (folder / "codecs").is_dir():
        return ()
    from aiflow_agents.wire.calibration import shipped

    return shipped(folder, weights_hash)


def at_exit(info: ModelInfo, path: str | Path, exit: int, keep: Keep = 1.0) -> ModelInfo:
    """The same model, of which one exit answers, at the size `keep`: its shape is smaller. Raises `UserError` for an exit that is not there."""
    config = DecoderConfig.read(path)
    n = config.layers
    blocks = tuple(f"model.layers.{i}." if i < n else f"model.eelayers.{i - n}." for i in config.path(exit))
    return replace(info, shape=cut(config.shape(DTYPE_BYTES[info.dtype], exit), linears(path), ranks(path, keep), blocks))


def end_ids(path: str | Path) -> tuple[int, ...]:
    """The tokens that end an answer: from generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(Path(path) / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return ()
