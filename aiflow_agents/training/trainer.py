"""The training loop: one recipe, its phases, checkpoints that survive a kill, and a model folder that transformers loads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from math import cos, pi
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from aiflow_agents.errors import UserError
from aiflow_agents.training import tokenizer
from aiflow_agents.training.branches import add_branches, exit_states
from aiflow_agents.training.corpus import Batch, Heard, chunk
from aiflow_agents.training.muon import Muon
from aiflow_agents.training.recipe import Phase, Recipe


class Progress(NamedTuple):
    """Where training stands: tokens of this phase, the phase's goal, the smoothed loss, and tokens/s since the start or resume."""

    phase: int
    tokens: int
    goal: int
    loss: float
    rate: float


def build(recipe: Recipe) -> torch.nn.Module:
    """A fresh transformers model of the recipe's shape, initialised from its seed."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    size = recipe.size
    config_class = Qwen3Config if recipe.architecture == "qwen3" else LlamaConfig
    config = config_class(
        vocab_size=len(tokenizer.VOCABULARY),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.mlp,
        max_position_embeddings=recipe.max_length,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=tokenizer.BOS,
        eos_token_id=tokenizer.EOS,
        pad_token_id=tokenizer.PAD,
    )
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if recipe.exits:
        add_branches(model, sorted(recipe.exits))
    return model


def loss_of(model: Any, batch: Batch, exits: Mapping[int, float] | None = None) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens; the head runs only where a loss is taken. With `exits`, their mean by weight."""
    where = batch.targets >= 0
    if not exits:
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state  # [rows, longest, width]
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[where]), batch.targets[where])
    states = exit_states(model, batch.ids, sorted(exits))
    losses = [w * torch.nn.functional.cross_entropy(model.lm_head(states[e][where]), batch.targets[where]) for e, w in exits.items()]
    return torch.stack(losses).sum() / sum(exits.values())


def _phase(saved: Any) -> Phase | None:
    """A phase as a checkpoint has it, with what has come into the schema since at its default; None where it is none."""
    try:
        return Phase.model_validate(saved)
    except ValidationError:
        return None


class Trainer:
    """Trains one model through its phases. `step()`-free: `run` goes on from wherever the checkpoint stands."""

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "cpu", phases: Sequence[Phase] | None = None):
        self.recipe, self.folder, self.device = recipe, folder, device
        self.phases = tuple(phases or recipe.phases)
        self.model = build(recipe).to(device)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        inner = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in inner]
        self.optimizers = {"muon": Muon(matrices), "adamw": torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)}
        self.state: dict[str, Any] = {"phase": 0, "chunk": 0, "tokens": 0, "total_tokens": 0, "seconds": 0.0, "loss": 5.0}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def resume(self) -> bool:
        """Load the checkpoint, if there is one. Training then goes on as if it had never stopped, bit for bit on the same machine and CPU.

        Raises `UserError` for a checkpoint that another version of the recipe made, naming what differs, or that cannot be read.
        """
        file = self.checkpoint / "state.json"
        if not file.exists():
            return False
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            made = state.pop("recipe")
            tensors_file = self.checkpoint / f"tensors-{state['phase']}-{state['chunk']}.safetensors"
            tensors = load_file(tensors_file)
            with safe_open(tensors_file, "pt") as opened:
                phases = json.loads((opened.metadata() or {}).get("phases", "null"))
        except (ValueError, KeyError, AttributeError, FileNotFoundError, SafetensorError) as error:
            raise UserError(f"checkpoint {self.checkpoint} cannot be read ({error}); begin anew with --no-resume") from None
        recipe = self._recipe()
        differ = sorted(key for key in made.keys() | recipe.keys() if made.get(key) != recipe.get(key))
        begun = state["phase"] + (state["chunk"] > 0)  # phases that are still to come may change
        if phases is not None and [_phase(saved) for saved in phases[:begun]] != list(self.phases[:begun]):
            differ.append("phases")
        if differ:
            why = f"another version of recipe '{self.recipe.name}' (it differs in {', '.join(differ)})"
            raise UserError(f"checkpoint {self.checkpoint} was made by {why}; begin anew with --no-resume, or choose another --work")
        self._restore(tensors, state)
        return True

    def save_checkpoint(self) -> None:
        """Tensors first, then the small file that points at them, each renamed when whole: a kill at any instant loses nothing."""
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        current = f"tensors-{self.state['phase']}-{self.state['chunk']}.safetensors"
        part = self.checkpoint / f"{current}.part"
        save_file({k: v.contiguous() for k, v in self._tensors().items()}, part, {"phases": json.dumps(self._phases())})
        part.replace(self.checkpoint / current)
        part = self.checkpoint / "state.json.part"
        part.write_text(json.dumps(self.state | {"recipe": self._recipe()}), encoding="utf-8")
        part.replace(self.checkpoint / "state.json")
        for old in self.checkpoint.glob("tensors-*"):
            if old.name != current:
                old.unlink(missing_ok=True)

    def _recipe(self) -> dict[str, Any]:
        return self.recipe.model_dump(mode="json", exclude={"phases", "description"} | (set() if self.recipe.exits else {"exits"}))

    def _phases(self) -> list[dict[str, Any]]:
        return [phase.model_dump(mode="json") for phase in self.phases]

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Everything that training changes: `model.<name>`, `<optimizer>.<index of parameter>.<key>`. The head is the embedding."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        for name, optimizer in self.optimizers.items():
            for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
                tensors |= {f"{name}.{index}.{k}": v for k, v in optimizer.state[parameter].items()}
        return tensors

    def _restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
        for name, optimizer in self.optimizers.items():
            for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
                prefix = f"{name}.{index}."
                held = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                # AdamW counts its steps on the CPU
                optimizer.state[parameter] = {k: v.to("cpu" if k == "step" else parameter.device, copy=True) for k, v in held.items()}
            optimizer.zero_grad()
        self.state = dict(state)

    # -- training ----------------------------------------------------------------------------------------------------

    def run(
        self,
        pool: Sequence[Heard] = (),
        progress: Callable[[Progress], None] = lambda _: None,
        checkpoint_s: float = 60.0,
        until: int | None = None,
    ) -> None:
        """Train until phase number `until` (default: all) is reached. `pool` is needed by phases of kind `hear`.

        Ctrl-C goes back to the last whole chunk, saves it, and is raised again.
        """
        self._whole = self._snapshot()
        try:
            self._run(pool, progress, checkpoint_s, len(self.phases) if until is None else until)
        except KeyboardInterrupt:
            self._restore(*self._whole)
            self.save_checkpoint()
            raise

    def _run(self, pool: Sequence[Heard], progress: Callable[[Progress], None], checkpoint_s: float, until: int) -> None:
        began, saved, seen = time.monotonic(), time.monotonic(), 0
        while self.state["phase"] < until:
            index = int(self.state["phase"])
            phase = self.phases[index]
            if phase.kind == "hear" and not pool:
                raise UserError(f"recipe '{self.recipe.name}': phase {index} needs the answers of {', '.join(phase.peers)}")
            while self.state["tokens"] < phase.tokens:
                tick = time.monotonic()
                heard = pool if phase.kind == "hear" else ()
                truth = phase.truth * max(0.0, 1 - self.state["tokens"] / phase.tokens)
                for batch in chunk(phase.skills or self.recipe.skills, self._seed(index), int(self.state["chunk"]), phase.batch, heard, truth):
                    self._step(batch, phase)
                    seen += batch.tokens
                self.state["chunk"] += 1
                now = time.monotonic()
                self.state["seconds"] += now - tick
                self._whole = self._snapshot()
                progress(Progress(index, int(self.state["tokens"]), phase.tokens, self.state["loss"], seen / (now - began)))
                if now - saved > checkpoint_s:
                    self.save_checkpoint()
                    saved = time.monotonic()
            self.state |= {"phase": index + 1, "chunk": 0, "tokens": 0}
            for optimizer in self.optimizers.values():
                optimizer.state.clear()
            self._whole = self._snapshot()
            self.save_checkpoint()

    def _snapshot(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """A copy to go back to: between chunks, because a chunk is the smallest step that can be resumed."""
        return {k: v.clone() for k, v in self._tensors().items()}, dict(self.state)

    def _seed(self, phase: int) -> int:
        return self.recipe.seed * 1000 + phase

    def _step(self, batch: Batch, phase: Phase) -> None:
        done = self.state["tokens"] / phase.tokens
        warm = min(1.0, done / phase.warmup) if phase.warmup else 1.0
        scale = max(warm, 0.02) * (0.02 + 0.98 * 0.5 * (1 + cos(pi * min(done, 1.0))))
        self.optimizers["muon"].param_groups[0]["lr"] = phase.lr * scale
        self.optimizers["adamw"].param_groups[0]["lr"] = phase.lr * scale * 0.25
        loss = loss_of(self.model, Batch(batch.ids.to(self.device), batch.targets.to(self.device), batch.tokens), self.recipe.exits)
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self.state["loss"] = 0.98 * self.state["loss"] + 0.02 * float(loss.detach())
        self.state["tokens"] += batch.tokens
        self.state["total_tokens"] += batch.tokens

    def export(self, folder: Path) -> None:
        """Write the model as transformers does, weights in bfloat16, with its tokenizer. The weights come last: where they are, all is."""
        from transformers import AutoModelForCausalLM

        copy: Any = AutoModelForCausalLM.from_config(self.model.config, dtype=torch.bfloat16)
        if self.recipe.exits:
            add_branches(copy, sorted(self.recipe.exits))
        copy.load_state_dict(self.model.state_dict(), strict=False)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder) as written:
            part = Path(written)
            copy.save_pretrained(part)
            tokenizer.save(part, self.recipe.max_length)
            for file in sorted(part.iterdir(), key=lambda file: file.suffix == ".safetensors"):
                file.chmod(0o644)
                file.replace(folder / file.name)
