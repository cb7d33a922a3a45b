"""From a recipe to a model folder that transformers loads: its phases, its batches, its loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from aiflow_agents.errors import UserError
from aiflow_agents.training import corpus, inquiry, recall, tokenizer
from aiflow_agents.training.branches import Disturb, add_branches, exit_states, travel_noise
from aiflow_agents.training.corpus import Batch, Heard
from aiflow_agents.training.front import add_front
from aiflow_agents.training.loop import Training
from aiflow_agents.training.recipe import Phase, Recipe


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
    if recipe.vision:
        add_front(model, recipe.vision.layer)
    return model


def loss_of(model: Any, batch: Batch, exits: Mapping[int, float] | None = None, disturb: Disturb = lambda hidden: hidden) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens; the head runs only where a loss is taken. With `exits`, their mean by weight; see `exit_states`."""
    where = batch.targets >= 0
    if not exits:
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state  # [rows, longest, width]
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[where]), batch.targets[where])
    states = exit_states(model, batch.ids, sorted(exits), disturb)
    losses = [w * torch.nn.functional.cross_entropy(model.lm_head(states[e][where]), batch.targets[where]) for e, w in exits.items()]
    return torch.stack(losses).sum() / sum(exits.values())


class Trainer(Training):
    """Trains one model through the phases of its recipe. `pool` is what peers answered; phases of kind `hear` and `ask` need it."""

    pool: Sequence[Heard] = ()
    _studied: tuple[Sequence[Heard], inquiry.Peers] | None = None

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "cpu", phases: Sequence[Phase] | None = None):
        super().__init__(self._build(recipe), folder, phases or recipe.phases, device)
        self.recipe, self.another = recipe, f"another version of recipe '{recipe.name}'"

    def _build(self, recipe: Recipe) -> torch.nn.Module:
        return build(recipe)

    def _recipe(self) -> dict[str, Any]:
        # earlier checkpoints have none of these
        later = {name for name in ("exits", "travel_noise", "shard", "vision") if not getattr(self.recipe, name)}
        return self.recipe.model_dump(mode="json", exclude={"phases", "description"} | later)

    def _batches(self, phase: int, chunk: int) -> Iterable[Batch]:
        now = self.phases[phase]
        skills, seed = now.skills or self.recipe.skills, self.recipe.seed * 1000 + phase
        if now.kind == "recall":
            return recall.chunk(self.recipe.shard, skills, seed, chunk, now.batch, self.recipe.seed)
        if now.peers and not self.pool:
            raise UserError(f"recipe '{self.recipe.name}': phase {phase} needs the answers of {', '.join(now.peers)}")
        if now.kind == "ask":
            if self._studied is None or self._studied[0] is not self.pool:
                self._studied = self.pool, inquiry.study(self.pool)
            return inquiry.chunk(self._studied[1], self.recipe.name, skills, seed, chunk, now.batch)
        heard = self.pool if now.kind == "hear" else ()
        truth = now.truth * max(0.0, 1 - self.state["tokens"] / now.tokens)
        return corpus.chunk(skills, seed, chunk, now.batch, heard, truth, now)

    def _loss(self, batch: Batch) -> torch.Tensor:
        if not self.recipe.travel_noise:
            return loss_of(self.model, batch, self.recipe.exits)
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + int(self.state["total_tokens"]))  # so that it resumes bit for bit
        return loss_of(self.model, batch, self.recipe.exits, lambda hidden: travel_noise(hidden, self.recipe.travel_noise, generator))

    def export(self, folder: Path) -> None:
        """Write the model as transformers does, weights in bfloat16, with its tokenizer. The weights come last: where they are, all is."""
        from transformers import AutoModelForCausalLM

        copy: Any = AutoModelForCausalLM.from_config(self.model.config, dtype=torch.bfloat16)
        if self.recipe.hears_confidence:
            copy.config.hears = "confidence"  # which `models.family` gives it, where the speaker says it
        if self.recipe.exits:
            add_branches(copy, sorted(self.recipe.exits))
        if self.recipe.vision:
            add_front(copy.bfloat16(), self.recipe.vision.layer)
        copy.load_state_dict(self.model.state_dict(), strict=False)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder) as written:
            part = Path(written)
            copy.save_pretrained(part)
            tokenizer.save(part, self.recipe.max_length)
            for file in sorted(part.iterdir(), key=lambda file: file.suffix == ".safetensors"):
                file.chmod(0o644)
                file.replace(folder / file.name)
