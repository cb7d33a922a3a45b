"""A fitted codec as a file that ships with a family: safetensors, the spec and the weights' hash in its metadata, one group of arrays a space.

Such a file is read as numbers and checked; nothing in it is run, and nothing is unpickled.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from aiflow_agents.errors import UserError
from aiflow_agents.wire.codecs.codec import Codec
from aiflow_agents.wire.codecs.registry import parse, restore
from aiflow_agents.wire.codecs.stored import Arrays, CalibrationError, Stored

FORMAT = "aiflow-codec/1"


class Shipped(NamedTuple):
    """A fitted codec that lies beside a family's weights, as those know it who do not code."""

    name: str
    fingerprint: str  # hexadecimal
    spaces: frozenset[str]  # `hidden.3`, `key.0`, `value.0`, ...
    needs_tokens: bool


def shipped(folder: Path, weights_hash: str) -> tuple[Shipped, ...]:
    """What lies in `codecs/` of a model's folder, by name; not what was fitted on other weights. Raises CalibrationError."""
    found = ((file.stem, *_read(file)) for file in sorted((folder / "codecs").glob("*.safetensors")))
    return tuple(
        Shipped(name, codec.fingerprint.hex(), frozenset(codec.codings), codec.needs_tokens)
        for name, codec, weights in found
        if weights in ("", weights_hash)
    )


def save(codec: Codec, file: str | Path, weights_hash: str = "") -> None:
    """Write a codec that was fitted on these weights, whole or not at all."""
    found = ((f"{space}/{name}", array) for space, arrays in codec.arrays().items() for name, array in arrays.items())
    arrays = {name: np.ascontiguousarray(array) for name, array in found}  # safetensors writes the memory of another layout as it lies
    written = Path(f"{file}.part")
    save_file(arrays, written, metadata={"format": FORMAT, "spec": codec.spec, "weights": weights_hash})
    written.chmod(0o644)
    os.replace(written, file)


def load(file: str | Path) -> Codec:
    """Read a fitted codec. Raises CalibrationError naming the file and what is wrong with it."""
    return _read(file)[0]


def _read(file: str | Path) -> tuple[Codec, str]:
    """And the hash of the weights that it was fitted on, empty where it is not known."""
    try:
        with safe_open(file, framework="numpy") as opened:
            about, arrays = opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise CalibrationError(f"calibration {file} cannot be read ({error})") from None
    if about.get("format") != FORMAT or "spec" not in about:
        raise CalibrationError(f"calibration {file} is no fitted codec: its metadata lacks format {FORMAT} and a spec")
    try:
        parse(about["spec"])
    except UserError as error:
        raise CalibrationError(f"calibration {file}: {error}") from None
    spaces: dict[str, Arrays] = {}
    for name, array in arrays.items():
        space, _, rest = name.rpartition("/")
        spaces.setdefault(space, {})[rest] = array
    return restore(about["spec"], {space: Stored(str(file), space, found) for space, found in spaces.items()}), about.get("weights", "")
