"""Branches for a model that is already there: any Llama, Qwen2 or Qwen3 checkpoint becomes a family.

    backbone, as it is -----------------------+- layer n-1 - norm - head: what it would say  --.
                        +- own block - own norm - head: what the branch says, made like it   --'

A branch's block begins as a copy of the backbone layer it stands beside. The backbone is left alone, to the bit, and every branch learns to say what
the whole model says (self-distillation; Balcony, arXiv:2503.05005). With `joint` all of it is trained on the text itself, the deeper exits weighing
more, as in EE-LLM (arXiv:2312.04916) and Ruyi2.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy, kl_div

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.config import RUYI, DecoderConfig
from aiflow_agents.models.family.export import size_of, stored, write
from aiflow_agents.models.family.info import model_info
from aiflow_agents.training.branches import add_branches, exit_states
from aiflow_agents.training.corpus import Batch
from aiflow_agents.training.loop import Training
from aiflow_agents.training.recipe import Phase
from aiflow_agents.training.sources import Source
from aiflow_agents.training.trainer import loss_of

DECAY = 0.8


class Fit(NamedTuple):
    """How near an exit is, over held-out positions: to what is right (`loss`, cross-entropy in nats), and to what the last exit says (`kl` in nats,
    and `agreement`, the share of positions at which both find the same token likeliest)."""

    loss: float
    kl: float
    agreement: float


def check_exits(config: DecoderConfig, exits: Iterable[int]) -> tuple[int, ...]:
    """The exits of the family to be, ascending, with the last one. Raises `UserError` for one that cannot be, and where there is none to add."""
    last = config.layers - 1
    found = sorted({*exits, last})
    if not 0 <= found[0] <= found[-1] <= last:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise UserError(f"no exit {wrong}: this model has {config.layers} layers, so an exit is a number from 0 to {last}")
    if found == [last]:
        more = f"add a number from 0 to {last - 1}" if last else "before it there is no layer to leave at"
        raise UserError(f"exit {last} is the whole model, which is there already; {more}")
    return tuple(found)


def tier_exits(config: DecoderConfig, budgets: Mapping[str, int]) -> dict[str, int]:
    """The deepest exit of no more than so many parameters, for each tier. Raises `UserError` for a budget that none fits."""
    every = replace(config, exits=tuple(range(config.layers)))
    counts = [size_of(every, e)["parameters"] for e in every.exits]
    found = {}
    for tier, budget in budgets.items():
        fitting = [e for e, count in enumerate(counts) if count <= budget]
        if not fitting:
            raise UserError(f"nothing fits {tier}={budget}: the smallest exit, 0, has {counts[0]:,} parameters")
        found[tier] = fitting[-1]
    return found


def load_base(folder: Path, exits: Sequence[int]) -> Any:
    """A checkpoint as a transformers model in float32, with fresh branches. Raises `UserError` for one that cannot be grown."""
    from transformers import AutoModelForCausalLM

    config, kind = DecoderConfig.read(folder), json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    if len(config.exits) > 1 or kind in RUYI:
        plain = f"make a plain model of one first: aiflow family export {folder} --exit {config.exits[-1]} OUT"
        raise UserError(f"model folder {folder} is a family already, with the exits {', '.join(map(str, config.exits))}; {plain}")
    try:
        model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model folder {folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    except RuntimeError:  # what transformers raises for a shape that does not fit; which one, it only logs
        raise UserError(f"model folder {folder} cannot be loaded: its weights have other shapes than its config.json says") from None
    if told["missing_keys"]:
        raise UserError(f"model folder {folder} has no weight '{min(told['missing_keys'])}', which its config.json calls for")
    add_branches(model, exits)
    return model.eval()  # no dropout: what is learnt is what this very model says


class Grower(Training):
    """Trains the branches of one base: `run`, and `resume` before it, as of every training; then `export`."""

    def __init__(
        self,
        base: Path,
        exits: Sequence[int],
        source: Source,
        folder: Path,
        *,
        tokens: int,
        lr: float,
        joint: bool = False,
        decay: float = DECAY,
        device: str = "cpu",
    ):
        self.base, self.exits, self.source, self.joint = base, check_exits(DecoderConfig.read(base), exits), source, joint
        model = load_base(base, self.exits)
        if not joint:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(_is_new(name))
        super().__init__(model, folder, [Phase.model_validate({"kind": "answer", "tokens": tokens, "lr": lr})], device)
        self.another = f"another growth of '{base.name}'"
        self.weights = {e: decay**below for below, e in enumerate(reversed(self.exits))}
        self.made_of = {"base": model_info(base).weights_hash, "exits": list(self.exits), "joint": joint, **source.made_of}
        self.made_of |= {"tokens": tokens, "lr": lr} | ({"decay": decay} if joint else {})

    def _recipe(self) -> dict[str, Any]:
        return self.made_of

    def _batches(self, phase: int, chunk: int) -> Iterable[Batch]:
        return self.source.chunk(chunk)

    def _loss(self, batch: Batch) -> torch.Tensor:
        if self.joint:
            return loss_of(self.model, batch, self.weights)
        said = self._said(batch)
        return torch.stack([_divergence(said[e], said[self.exits[-1]]) for e in self.exits[:-1]]).mean()

    def _said(self, batch: Batch) -> dict[int, torch.Tensor]:
        """exit -> log-probabilities of the next token wherever a loss is taken, [positions, vocab]."""
        states, where = exit_states(self.model, batch.ids, self.exits), batch.targets >= 0
        return {e: self.model.lm_head(states[e][where]).log_softmax(-1) for e in self.exits}  # type: ignore[operator]

    @torch.no_grad()
    def measure(self) -> dict[int, Fit]:
        """How near each exit is, on what was held."""
        total, sums = 0, {e: torch.zeros(3, dtype=torch.float64) for e in self.exits}
        for batch in self.source.held:
            batch = batch.to(self.device)
            said, right = self._said(batch), batch.targets[batch.targets >= 0]
            whole = said[self.exits[-1]]
            for e in self.exits:
                agreed = (said[e].argmax(-1) == whole.argmax(-1)).double().mean()
                sums[e] += len(right) * torch.stack([cross_entropy(said[e], right), _divergence(said[e], whole), agreed]).double().cpu()
            total += len(right)
        return {e: Fit(*(each / total).tolist()) for e, each in sums.items()}

    def export(self, out: Path) -> None:
        """Write the family: all tensors of the base as stored (joint: trained, in their dtypes); a branch has the dtypes of what it stands beside."""
        base, now = stored(self.base), self.model.state_dict()
        tensors = {name: now[name].to(tensor.dtype, copy=True) if self.joint and name in now else tensor for name, tensor in base.items()}
        for i, e in enumerate(self.exits[:-1]):
            beside = {f"model.layers.{e}.": f"model.eelayers.{i}.", "model.norm.": f"model.norms.{i}."}
            for name, tensor in base.items():
                for prefix, own in beside.items():
                    if name.startswith(prefix) and (new := own + name.removeprefix(prefix)) in now:
                        tensors[new] = now[new].to(tensor.dtype, copy=True)
        config = json.loads((self.base / "config.json").read_text(encoding="utf-8"))
        if (self.base / "recipe.yaml").exists():
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.base / "recipe.yaml", out / "recipe.yaml")
        write(out, config | {"early_exit_points": list(self.exits), "shared_heads": True}, tensors, beside=self.base)


def _is_new(name: str) -> bool:
    return name.startswith(("model.eelayers.", "model.norms."))


def _divergence(said: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Mean KL(whole || said) over positions, in nats; both are log-probabilities [positions, vocab]."""
    return kl_div(said, whole, log_target=True, reduction="batchmean")
