"""A predictive codec taught by what it is for: fewer bits, and the same next tokens.

    loss = bits a number + value * KL(exact next tokens, next tokens after decoding), at the places that predict an answer

The closed-form codec is where this begins. The predictor gets a hidden layer; then everything is moved by the loss itself, with rounding as noise for
the rate and straight through for the error (Balle et al., arXiv:1611.01704). What comes out is the same coding with other numbers in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aiflow_agents.skills.splits import stream
from aiflow_agents.training.cut import ROWS, Cut, Texts, texts
from aiflow_agents.wire.codecs import Codec, Sample
from aiflow_agents.wire.codecs.plain import Coding
from aiflow_agents.wire.codecs.predictive import DEAD, Predictive
from aiflow_agents.wire.codecs.predictor import Predictor

POOL = 20  # batches drawn together and sorted by length
NOISE = 0.15  # deviation of what the predictor looks back on, while it is taught alone
RATES = {"predictor": 4e-4, "bases": 2e-4, "spreads": 2e-2}  # highest learning rates of the second part


def refined(cut: Cut, fitted: Codec, samples: Mapping[str, Sample], skills: Mapping[str, float], **how: Any) -> Codec:
    """A fitted `predict` codec, every space of it taught (`how`: as for `refine`) and its symbols counted on the samples that it was fitted on."""
    codings: dict[str, Coding] = {}
    for space, sample in samples.items():
        coding = fitted.codings[space]
        assert isinstance(coding, Predictive)
        taught = refine(cut, coding, skills, **how)
        y, ids, present = sample.padded("predict")
        codings[space] = taught.counted((y - taught.mean) / taught.scale, ids, present)
    return Codec(fitted.spec, codings, text=fitted.text)


def refine(
    cut: Cut,
    coding: Predictive,
    skills: Mapping[str, float],
    *,
    value: float,
    hidden: int = 128,
    steps: tuple[int, int] = (1500, 1000),
    seed: int = 0,
    watch: Any = None,
) -> Predictive:
    """Teach a coding on training questions: `steps` of the predictor alone, then of everything. Its entropy model must be counted anew afterwards."""
    torch.manual_seed(seed)
    model = _Model(coding, hidden)
    data = _batches(cut, skills, seed)
    for name, count, groups, loss in (
        ("predictor", steps[0], model.first_part(), lambda batch, step: model.surprise(batch, cut)),
        ("everything", steps[1], model.second_part(), lambda batch, step: model.price(batch, cut, step, value)),
    ):
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        highest = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, max(count, 1), pct_start=0.15, final_div_factor=10)
        if watch is not None:
            watch.stage(f"{name}, layer {cut.layer}", count)
        for step in range(count):
            optimizer.zero_grad()
            loss(next(data), step).backward()
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            optimizer.step()
            schedule.step()
            if watch is not None:
                watch.advance(1)
    return model.coding()


def _batches(cut: Cut, skills: Mapping[str, float], seed: int) -> Iterator[Texts]:
    questions, rng = stream(skills, "train", seed), Random(seed)
    while True:
        pool = list(texts(list(islice(questions, ROWS * POOL))))
        rng.shuffle(pool)
        yield from pool


class _Model(nn.Module):
    """The arrays of a coding as parameters, and `Walk` for all positions at once."""

    def __init__(self, coding: Predictive, hidden: int):
        super().__init__()
        self.start, p = coding, coding.predictor

        def widened(table: np.ndarray, spread: float) -> nn.Parameter:
            new = torch.randn(*table.shape[:-1], hidden) * spread
            return nn.Parameter(torch.cat([torch.from_numpy(np.ascontiguousarray(table, np.float32)), new], -1))

        self.lag, self.place, self.bag = widened(p.lag, 0.05), widened(p.place, 0.05), widened(p.bag, 0.05)
        self.recent = widened(p.recent, p.recent.shape[0] ** -0.5)
        self.out = nn.Parameter(torch.cat([torch.from_numpy(p.out.copy()), torch.zeros(hidden, p.width)]))
        self.analysis = nn.Parameter(torch.from_numpy(coding.analysis.copy()))
        self.synthesis = nn.Parameter(torch.from_numpy(coding.synthesis.copy()))
        self.log_gain = nn.Parameter(torch.from_numpy(coding.gain).log())
        self.log_spread = nn.Parameter(torch.from_numpy(coding.contexts.spreads()).log())

    def first_part(self) -> list[dict[str, Any]]:
        return [{"params": self._predictor(), "lr": 6e-3}]

    def second_part(self) -> list[dict[str, Any]]:
        groups = {"predictor": self._predictor(), "bases": [self.analysis, self.synthesis], "spreads": [self.log_spread, self.log_gain]}
        return [{"params": params, "lr": RATES[name]} for name, params in groups.items()]

    def _predictor(self) -> list[nn.Parameter]:
        return [self.lag, self.place, self.bag, self.recent, self.out]

    def predicted(self, ids: Tensor, past: Tensor) -> Tensor:
        """ids [rows, positions]; past: decoded states [rows, positions, width], of which each position sees those before -> what is expected."""
        rows, positions = ids.shape
        count = torch.arange(1, positions + 1)[:, None]
        z = self.bag[ids].cumsum(1) / count + self.place[torch.arange(positions).clamp(max=len(self.place) - 1)]
        for i, table in enumerate(self.lag):
            z = z + table[nn.functional.pad(ids, (i, 0), value=len(table) - 1)[:, :positions]]
        last, second = (nn.functional.pad(past, (0, 0, lag, 0))[:, :positions] for lag in (1, 2))
        z = z + torch.cat([last, second, last.cumsum(1) / (count - 1).clamp(min=1)], -1) @ self.recent
        width = past.shape[-1]
        return z[..., :width] + nn.functional.silu(z[..., width:]) @ self.out

    def surprise(self, batch: Texts, cut: Cut) -> Tensor:
        """Mean square of what the prediction leaves, in steps."""
        y, ids = self._normed(batch, cut), self._ids(batch)
        left = self._turned(y - self.predicted(ids, y + NOISE * torch.randn_like(y)), self.analysis.detach(), ids) * self._gain(ids).detach()
        return left[batch.present].square().mean()

    def price(self, batch: Texts, cut: Cut, turn: int, value: float) -> Tensor:
        """What a batch costs: bits a number, and what the receiver no longer knows."""
        y, ids = self._normed(batch, cut), self._ids(batch)
        gain, noise = self._gain(ids), torch.rand_like(y) - 0.5
        with torch.no_grad():  # what the receiver will look back on: guessed with noise for rounding, then once more with what that gives
            expected = self.predicted(ids, y + self._turned(noise / gain, self.synthesis, ids))
            past = expected + self._turned(_rounded(self._turned(y - expected, self.analysis, ids) * gain) / gain, self.synthesis, ids)
        expected = self.predicted(ids, past)
        wanted = self._turned(y - expected, self.analysis, ids) * gain
        decoded = expected + self._turned((wanted + (_rounded(wanted) - wanted).detach()) / gain, self.synthesis, ids)
        bits = _laplace_bits(wanted + noise, self.log_spread[self._contexts(ids)].exp())[batch.present].mean()
        hidden = torch.where(batch.present[..., None], decoded * float(self.start.scale) + torch.from_numpy(self.start.mean), 0.0)
        with torch.no_grad():
            exact = cut.above(cut.below(batch.ids), turn)[batch.answers].log_softmax(-1)
        said = cut.above(hidden, turn)[batch.answers].log_softmax(-1)
        return bits + value * (exact.exp() * (exact - said)).sum(-1).mean()

    def _normed(self, batch: Texts, cut: Cut) -> Tensor:
        return (cut.below(batch.ids) - torch.from_numpy(self.start.mean)) / float(self.start.scale)

    def _ids(self, batch: Texts) -> Tensor:
        return batch.ids.clamp(max=self.start.predictor.vocab)

    def _turned(self, x: Tensor, bases: Tensor, ids: Tensor) -> Tensor:
        """x [rows, positions, n] times the basis of each place's side."""
        sides = torch.from_numpy(self.start.sides(self._contexts(ids).numpy()))[..., None]
        return torch.stack([(x @ matrix) * (sides == k) for k, matrix in enumerate(bases)]).sum(0)

    def _contexts(self, ids: Tensor) -> Tensor:
        return torch.from_numpy(self.start.contexts.of(ids.numpy()))

    def _gain(self, ids: Tensor) -> Tensor:
        return self.log_gain[self._contexts(ids)].exp()[..., None]

    def coding(self) -> Predictive:
        """As numbers again. The entropy model is the old one."""
        arrays = {name: parameter.detach().numpy().copy() for name, parameter in self.named_parameters()}
        predictor = Predictor(**{name: arrays[name] for name in ("lag", "place", "bag", "recent", "out")}).rounded()
        gain = np.exp(arrays["log_gain"])
        return replace(self.start, predictor=predictor, analysis=arrays["analysis"], synthesis=arrays["synthesis"], gain=gain)


def _rounded(wanted: Tensor) -> Tensor:
    return wanted.sign() * (wanted.abs() + (0.5 - DEAD)).floor()


def _laplace_bits(x: Tensor, spread: Tensor) -> Tensor:
    """Of an interval of width 1 around x, for a symbol of mean magnitude about `spread`."""

    def below(edge: Tensor) -> Tensor:
        tail = 0.5 * torch.exp(-edge.abs() / spread)
        return torch.where(edge < 0, tail, 1 - tail)

    outer = 0.5 * torch.exp(-(x.abs() - 0.5).clamp(min=0) / spread) * (1 - torch.exp(-1 / spread))  # exact where the difference is rounded away
    inside = torch.where(x.abs() > 0.5, outer, below(x + 0.5) - below(x - 0.5))
    return -torch.log2(inside + 1e-6)
