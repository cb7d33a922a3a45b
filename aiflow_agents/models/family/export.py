"""Families as files: one branch as a plain checkpoint that any tool loads, and what a family holds in numbers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.config import RUYI, DecoderConfig, open_weights, read_json, weight_files

BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
OURS = ("early_exit_points", "shared_heads", "default_early_exit_point", "auto_map", "rank")  # what a plain config does not have
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def export_branch(folder: str | Path, exit: int, out: str | Path) -> Path:
    """Write one exit of a family as a plain Llama, Qwen2 or Qwen3 checkpoint into the new folder `out`; gives `out`.

    The branch's block becomes the last layer. Tokenizer and chat template come along. Raises `UserError` for an exit that is not there and for a
    folder that already holds a model.
    """
    folder, out = Path(folder), Path(out)
    config = DecoderConfig.read(folder)
    path = config.path(exit)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another folder")
    if list(out.glob("*.safetensors")):
        raise UserError(f"{out} already holds a model; choose another folder")
    tensors = _branch(folder, config, exit)
    for layer in [name.removesuffix(".b") for name in tensors if name.endswith(".b")]:  # of a decomposed family: no other tool knows factors
        b, a, _ = (tensors.pop(f"{layer}.{part}") for part in ("b", "a", "spectrum"))
        tensors[f"{layer}.weight"] = (b.float() @ a.float()).to(b.dtype)
    raw = read_json(folder / "config.json")
    kind = RUYI.get(raw["model_type"], raw["model_type"])
    plain = {key: value for key, value in raw.items() if key not in OURS}
    plain |= {"model_type": kind, "architectures": [CLASSES[kind]], "num_hidden_layers": len(path)}
    if "layer_types" in raw:
        plain["layer_types"] = ["full_attention"] * len(path)
    write(out, plain, tensors, beside=folder)
    return out


def plain(folder: str | Path, exit: int | None = None) -> Path:
    """A model folder as any other engine reads it: itself, or of a family the checkpoint of one exit (default: the last).

    That is made when it is first asked for, and kept under AIFLOW_CACHE (default: ~/.cache/aiflow). Raises `UserError` for an exit that is not there.
    """
    folder = Path(folder)
    raw = read_json(folder / "config.json")
    if exit is None and raw.get("model_type") not in RUYI and not {"early_exit_points", "rank"} & set(raw):
        return folder
    exit = DecoderConfig.read(folder).exits[-1] if exit is None else exit
    digest = hashlib.sha256()
    for file in (folder / "config.json", *weight_files(folder), *(folder / name for name in BESIDE if (folder / name).exists())):
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    kept = cache() / "exits" / digest.hexdigest()[:24] / f"{folder.resolve().name}-exit{exit}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as part:
            made = export_branch(folder, exit, Path(part) / "made")
            try:
                made.rename(kept)  # whole, or not at all: several hosts may be at it
            except OSError:
                if not kept.exists():
                    raise
    return kept


def cache() -> Path:
    """Where this package keeps what it can make again."""
    return Path(os.environ.get("AIFLOW_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aiflow")


def write(out: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], *, beside: Path, also: Sequence[str] = ()) -> None:
    """A model folder: config, tensors, and of the folder `beside` the tokenizer, the chat template and the files of `also`.

    The weights come last: where they are, all is.
    """
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in (*BESIDE, *also):
        if (beside / name).exists() and beside.resolve() != out.resolve():
            shutil.copyfile(beside / name, out / name)
    part = out / "model.safetensors.part"
    save_file(dict(tensors), part, {"format": "pt"})
    part.chmod(0o644)  # safetensors writes for the owner alone
    part.replace(out / "model.safetensors")


def stored(folder: str | Path) -> dict[str, Any]:
    """All tensors of a model folder, as they are stored."""
    with ExitStack() as stack:
        return {name: file.get_tensor(name) for name, file in open_weights(folder, stack).items()}


def _branch(folder: Path, config: DecoderConfig, exit: int) -> dict[str, Any]:
    """The tensors of one exit under their plain names."""
    from safetensors import safe_open

    names: dict[str, Path] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            names |= dict.fromkeys(opened.keys(), file)
    which, own = config.exits.index(exit), config.path(exit)[-1]
    prefixes = {f"model.layers.{i}.": f"model.layers.{i}." for i in range(exit)}
    block = f"model.layers.{own}." if own < config.layers else f"model.eelayers.{own - config.layers}."
    prefixes[block] = f"model.layers.{exit}."
    norm = "model.norm.weight" if exit == config.exits[-1] and "model.norm.weight" in names else f"model.norms.{which}.weight"
    wanted = {"model.embed_tokens.weight": "model.embed_tokens.weight", norm: "model.norm.weight"}
    if config.own_heads:
        wanted[f"lm_head.{which}.weight"] = "lm_head.weight"
    elif not config.tied:
        wanted["lm_head.weight"] = "lm_head.weight"
    for name in names:
        for prefix, plain in prefixes.items():
            if name.startswith(prefix):
                wanted[name] = plain + name[len(prefix) :]
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise UserError(f"model folder {folder} has no weight '{missing[0]}', which its config.json calls for")
    found = {}
    for file in dict.fromkeys(names.values()):
        with safe_open(file, "pt") as opened:
            found.update({plain: opened.get_tensor(name) for name, plain in wanted.items() if names[name] == file})
    return found


def number_bytes(folder: str | Path) -> int:
    """Bytes of one number as the model's embedding is stored."""
    from safetensors import safe_open

    bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}
    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            if "model.embed_tokens.weight" in opened.keys():
                return bits.get(opened.get_slice("model.embed_tokens.weight").get_dtype(), 8) // 8
    raise UserError(f"model folder {folder} has no weight 'model.embed_tokens.weight'")


def sizes(folder: str | Path, dtype_bytes: int = 4) -> list[dict[str, Any]]:
    """What `size_of` says of each exit."""
    config = DecoderConfig.read(folder)
    return [size_of(config, e, dtype_bytes) for e in config.exits]


def size_of(config: DecoderConfig, exit: int, dtype_bytes: int = 4) -> dict[str, Any]:
    """`exit, blocks, parameters` (embedding and head counted once if tied), `flops_per_token` (one more token after an empty context),
    `weight_bytes`, of the plain model that the exit makes."""
    shape = config.shape(dtype_bytes, exit)
    embedding = config.vocab * config.width
    count = shape.block_params + embedding + (0 if config.tied else shape.head_params)
    flops = 2.0 * (shape.block_params + shape.head_params)
    return {"exit": exit, "blocks": shape.layers, "parameters": count, "flops_per_token": flops, "weight_bytes": count * dtype_bytes}
