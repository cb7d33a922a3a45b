"""Rank as size: linear layers stored as nested low-rank factors, so that one file holds a model in every size.

    W [out, in]  ~  b[:, :r] @ a[:r]        for every r: a smaller model is a prefix of a larger one

In a decomposed folder each linear layer NAME of the blocks has `NAME.b` [out, full], `NAME.a` [full, in] and `NAME.spectrum` [full] in place of
`NAME.weight`, with full = min(out, in), where the product is the whole weight again. All else is as it was, and `config.json` gains a section `rank`.
The spectrum, descending, is what each part adds, in the metric that the parts were found in and in units that are the same for all layers.

A layer cut to rank r has r * (out + in) parameters, so above r = out * in / (out + in) (for a square one: half of full) the whole weight is smaller
than its factors, and stands for them in every count. Made by `training/decompose.py`. Imports no torch until a tensor is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.models.family.config import open_weights
from aiflow_agents.models.family.export import write
from aiflow_agents.models.protocol import Shape

Keep = float | Mapping[str, int]  # a share of every layer's parameters, or the rank of each layer by name (not named: full)


class Linear(NamedTuple):
    """Sizes of one decomposed layer, W [out, into]."""

    out: int
    into: int

    @property
    def full(self) -> int:
        return min(self.out, self.into)

    @property
    def dense(self) -> int:
        """Parameters of the whole weight."""
        return self.out * self.into

    @property
    def part(self) -> int:
        """Parameters of one rank."""
        return self.out + self.into

    def params(self, rank: int) -> int:
        """Parameters at a rank: those of the factors, or of the whole weight where that is smaller."""
        return min(rank * self.part, self.dense)

    def rank(self, keep: float) -> int:
        """The largest rank whose factors have at most `keep` of the whole weight's parameters; at least 1, and full at 1 (or if 1 is no smaller)."""
        return self.full if keep >= 1 or self.part >= self.dense else max(1, int(keep * self.dense / self.part + 1e-9))


def linears(folder: str | Path) -> dict[str, Linear]:
    """The decomposed layers of a model folder by name, from the headers of its files; {} for one that was not decomposed."""
    shapes: dict[str, tuple[int, ...]] = {}
    with ExitStack() as stack:
        for name, file in open_weights(folder, stack, "np").items():
            if name.endswith((".a", ".b")):
                shapes[name] = tuple(file.get_slice(name).get_shape())
    found = {name[:-2]: Linear(shape[0], shapes[f"{name[:-2]}.a"][1]) for name, shape in shapes.items() if name.endswith(".b")}
    return dict(sorted(found.items()))


def ranks(folder: str | Path, keep: Keep = 1.0) -> dict[str, int]:
    """The rank of every decomposed layer of a folder at this size; {} for a folder that was not decomposed, whole.

    Raises `UserError` for a size that cannot be had.
    """
    layers = linears(folder)
    if isinstance(keep, Mapping):
        for name, rank in keep.items():
            if name not in layers:
                raise UnknownName("decomposed layer", name, layers) if layers else _whole(folder)
            if not 1 <= rank <= layers[name].full:
                raise UserError(f"rank {rank} of {name} lies outside 1 to {layers[name].full}")
        return {name: keep.get(name, layer.full) for name, layer in layers.items()}
    if not 0 < keep <= 1:
        raise UserError(f"a model keeps more than 0 and at most 1 of its parameters, not {keep:g}")
    if keep < 1 and not layers:
        raise _whole(folder)
    return {name: layer.rank(keep) for name, layer in layers.items()}


def spread(folder: str | Path, params: int) -> dict[str, int]:
    """Ranks that spend at most `params` parameters on the decomposed layers together, where their spectra say it helps most.

    Each layer starts at rank 1; then parts are bought in order of what a parameter of theirs adds. A layer may be bought whole: then its last parts
    are worth what they add together, on the upper concave hull of its curve. A larger budget never gives a smaller rank.
    Raises `UserError` for a budget under rank 1 everywhere, or a folder that was not decomposed.
    """
    layers = linears(folder)
    if not layers:
        raise _whole(folder)
    spectra: dict[str, Any] = {}
    with ExitStack() as stack:
        files = open_weights(folder, stack, "np")
        spectra = {name: files[f"{name}.spectrum"].get_tensor(f"{name}.spectrum").astype(np.float64) for name in layers}
    return allot(layers, spectra, params)


def spend(folder: str | Path, share: float) -> dict[str, int]:
    """Ranks that spend this share of the decomposed layers' parameters, as in `spread`."""
    return spread(folder, int(share * sum(layer.dense for layer in linears(folder).values())))


def allot(layers: Mapping[str, Linear], spectra: Mapping[str, np.ndarray], params: int) -> dict[str, int]:
    """`spread`, over given layers. spectra: name -> [full], not negative, descending."""
    least = sum(layer.params(1) for layer in layers.values())
    if params < least:
        raise UserError(f"{params:,} parameters are too few: rank 1 everywhere takes {least:,}")
    steps = sorted((step for name, layer in layers.items() for step in _steps(name, layer, spectra[name])), key=lambda step: -step[0])
    found, left = {name: layer.rank(0.0) for name, layer in layers.items()}, params - least
    for _, name, rank, price in steps:
        if price > left:
            break
        found[name], left = rank, left - price
    return found


def _steps(name: str, layer: Linear, spectrum: np.ndarray) -> Iterable[tuple[float, str, int, int]]:
    """(gain a parameter, layer, rank, price) of each step from rank 1 to the whole layer, gains descending."""
    rest = np.concatenate([[0.0], np.cumsum(spectrum[::-1])])[::-1]  # rest[r]: what rank r leaves out
    gain, jumping = np.inf, False
    for rank in range(1, layer.full):
        price = layer.params(rank + 1) - layer.params(rank)
        if price == 0:
            return
        if not jumping:
            one, jump = float(spectrum[rank]) / layer.part, float(rest[rank]) / (layer.dense - layer.params(rank))
            gain, jumping = min(gain, max(one, jump)), jump >= one
        yield gain, name, layer.full if layer.params(rank + 1) == layer.dense else rank + 1, price


def kept(layers: Mapping[str, Linear], at: Mapping[str, int]) -> float:
    """The share of the decomposed layers' parameters that is left at these ranks."""
    return sum(layer.params(at[name]) for name, layer in layers.items()) / sum(layer.dense for layer in layers.values())


def cut(shape: Shape, layers: Mapping[str, Linear], at: Mapping[str, int], blocks: tuple[str, ...] = ("model.layers.",)) -> Shape:
    """A model's shape at these ranks: `block_params`, and with it FLOPs and bytes, count factors where those are smaller.

    `blocks` are the beginnings of the names that count, for an exit that does not run all of them.
    """
    saved = sum(layer.dense - layer.params(at[name]) for name, layer in layers.items() if name.startswith(blocks))
    return replace(shape, block_params=shape.block_params - saved)


def product(files: Mapping[str, Any], name: str, rank: int) -> Any:
    """The weight of a layer at a rank, torch float32 [out, in]. `files` maps tensors' names to open safetensors files."""
    b, a = files[f"{name}.b"].get_slice(f"{name}.b"), files[f"{name}.a"].get_slice(f"{name}.a")
    return b[:, :rank].float() @ a[:rank].float()


def compose(folder: str | Path, out: str | Path, keep: Keep = 1.0) -> Path:
    """Write a decomposed model at one size as a plain checkpoint with whole weights, which any tool loads; gives `out`.

    Weights have the dtype of the factors. Raises `UserError` for a folder that was not decomposed, and for one that already holds a model.
    """
    folder, out, at = Path(folder), Path(out), ranks(folder, keep)
    if not at:
        raise _whole(folder)
    if list(out.glob("*.safetensors")):
        raise UserError(f"{out} already holds a model; choose another folder")
    with ExitStack() as stack:
        files = open_weights(folder, stack)
        factors = {f"{name}.{kind}" for name in at for kind in ("a", "b", "spectrum")}
        tensors = {name: file.get_tensor(name) for name, file in files.items() if name not in factors}
        for name, rank in at.items():
            tensors[f"{name}.weight"] = product(files, name, rank).to(files[f"{name}.b"].get_slice(f"{name}.b")[:1].dtype).contiguous()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("rank", None)
    write(out, config, tensors, beside=folder, also=("recipe.yaml",))
    return out


def _whole(folder: str | Path) -> UserError:
    return UserError(f"model folder {folder} holds whole weights, which have one size; decompose them first: aiflow family decompose {folder} OUT")
