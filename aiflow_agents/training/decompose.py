"""From whole weights to nested factors: hierarchical principal components of what each linear layer puts out.

    y = W x        R W S = U s V'        b = R^-1 U,  a = U' R W        W_r = b_r a_r

With metrics S S' = E[x x'] of the inputs and R = 1, no rank-r weight has a smaller E|W x - W_r x|^2 (Eckart-Young): the columns of U are the
principal components of the outputs, and it does not matter whether a norm's gain is counted to the weight or to the input. S is never inverted, so a
layer whose inputs do not fill their space, where a Cholesky factor of E[x x'] does not exist, is a layer like any other.

| method | S | R |
|---|---|---|
| `svd` | 1 | 1 |
| `asvd` | diag(E|x|)^0.5 (arXiv:2312.05821) | 1 |
| `whitened` | E[x x']^0.5 (as arXiv:2403.07378, there by Cholesky) | 1 |
| `fisher` | E[x x']^0.5 | E[g g']^0.5, g the gradient by y: errors count as the predictions feel them (the metric of K-FAC, arXiv:1503.05671) |

Nesting by principal components: AI Flow, arXiv:2506.12479.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from aiflow_agents.models.family.export import stored, write
from aiflow_agents.training.moments import Exits, Moments, layers

Method = Literal["svd", "asvd", "whitened", "fisher"]
METHODS: tuple[Method, ...] = ("svd", "asvd", "whitened", "fisher")
FLOOR = 1e-8  # of the largest eigenvalue: directions that inputs never took still have some weight, so that full rank is the whole weight
FLOOR_R = 1e-3  # the same for gradients, which are noisier, and whose root is inverted


class Factors(NamedTuple):
    """One layer: W = b @ a, and its first r columns and rows are its best rank r."""

    b: Tensor  # [out, full] float32
    a: Tensor  # [full, in] float32
    spectrum: Tensor  # [full] float32, descending: what each part adds, in units that are the same for all layers


def root(second: Tensor, floor: float) -> Tensor:
    """The symmetric square root of a second moment, eigenvalues raised to `floor` of the largest. Works where a Cholesky factor does not exist."""
    values, vectors = torch.linalg.eigh(second)
    return (vectors * values.clamp_min(max(float(values.max()), 1e-30) * floor).sqrt()) @ vectors.T


def metrics(method: Method, moments: Moments) -> tuple[Tensor, Tensor]:
    """S [in, in] and R [out, out] of a method, float64, symmetric, of full rank."""
    into, out = (torch.eye(len(one), dtype=torch.float64) for one in (moments.inputs, moments.gradients))
    if method == "asvd":
        scale = moments.absolute.sqrt()
        into = torch.diag(scale.clamp_min(float(scale.max()) * FLOOR**0.5))
    elif method != "svd":
        into = root(moments.inputs, FLOOR)
    return into, root(moments.gradients, FLOOR_R) if method == "fisher" else out


def factors(weight: Tensor, moments: Moments, method: Method) -> Factors:
    """Nested factors of a weight [out, in]. Column i of b and row i of a are given the same length.

    The spectrum is that of the method's own metrics, scaled so that its sum is about what the loss would feel if the outputs were gone,
    tr(G W C W') for `fisher` and tr(G) tr(W C W') / out for the others: so layers can be compared (`rank.spread`).
    """
    whole, (into, out) = weight.double(), metrics(method, moments)
    u, singular, _ = torch.linalg.svd(out @ whole @ into, full_matrices=False)  # u: [out, full]
    b, a = torch.linalg.solve(out, u), u.T @ out @ whole
    length = (a.norm(dim=1) / b.norm(dim=0)).clamp_min(1e-30).sqrt()
    energy = singular.square()
    if method != "fisher":
        outputs = whole @ moments.inputs @ whole.T
        energy = energy * (outputs.trace() * moments.gradients.trace() / len(whole) / energy.sum().clamp_min(1e-30))
    return Factors((b * length).float().contiguous(), (a / length[:, None]).float().contiguous(), energy.float())


def decompose(model: Exits, moments: Mapping[str, Moments], method: Method) -> dict[str, Factors]:
    """Every linear layer of the blocks as nested factors."""
    return {name: factors(layer.weight.detach(), moments[name], method) for name, layer in layers(model).items()}


def save(source: Path, out: Path, found: Mapping[str, Factors], about: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write a decomposed model into `out`: factors in `dtype`, spectra in float32, all else of `source` as it is; `about` is section `rank`."""
    tensors = {name: tensor for name, tensor in stored(source).items() if name.removesuffix(".weight") not in found}
    for name, layer in found.items():
        tensors |= {f"{name}.b": layer.b.to(dtype), f"{name}.a": layer.a.to(dtype), f"{name}.spectrum": layer.spectrum}
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write(out, {**config, "rank": dict(about)}, tensors, beside=source, also=("recipe.yaml",))
