"""Where models grow: the folders of a training, and the order of its steps.

    recipe --phases before the first `hear` or `ask`--> work/<name>/answer/ --peers asked--> work/pool-<hash>.jsonl --other phases--> out/<name>/

What peers learn from is each other's state after the first of these, so every model of a team must have come that far before one goes further.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.info import model_info
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.skills.questions import SKILLS
from aiflow_agents.skills.scenes import KINDS
from aiflow_agents.training.card import COUNT, SEED, Memo, card_for, peer_folder, seen
from aiflow_agents.training.corpus import Heard
from aiflow_agents.training.heard import collect, collect_answers, load_pool, save_pool
from aiflow_agents.training.loop import Progress
from aiflow_agents.training.recall import facts
from aiflow_agents.training.recipe import Phase, Recipe
from aiflow_agents.training.trainer import Trainer

POOL_SEED = 77
QUESTIONS = 12_000  # that the peers are asked


@dataclass
class Nursery:
    """`work` keeps what training needs, `out` gets the finished models, `peers` holds `<peer>/answer` of models trained elsewhere.

    `note` gets a line for what was done, `progress` the name and state of the model in training after each chunk.
    """

    work: Path
    out: Path
    peers: Path
    device: str = "cpu"
    questions: int = QUESTIONS
    note: Callable[[str], None] = lambda _: None
    progress: Callable[[str, Progress], None] = lambda name, _: None
    _memo: Memo = field(default_factory=dict)

    def missing(self, recipe: Recipe, coming: Collection[str] = ()) -> list[str]:
        """Peers of a recipe whose answers cannot be had: not exported, and not among those that are `coming`."""
        names = dict.fromkeys(peer for phase in recipe.phases for peer in phase.peers)
        return [name for name in names if name not in coming and peer_folder(name, self.peers, self.work) is None]

    def clear(self, recipe: Recipe) -> None:
        """Forget what was trained of this recipe. The finished model in `out` stays."""
        for folder in ("checkpoint", "answer"):
            shutil.rmtree(self.work / recipe.name / folder, ignore_errors=True)
        (self.work / recipe.name / "tokens.json").unlink(missing_ok=True)

    def answer(self, recipe: Recipe) -> None:
        """Train the phases before the first that hears or asks, from the checkpoint if there is one, and export what peers will learn from."""
        if not recipe.answering:
            self.note(f"{recipe.name}: nobody learns from it; it begins with a phase of kind {recipe.phases[0].kind}")
            return
        trainer = self._trainer(recipe)
        if trainer.state["phase"] > recipe.answering or (trainer.state["phase"] == recipe.answering and trainer.state["chunk"]):
            self.note(f"{recipe.name}: the answer phase is behind it")
            return
        self._train(trainer, recipe.answering)
        trainer.export(self.work / recipe.name / "answer")
        self.note(f"{recipe.name}: {self.work / recipe.name / 'answer'}")

    def hear(self, recipe: Recipe) -> None:
        """Train the rest, and put the finished model into `out`. Raises `UserError` before the phases `answer` are done, or without peers."""
        trainer = self._trainer(recipe)
        if trainer.state["phase"] < recipe.answering:
            raise UserError(f"'{recipe.name}' has not finished its answer phase; run: aiflow train {recipe.name} --phase answer --work {self.work}")
        for index in range(int(trainer.state["phase"]), len(recipe.phases)):
            self._train(trainer, index + 1, self.pool(recipe, recipe.phases[index]) if recipe.phases[index].peers else ())
        trainer.export(self.out / recipe.name)
        self.note(f"{recipe.name}: {self.out / recipe.name}")

    def pool(self, recipe: Recipe, phase: Phase) -> list[Heard]:
        """What the peers of a phase answer: who hears them, to training questions; who asks them, to every fact of the atlas.

        They are asked once for all recipes that have the same peers and skills.
        """
        folders = {name: self._peer(name) for name in sorted(set(phase.peers))}
        skills = {name: 1.0 for name in SKILLS if recipe.skills.get(name)}  # alike for specialists, whose weights differ
        told = ["atlas", *map(list, facts())] if phase.kind == "ask" else [list(skills), self.questions, POOL_SEED]
        made_of = [{name: model_info(folder).weights_hash for name, folder in folders.items()}, *told]
        path = self.work / f"pool-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]}.jsonl"
        if not path.exists():
            models = {name: FamilyModel.load(folder) for name, folder in folders.items()}
            if phase.kind == "ask":
                self.note(f"asking {', '.join(folders)} {len(facts()):,} facts")
                found = collect_answers(models, facts(), note=self.note)
            else:
                self.note(f"asking {', '.join(folders)} {self.questions:,} training questions")
                found = collect(models, skills, self.questions, POOL_SEED, self.note)
            save_pool(found, path)
            self.note(f"pool: {path}")
        return load_pool(path, phase.peers, phase.sure)

    def card(self, recipe: Recipe, command: str = "", count_per_skill: int = COUNT, seed: int = SEED) -> dict[str, Any]:
        """Measure the finished model and write its card. Returns what card.json holds."""
        if recipe.vision:
            from aiflow_agents.training.sight_card import sight_card

            trained, count = seen(self.work / recipe.name), count_per_skill * len(KINDS)
            return sight_card(self.out / recipe.name, recipe, trained, count=count, seed=seed, command=command)
        return card_for(
            self.out / recipe.name, recipe, self.work, peers=self.peers, count_per_skill=count_per_skill, seed=seed,
            command=command, memo=self._memo, note=self.note,
        )  # fmt: skip

    def _peer(self, name: str) -> Path:
        folder = peer_folder(name, self.peers, self.work)
        if folder is None:
            raise UserError(f"peer '{name}' has no folder {self.peers / name / 'answer'}; run: aiflow train {name} --phase answer --work {self.work}")
        return folder

    def _trainer(self, recipe: Recipe) -> Trainer:
        if recipe.vision:
            from aiflow_agents.training.sight import SightTrainer

            trainer: Trainer = SightTrainer(recipe, self.work / recipe.name, device=self.device)
        else:
            trainer = Trainer(recipe, self.work / recipe.name, device=self.device)
        if trainer.resume():
            phase = int(trainer.state["phase"])
            if phase == len(recipe.phases):
                where = "already trained"
            else:
                where = f"resumes in phase {recipe.phases[phase].kind} at {trainer.state['tokens']:,} of {recipe.phases[phase].tokens:,} tokens"
            self.note(f"{recipe.name}: {where} ({trainer.checkpoint})")
            self._remember(trainer)
        return trainer

    def _train(self, trainer: Trainer, until: int, pool: Sequence[Heard] = ()) -> None:
        name, trainer.pool = trainer.recipe.name, pool
        for phase in range(int(trainer.state["phase"]) + 1, until + 1):
            trainer.run(lambda progress: self.progress(name, progress), until=phase)
            self._remember(trainer)

    def _remember(self, trainer: Trainer) -> None:
        """Note for the card how many tokens had been seen when a phase ended: a checkpoint tells only the sum."""
        if trainer.state["chunk"]:
            return
        (trainer.folder / "tokens.json").write_text(json.dumps(seen(trainer.folder)["after"]) + "\n", encoding="utf-8")
