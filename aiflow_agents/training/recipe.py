"""A recipe: everything that makes one model, in one YAML file. The same recipe and seed give the same model on the same machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, field_validator, model_validator

from aiflow_agents.skills.atlas import HELD
from aiflow_agents.skills.scenes import KINDS
from aiflow_agents.skills.splits import DRAWS

Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=24)]  # a folder, and a speaker in `<heard>name:`


def _known(skills: dict[str, float]) -> dict[str, float]:
    unknown = sorted(set(skills) - set(DRAWS) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown skill {unknown[0]}; known: {', '.join((*DRAWS, *KINDS))}")
    if not sum(skills.values()) > 0:
        raise ValueError("no skill has a weight above 0")
    return skills


Skills = Annotated[dict[str, Annotated[float, Field(ge=0)]], AfterValidator(_known)]  # skill -> its share of the questions


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Size(Strict):
    """Shape of the decoder."""

    width: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    mlp: Positive

    @model_validator(mode="after")
    def _fits(self) -> Size:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        return self


class Phase(Strict):
    """One phase of training.

    `answer`: questions and right answers. `hear`: half of the questions are followed by what peers really answered, right or wrong,
    so that the model learns whom to believe. In a share of these all that is heard is right: `truth` at the start, falling to none at the end. So a
    model first learns to repeat (a million tokens; where most of what it hears is wrong, not in three), then whom.
    `recall`: the facts of the recipe's shard of the atlas are learned by heart. `ask`: to ask peers who have such shards, in worlds
    whose names are drawn anew for every question, where they are right, wrong and silent as they really are.
    A share `alone` of the questions is asked without anything heard; the others come with the answers of `least` peers or more, and with `sure` also
    with how sure each was, calibrated: `296~97`.
    `skills`: instead of the recipe's own, in this phase. `horizon`: the learning rate falls as if the phase had so many tokens, where it ends before
    it has come down, and the next phase goes on from there.
    """

    kind: Literal["answer", "hear", "recall", "ask"]
    tokens: Positive
    lr: float = Field(0.02, gt=0)
    batch: Positive = 128
    warmup: float = Field(0.03, ge=0, lt=1)
    peers: tuple[Name, ...] = ()
    truth: float = Field(0.0, ge=0, le=1)
    alone: float = Field(0.5, ge=0, lt=1)
    least: Positive = 1
    sure: bool = False
    skills: Skills | None = None
    horizon: Positive | None = None

    @model_validator(mode="after")
    def _peers(self) -> Phase:
        if (self.kind in ("hear", "ask")) != bool(self.peers):
            raise ValueError(f"a phase of kind `{self.kind}` " + ("hears nobody; remove peers" if self.peers else f"needs peers to {self.kind}"))
        return self


class Vision(Strict):
    """What makes a model see: the layer from which all cameras are read together, how many questions are asked about a scene in training, and in
    what share of scenes some of the cameras are missing, so that it learns to say what it can from those that are left. `captions`: with how many
    letters for each place a camera learns to say what it sees, and the edge to read that."""

    layer: Positive
    questions: Positive = 6
    missing: float = Field(0.4, ge=0, le=1)
    captions: tuple[Annotated[int, Field(gt=0, le=9)], ...] = ()


class Recipe(Strict):
    """What to train, on what, for how long.

    With `exits` it is a family: exit e runs the first e layers, then a block of its own; the last, layers - 1, is the whole model. Each exit has the
    weight of its loss. `travel_noise`: the states that a deeper exit goes on from are disturbed by up to this share of their deviation, so that it
    learns to read what a lossy codec leaves of them. `shard`: the part of the atlas that phases of kind `recall` teach; `all` is the whole of it.
    With `vision` it sees, and its `skills` are kinds of questions about scenes.
    """

    name: Name
    description: str
    architecture: Literal["qwen3", "llama"]
    tier: Literal["device", "edge", "cloud"]
    size: Size
    seed: int
    skills: Skills
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    max_length: Positive = 256
    exits: dict[NonNegativeInt, Annotated[float, Field(gt=0)]] = {}
    travel_noise: float = Field(0.0, ge=0, le=1)
    shard: str = ""
    vision: Vision | None = None

    @model_validator(mode="after")
    def _shard_is_there(self) -> Recipe:
        if self.shard not in ("", "all", *HELD):
            raise ValueError(f"unknown shard {self.shard}; known: {', '.join(HELD)}, all")
        if bool(self.shard) != any(phase.kind == "recall" for phase in self.phases):
            why = "no phase of kind `recall` learns the shard" if self.shard else "a phase of kind `recall` learns a shard: name it"
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _sees(self) -> Recipe:
        if wrong := sorted(set(self.skills) - set(KINDS if self.vision else DRAWS)):
            raise ValueError(f"{wrong[0]} is {'no question about a scene' if self.vision else 'a question about a scene: it needs vision'}")
        if self.vision and (self.exits or len(self.phases) > self.answering):
            raise ValueError("a model that sees has one exit and hears nobody")
        if self.vision and self.vision.layer >= self.size.layers:
            raise ValueError(f"vision.layer is below the last of {self.size.layers} layers, found {self.vision.layer}")
        return self

    @model_validator(mode="after")
    def _exits_fit(self) -> Recipe:
        if self.exits and max(self.exits) != self.size.layers - 1:
            raise ValueError(f"the last exit is that of the whole model: expected {self.size.layers - 1} among exits, found {sorted(self.exits)}")
        if self.travel_noise and not (self.exits or self.vision):
            raise ValueError("travel_noise is for what is handed over at exits or by cameras; this recipe has none")
        return self

    @field_validator("phases")
    @classmethod
    def _answers_first(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        if phases[0].kind == "hear":
            raise ValueError("the first phase must not be of kind `hear`: peers hear what a model answers before it")
        return phases

    @property
    def hears_confidence(self) -> bool:
        """Whether the model was taught to hear how sure others are. All its phases of kind `hear` teach it, or none."""
        return any(phase.sure for phase in self.phases)

    @property
    def answering(self) -> int:
        """How many phases come before the first that hears or asks: after them the model's answers are what its peers learn from."""
        return next((i for i, phase in enumerate(self.phases) if phase.peers), len(self.phases))

    def scaled(self, tokens: int) -> Recipe:
        """The same recipe with `tokens` tokens in all, shared out over the phases as before: for a try."""
        whole = sum(phase.tokens for phase in self.phases)
        phases = tuple(phase.model_copy(update={"tokens": max(1, tokens * phase.tokens // whole)}) for phase in self.phases)
        return self.model_copy(update={"phases": phases})


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file."""
    from aiflow_agents.config import load_yaml

    return load_yaml(path, Recipe)
