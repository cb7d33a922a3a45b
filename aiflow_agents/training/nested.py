"""Fine-tuning of nested factors: every step draws a size, cut alike everywhere or by budget, so that one set of factors becomes good at all of them.

Only one factor of a layer is trained, the square one [full, full]; the other follows from it and the original weight W, so that b @ a = W whatever is
learned: **the full size is the original model for ever**, and a smaller rank stays a prefix of a larger one.

    out <= in:  b is trained, a = b^-1 W          out > in:  a is trained, b = W a^-1

The loss is half cross-entropy, half KL to the original model's predictions. A size far from the original has far larger gradients than one that is
nearly right, so each is divided by the root of its usual KL. Embeddings, norms and biases stay as they are, as all sizes share them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.rank import Linear, allot
from aiflow_agents.training.corpus import Batch
from aiflow_agents.training.decompose import Factors
from aiflow_agents.training.moments import Exits, layers
from aiflow_agents.training.sources import Source

WARM = 0.03  # of all tokens
LEAST_KL = 1e-3


@dataclass(frozen=True)
class Tuning:
    """How to tune: `keeps` are the sizes that steps draw from."""

    tokens: int
    keeps: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    lr: float = 1e-3
    seed: int = 0


class Progress(NamedTuple):
    """Where tuning stands: tokens of all, the smoothed KL by size, tokens/s since the start or resume."""

    tokens: int
    goal: int
    kl: dict[float, float]
    rate: float


class Tuner:
    """Tunes the factors of one model. A chunk of the source is the smallest step that can be resumed."""

    def __init__(self, model: Exits, found: Mapping[str, Factors], source: Source, how: Tuning, checkpoint: Path | None = None, about: str = ""):
        """`about` names model, method and data: a checkpoint that has another one, or another `how`, is refused."""
        self.model, self.source, self.how, self.checkpoint = model, source, how, checkpoint
        self.spectra = {name: layer.spectrum for name, layer in found.items()}
        self.whole = {name: layer.weight for name, layer in layers(model).items()}
        self.square = {name: torch.nn.Parameter((layer.b if _wide(self.whole[name]) else layer.a).clone()) for name, layer in found.items()}
        shapes = {name: Linear(*weight.shape) for name, weight in self.whole.items()}
        spectra = {name: spectrum.double().numpy() for name, spectrum in self.spectra.items()}
        dense = sum(layer.dense for layer in shapes.values())
        alike = {keep: {name: layer.rank(keep) for name, layer in shapes.items()} for keep in how.keeps}
        self.ranks = {keep: (ranks, allot(shapes, spectra, int(keep * dense))) for keep, ranks in alike.items()}
        self.optimizer = torch.optim.AdamW(self.square.values(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        self.state: dict[str, Any] = {"about": about, "how": json.loads(json.dumps(asdict(how))), "chunk": 0, "tokens": 0, "kl": {}}

    def factors(self) -> dict[str, Factors]:
        """The factors as they are now; spectra are those of the decomposition."""
        return {name: Factors(b.detach().contiguous(), a.detach().contiguous(), self.spectra[name]) for name, (b, a) in self._pairs().items()}

    def run(self, progress: Callable[[Progress], None] = lambda _: None, checkpoint_s: float = 60.0) -> dict[str, Factors]:
        """Tune until all tokens are seen, from the checkpoint if there is one. Ctrl-C leaves the last checkpoint behind."""
        self._resume()
        began = saved = time.monotonic()
        start = int(self.state["tokens"])
        while self.state["tokens"] < self.how.tokens:
            draw = Random(f"sizes/{self.how.seed}/{self.state['chunk']}")
            for batch in self.source.chunk(int(self.state["chunk"])):
                keep = draw.choice(self.how.keeps)
                self._step(batch, keep, draw.choice(self.ranks[keep]))
            self.state["chunk"] += 1
            now = time.monotonic()
            kl = {float(keep): value for keep, value in self.state["kl"].items()}
            progress(Progress(int(self.state["tokens"]), self.how.tokens, kl, (self.state["tokens"] - start) / (now - began)))
            if now - saved > checkpoint_s:
                self.save()
                saved = now
        return self.factors()

    # -- one step ----------------------------------------------------------------------------------------------------

    def _pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Both factors of every layer, (b [out, full], a [full, in]), with gradients to the square one."""
        pairs = {}
        for name, square in self.square.items():
            whole = self.whole[name]
            wide = _wide(whole)
            pairs[name] = (square, torch.linalg.solve(square, whole)) if wide else (torch.linalg.solve(square, whole, left=False), square)
        return pairs

    def logits(self, batch: Batch, ranks: Mapping[str, int] | None) -> list[Tensor]:
        """What each exit says where a loss is taken, [targets, vocab], with these ranks; None: the original."""
        where = batch.targets >= 0
        if ranks is None:
            states = self.model(batch.ids)
        else:
            weights = {f"whole.{name}.weight": b[:, : ranks[name]] @ a[: ranks[name]] for name, (b, a) in self._pairs().items()}
            states = torch.func.functional_call(self.model, weights, (batch.ids,))
        return [self.model.head(state[where]) for state in states.values()]

    def _step(self, batch: Batch, keep: float, ranks: Mapping[str, int]) -> None:
        done = self.state["tokens"] / self.how.tokens
        for group in self.optimizer.param_groups:
            group["lr"] = self.how.lr * min(1.0, max(done / WARM, 0.02)) * (0.02 + 0.98 * 0.5 * (1 + cos(pi * min(done, 1.0))))
        with torch.no_grad():
            original = [logits.log_softmax(-1) for logits in self.logits(batch, None)]
        said = [logits.log_softmax(-1) for logits in self.logits(batch, ranks)]
        targets = batch.targets[batch.targets >= 0]
        kl = torch.stack([(b.exp() * (b - a)).sum(-1).mean() for a, b in zip(said, original, strict=True)]).mean()
        right = torch.stack([torch.nn.functional.nll_loss(a, targets) for a in said]).mean()
        usual = self._usual(keep, float(kl.detach()))
        ((kl + right) / 2 / max(usual, LEAST_KL) ** 0.5).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state["tokens"] += batch.tokens

    def _usual(self, keep: float, kl: float) -> float:
        """The smoothed KL of a size, with this step's."""
        before = self.state["kl"].get(str(keep), kl)
        self.state["kl"][str(keep)] = 0.9 * before + 0.1 * kl
        return float(self.state["kl"][str(keep)])

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """One file, renamed when whole: tensors, and the state as its metadata."""
        if self.checkpoint is None:
            return
        tensors = {f"square.{name}": square.detach() for name, square in self.square.items()}
        for name, square in self.square.items():
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[square].items()}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = self.checkpoint.with_name(f"{self.checkpoint.name}.part")
        save_file(tensors, part, {"state": json.dumps(self.state)})
        part.replace(self.checkpoint)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            with safe_open(self.checkpoint, "pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                if (state["about"], state["how"]) != (self.state["about"], self.state["how"]):
                    raise UserError(f"checkpoint {self.checkpoint} is that of another tuning; remove it to begin anew")
                for name, square in self.square.items():
                    square.data.copy_(file.get_tensor(f"square.{name}"))
                    self.optimizer.state[square] = {key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"checkpoint {self.checkpoint} cannot be read ({error}); remove it to begin anew") from None
        self.state = state


def _wide(weight: Tensor) -> bool:
    """Whether a weight [out, in] has no more rows than columns, so that b is the square factor."""
    return weight.shape[0] <= weight.shape[1]


def tune(model: Exits, found: Mapping[str, Factors], source: Source, how: Tuning, **options: Any) -> dict[str, Factors]:
    """`Tuner(...).run()`; options of both. Without tokens the factors come back as they are."""
    if not how.tokens:
        return dict(found)
    run = {key: options.pop(key) for key in ("progress", "checkpoint_s") if key in options}
    return Tuner(model, found, source, how, **options).run(**run)


def sizes(keeps: Sequence[float]) -> tuple[float, ...]:
    """Sizes to tune, largest first. Raises `UserError` for one outside (0, 1); 1 itself needs no tuning and is left out."""
    for keep in keeps:
        if not 0 < keep <= 1:
            raise UserError(f"a model keeps more than 0 and at most 1 of its parameters, not {keep:g}")
    found = tuple(sorted({keep for keep in keeps if keep < 1}, reverse=True))
    if not found:
        raise UserError("tuning needs sizes below 1: the full size is the original model")
    return found
