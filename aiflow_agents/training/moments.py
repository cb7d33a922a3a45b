"""What a model's linear layers read, and how much its predictions care about what they put out: second moments over some text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.config import DecoderConfig
from aiflow_agents.models.family.export import stored
from aiflow_agents.models.family.rank import linears
from aiflow_agents.training.branches import add_branches, exit_states
from aiflow_agents.training.corpus import Batch
from aiflow_agents.training.sources import is_text

LAYER = re.compile(r"model\.(layers|eelayers)\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj")
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # measured once for all that read it


class Moments(NamedTuple):
    """Of one layer y = W x, float64. g is the gradient of -log p(token) by y, for tokens distributed as the model's own predictions say."""

    inputs: Tensor  # E[x x'] [in, in]
    absolute: Tensor  # E|x| [in]
    gradients: Tensor  # E[g g'] [out, out]


class Exits(torch.nn.Module):
    """A transformers model with all its exits: ids [rows, positions] -> what the head reads at each exit, [rows, positions, width]."""

    def __init__(self, model: Any, exits: tuple[int, ...]):
        super().__init__()
        self.whole, self.exits = model, exits

    def forward(self, ids: Tensor) -> dict[int, Tensor]:
        return exit_states(self.whole, ids, self.exits)

    def head(self, states: Tensor) -> Tensor:
        return self.whole.lm_head(states)


def load(folder: Path) -> Exits:
    """A checkpoint in float32 with its branches, frozen. Raises `UserError` for one that cannot be decomposed."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    DecoderConfig.read(folder)
    if linears(folder):
        raise UserError(f"model folder {folder} is decomposed already; decompose the checkpoint that it was made from")
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    exits = tuple(raw.get("early_exit_points") or [raw["num_hidden_layers"] - 1])
    logging.disable_progress_bar()
    if len(exits) == 1:
        return Exits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), exits).eval().requires_grad_(False)
    if raw["model_type"].startswith("ruyi") or not raw.get("shared_heads"):
        hint = f"decompose one of its exits: aiflow family export {folder} --exit E OUT"
        raise UserError(f"model folder {folder} is a family with several heads; {hint}")
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    add_branches(model, exits)
    tensors = {name: tensor.float() for name, tensor in stored(folder).items()}
    missing = sorted(set(model.state_dict()) - set(tensors) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set()))
    if missing:
        raise UserError(f"model folder {folder} has no weight '{missing[0]}', which its config.json calls for")
    model.load_state_dict(tensors, strict=False)
    return Exits(model, exits).eval().requires_grad_(False)


def layers(model: Exits) -> dict[str, torch.nn.Linear]:
    """The linear layers of all blocks, branches' own ones included, by their names in a checkpoint."""
    return {name: module for name, module in model.whole.named_modules() if LAYER.fullmatch(name)}


def measure(model: Exits, batches: Iterable[Batch], seed: int = 0, progress: Callable[[int], None] = lambda tokens: None) -> dict[str, Moments]:
    """The moments of every layer over all positions that are text; `progress` gets the tokens of each batch.

    Gradients come from where a loss is taken, so what the loss does not feel has none. No token is drawn for them, as a sure model would hardly ever
    draw one that says something: signs are, which give the same second moment, diag(p) - p p' by the logits, with less noise. Sums are in double.
    """
    found, draw = layers(model), torch.Generator().manual_seed(seed)
    sums: dict[str, Any] = {}
    text, seen = torch.tensor(True), 0

    def add(key: str, value: Tensor) -> None:
        sums[key] = sums.get(key, 0.0) + value.double()

    def watch(name: str) -> Callable[..., None]:
        reads = name.rpartition(".")[2] not in SAME_INPUT

        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()[text]  # [tokens, in]
            if reads:
                add(f"{name}.inputs", x.T @ x)
                add(f"{name}.absolute", x.abs().sum(0))
            output.register_hook(lambda g: add(f"{name}.gradients", g[text].T @ g[text]))

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in found.items()]
    embedding = model.whole.get_input_embeddings().weight.requires_grad_(True)  # so that there is something to go back to
    try:
        for batch in batches:
            text = is_text(batch)
            seen += int(text.sum())
            said = [model.head(states[batch.targets >= 0]) for states in model(batch.ids).values()]  # logits [targets, vocab] of each exit
            torch.autograd.grad(said, embedding, [_noise(logits.detach().softmax(-1), draw) for logits in said])
            progress(batch.tokens)
    finally:
        embedding.requires_grad_(False)
        for one in hooks:
            one.remove()
    if not seen:
        raise UserError("there is no text to measure a model's layers on")

    def of(name: str) -> Moments:
        block, _, layer = name.rpartition(".")
        source = f"{block}.{SAME_INPUT.get(layer, layer)}"
        return Moments(sums[f"{source}.inputs"] / seen, sums[f"{source}.absolute"] / seen, sums[f"{name}.gradients"] / seen)

    return {name: of(name) for name in found}


def _noise(p: Tensor, draw: torch.Generator) -> Tensor:
    """p [targets, vocab] -> gradients by the logits, of mean 0 and second moment diag(p) - p p' in each row."""
    signs = torch.randint(0, 2, p.shape, generator=draw) * 2 - 1
    v = p.sqrt() * signs
    return v - p * v.sum(-1, keepdim=True)
