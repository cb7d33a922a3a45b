"""Hidden states that codecs are measured and fitted on: of which model, cut at which layer, and from which questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from ..training.cut import Cut

MODEL = "willow"
OTHERS = 4000  # training questions that a codec is fitted on, where nobody says

Model = Annotated[str, typer.Argument(help="A model by name or path.")]
Skills = Annotated[str | None, typer.Option(metavar="SKILL,...", help="Which skills' questions. Default: all that models are trained on.", show_default=False)]


def ready_folder(path: Path) -> None:
    """Make the folder that something is to be written to, before anything is measured."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"nothing can be written to {path}: {error.strerror}") from None


class Drawn:
    """Questions, the skills in proportion."""

    def __init__(self, skills: str | None, seed: int):
        from ..skills.questions import TRAINED
        from ..skills.splits import skill

        self.weights, self.seed = dict.fromkeys(skills.split(",") if skills else TRAINED, 1.0), seed
        for name in self.weights:
            skill(name)

    def questions(self, split: str, count: int) -> list[Any]:
        from itertools import islice

        from ..skills.splits import stream

        return list(islice(stream(self.weights, split, self.seed), count))

    def samples(self, cut: Cut, count: int, lower: bool = False, draws: int = 1) -> dict[str, Any]:
        """What codecs are fitted on: space -> sample."""
        from ..training.cut import cache_samples, sample

        questions = self.questions("train", count)
        return cache_samples(cut.family, questions, cut.layer) if lower else {f"hidden.{cut.layer}": sample(cut, questions, self.seed, draws=draws)}


def cut_at(model: str, layer: int, exits: tuple[int | None, ...] | None) -> Cut:
    """A model's family at a layer; exits None: all that lie behind it, which is where its states are handed over to."""
    import torch

    from .. import catalog
    from ..models.family.family import Family
    from ..training.cut import Cut

    torch.set_num_threads(1)
    family = Family.load(catalog.find("model", model).path)
    cut = Cut(family, layer, (tuple(e for e in family.exits if e > layer) or (None,)) if exits is None else exits)
    for e in cut.exits:
        family.after(layer, e)  # says by name where an exit lies before the layer
    return cut


def with_boundary(spec: str) -> str:
    """In our own texts an answer begins with <assistant>; other text has no such token."""
    from ..training.tokenizer import ASSISTANT

    if not spec.startswith("predict") or "boundary=" in spec:
        return spec
    return spec + ("," if ":" in spec else ":") + f"boundary={ASSISTANT}"
