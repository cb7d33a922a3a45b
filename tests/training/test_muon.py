from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.skills.splits import Question
from aiflow_agents.training.corpus import collate, example
from aiflow_agents.training.muon import Muon, orthogonalise
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.trainer import build, loss_of


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 40), columns=st.integers(2, 40), scale=st.sampled_from([1e-4, 1.0, 1e4]), seed=st.integers(0, 999))
def test_singular_values_come_near_one_and_directions_stay(rows: int, columns: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    # singular values within a factor of twenty, as the five steps are made for
    u, _, v = torch.linalg.svd(torch.randn(2, rows, columns), full_matrices=False)
    s = torch.rand(2, min(rows, columns)) * 0.95 + 0.05
    made = orthogonalise(scale * (u * s[:, None]) @ v)
    assert made.shape == (2, rows, columns)
    inner = u.mT @ made @ v.mT  # diagonal if the singular vectors are kept
    found = inner.diagonal(dim1=-2, dim2=-1)
    assert ((found > 0.5) & (found < 1.35)).all()
    assert (inner - torch.diag_embed(found)).abs().max() < 1e-3


def test_one_step_is_the_published_update() -> None:
    """First step: momentum buffer m = (1-b) g, update = (1-b) g + b m, orthogonalised, scaled by sqrt(rows / columns) where tall."""
    torch.manual_seed(0)
    start, gradient = torch.randn(12, 3), torch.randn(12, 3)
    weight = torch.nn.Parameter(start.clone())
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1, momentum=0.9).step()
    # scale does not change the direction, so the update is the orthogonalised gradient
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    moved = (start - weight.detach()) / (0.1 * 2.0)
    assert torch.allclose(torch.linalg.svdvals(moved), torch.ones(3), atol=0.35)
    inner = u.mT @ moved @ v.mT
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-3


@pytest.mark.parametrize("with_muon", [True, False])
def test_the_loss_of_a_tiny_model_falls(tiny: Recipe, with_muon: bool) -> None:
    """Without the step of Muon the same few steps do not get there, so it is Muon that is tested."""
    model = build(tiny)
    torch.nn.init.normal_(model.get_parameter("model.embed_tokens.weight"))  # fixed, so it must be able to tell tokens apart
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    batch = collate([example(Question("add", f"{a}+{b}=", str(a + b))) for a in range(10, 14) for b in range(20, 24)])
    optimizer = Muon(matrices, lr=0.05)
    first = last = float(loss_of(model, batch).detach())
    for _ in range(30):
        loss = loss_of(model, batch)
        loss.backward()
        if with_muon:
            optimizer.step()
        model.zero_grad()
        last = float(loss.detach())
    assert (last < 0.5 * first) == with_muon
