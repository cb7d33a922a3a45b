"""The training loop: chunks of batches, two optimizers, and checkpoints that survive a kill. What is trained, and on what, its users say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import cos, pi
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from aiflow_agents.errors import UserError
from aiflow_agents.training.corpus import Batch
from aiflow_agents.training.muon import Muon
from aiflow_agents.training.recipe import Phase


class Progress(NamedTuple):
    """Where training stands: tokens of this phase, the phase's goal, the smoothed loss, and tokens/s since the start or resume."""

    phase: int
    tokens: int
    goal: int
    loss: float
    rate: float


class Training:
    """Trains those parameters of a transformers model that ask for a gradient. `run` goes on from wherever the checkpoint stands.

    A subclass says what decides the result besides the phases (`_recipe`), the batches of a chunk (`_batches`) and the loss of one (`_loss`).
    """

    another = "another training"  # what a checkpoint that does not fit was made by

    def __init__(self, model: torch.nn.Module, folder: Path, phases: Sequence[Phase], device: str = "cpu"):
        self.model, self.folder, self.phases, self.device = model.to(device), folder, tuple(phases), device
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}  # a head that is the embedding is there once
        matrices = [p for name, p in self.trained.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        inner = {id(p) for p in matrices}
        others = [p for p in self.trained.values() if id(p) not in inner]
        self.optimizers = {"muon": Muon(matrices), "adamw": torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)}
        self.state: dict[str, Any] = {"phase": 0, "chunk": 0, "tokens": 0, "total_tokens": 0, "seconds": 0.0, "loss": None}

    def _recipe(self) -> dict[str, Any]:
        """All but the phases that decides what comes out, as JSON; a checkpoint that another one made is refused."""
        raise NotImplementedError

    def _batches(self, phase: int, chunk: int) -> Iterable[Batch]:
        """The batches of a chunk: a function of its arguments, so that training resumes without replaying what went before."""
        raise NotImplementedError

    def _loss(self, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def resume(self) -> bool:
        """Load the checkpoint, if there is one. Training then goes on as if it had never stopped, bit for bit on the same machine and CPU.

        Raises `UserError` for a checkpoint that was made by something else, naming what differs, or that cannot be read.
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
        if not differ and phases is not None and [_phase(saved) for saved in phases[:begun]] != list(self.phases[:begun]):
            differ = ["phases"]
        if differ:
            why = f"{self.another} (it differs in {', '.join(differ)})"
            raise UserError(f"checkpoint {self.checkpoint} was made by {why}; begin anew with --no-resume, or choose another --work")
        self._restore(tensors, state)
        return True

    def save_checkpoint(self) -> None:
        """Tensors first, then the small file that points at them, each renamed when whole: a kill at any instant loses nothing."""
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        current = f"tensors-{self.state['phase']}-{self.state['chunk']}.safetensors"
        phases = json.dumps([phase.model_dump(mode="json") for phase in self.phases])
        part = self.checkpoint / f"{current}.part"
        save_file({k: v.contiguous() for k, v in self._tensors().items()}, part, {"phases": phases})
        part.replace(self.checkpoint / current)
        part = self.checkpoint / "state.json.part"
        part.write_text(json.dumps(self.state | {"recipe": self._recipe()}), encoding="utf-8")
        part.replace(self.checkpoint / "state.json")
        for old in self.checkpoint.glob("tensors-*"):
            if old.name != current:
                old.unlink(missing_ok=True)

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Everything that training changes: `model.<name>`, `<optimizer>.<index of parameter>.<key>`."""
        tensors = {f"model.{name}": p.detach() for name, p in self.trained.items()}
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

    def run(self, progress: Callable[[Progress], None] = lambda _: None, checkpoint_s: float = 60.0, until: int | None = None) -> None:
        """Train until phase number `until` (default: all) is reached.

        Ctrl-C goes back to the last whole chunk, saves it, and is raised again.
        """
        self._whole = self._snapshot()
        try:
            self._run(progress, checkpoint_s, len(self.phases) if until is None else until)
        except KeyboardInterrupt:
            self._restore(*self._whole)
            self.save_checkpoint()
            raise

    def _run(self, progress: Callable[[Progress], None], checkpoint_s: float, until: int) -> None:
        began, saved, seen = time.monotonic(), time.monotonic(), 0
        while self.state["phase"] < until:
            index = int(self.state["phase"])
            phase = self.phases[index]
            while self.state["tokens"] < phase.tokens:
                tick = time.monotonic()
                for batch in self._batches(index, int(self.state["chunk"])):
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

    def _step(self, batch: Batch, phase: Phase) -> None:
        done = self.state["tokens"] / (phase.horizon or phase.tokens)
        warm = min(1.0, done / phase.warmup) if phase.warmup else 1.0
        scale = max(warm, 0.02) * (0.02 + 0.98 * 0.5 * (1 + cos(pi * min(done, 1.0))))
        self.optimizers["muon"].param_groups[0]["lr"] = phase.lr * scale
        self.optimizers["adamw"].param_groups[0]["lr"] = phase.lr * scale * 0.25
        loss = self._loss(batch.to(self.device))
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        lost = float(loss.detach())
        self.state["loss"] = lost if self.state["loss"] is None else 0.98 * self.state["loss"] + 0.02 * lost
        self.state["tokens"] += batch.tokens
        self.state["total_tokens"] += batch.tokens


def _phase(saved: Any) -> Phase | None:
    """A phase as a checkpoint has it, with what has come into the schema since at its default; None where it is none."""
    try:
        return Phase.model_validate(saved)
    except ValidationError:
        return None
