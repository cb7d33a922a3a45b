"""Features as coarse codecs leave them: what a model that sees reads in training, so that it can read it when it travelled.

    features - mean of their place --basis--> coefficients --whole steps--> --basis back--> what is read

The basis is that of `wire.codecs.klt`, of these very features: that of their variance for one half of the scenes, for the other one turned to what
tells things apart, as `by=output` turns it. The latter's metric is the Fisher information of the head that names what stands at each patch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiflow_agents.wire.codecs.klt import FLOOR

WHOLE = 0.25  # of the scenes come as they are
FINEST = 0.3  # step, in mean deviations of a coefficient: what is finer than that leaves nothing to learn


@torch.no_grad()
def rounded(features: Tensor, head: torch.nn.Linear, coarsest: float, generator: torch.Generator) -> Tensor:
    """Features [scenes, positions, width] in whole steps, a step drawn for each scene between `FINEST` and `coarsest` mean deviations."""
    x, middle = features.flatten(0, 1), features.mean(0)  # of each position: whoever decodes knows where a camera looks
    kind, step = torch.rand(len(features), generator=generator), FINEST + (coarsest - FINEST) * torch.rand(len(features), 1, 1, generator=generator)
    found = features.clone()
    for turn, (analysis, synthesis, deviation) in enumerate(_bases((features - middle).flatten(0, 1), information(x, head))):
        rows = (kind >= WHOLE + turn * (1 - WHOLE) / 2) & (kind < WHOLE + (turn + 1) * (1 - WHOLE) / 2)
        steps = step[rows] * deviation
        found[rows] = ((features[rows] - middle) @ analysis / steps).round() * steps @ synthesis + middle
    return found


def information(x: Tensor, head: torch.nn.Linear) -> Tensor:
    """How much what the head says minds an error of its input in each direction, on average over inputs x [n, width]: [width, width], of mean 1."""
    said = head(x).softmax(-1)
    spread = torch.diag(said.sum(0)) - said.T @ said
    found = head.weight.T @ spread @ head.weight
    return found * (len(found) / found.trace())


def _bases(x: Tensor, metric: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Analysis, synthesis and the mean deviation of a coefficient, of centred features x [n, width]: see `wire.codecs.klt.basis`."""
    moment = x.T @ x / len(x)
    for weigh in (torch.eye(len(moment)), metric + FLOOR * torch.eye(len(moment))):
        values, vectors = torch.linalg.eigh(weigh)
        root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
        variance, turn = torch.linalg.eigh(root @ moment @ root)
        yield root @ turn, turn.T @ inverse, variance.clamp(min=0).mean().sqrt()
