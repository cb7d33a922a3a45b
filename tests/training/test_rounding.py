"""Features in whole steps: which stay, how far the others go, and that directions which tell things apart are kept."""

from __future__ import annotations

import torch

from aiflow_agents.training.rounding import FINEST, information, rounded


def test_information_is_that_of_every_answer_by_its_gradient() -> None:
    torch.manual_seed(0)
    head, x = torch.nn.Linear(6, 4), torch.randn(5, 6)
    total = torch.zeros(6, 6)
    for row in x:
        here = row.clone().requires_grad_(True)
        said = head(here).log_softmax(-1)
        for k in range(4):
            (slope,) = torch.autograd.grad(said[k], here, retain_graph=True)
            total += said[k].exp().detach() * torch.outer(slope, slope)
    assert torch.allclose(information(x, head), total * 6 / total.trace(), atol=1e-5)


def test_some_stay_and_the_coarser_the_further_others_go() -> None:
    torch.manual_seed(1)
    head, features = torch.nn.Linear(12, 5), torch.randn(400, 4, 12) + torch.randn(4, 12)
    fine, coarse = (rounded(features, head, most, torch.Generator().manual_seed(2)) for most in (FINEST, 4.0))
    moved = (coarse - features).flatten(1).norm(dim=1)
    assert 60 < (moved < 1e-4).sum() < 140 and moved.max() > 3 * (fine - features).flatten(1).norm(dim=1).max()
    kind = torch.rand(400, generator=torch.Generator().manual_seed(2))
    named = (head(coarse).softmax(-1) - head(features).softmax(-1)).abs().sum((1, 2)) / moved.clamp(min=1e-6)
    assert named[kind > 0.625].mean() < 0.7 * named[(kind > 0.25) & (kind < 0.625)].mean()
