"""The recipe of one model as large as a whole team and trained on as much: what a team must be better than, or it is only a way of storing weights.

A phase of the members becomes one of the monolith where that makes sense:

    answer, hear    -> answer: it has nobody to hear, so what its peers' answers were for the members is more questions for it
    recall, ask     -> recall of the whole atlas, all of it true: it has nobody to ask, and no shard of its own

The skills of a phase are mixed as the members had them, by tokens. Members that share weights (exits of a family) or see are not made into one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from aiflow_agents.errors import UserError
from aiflow_agents.training import tokenizer
from aiflow_agents.training.recipe import Phase, Recipe, Size

HEAD_DIM = 32
CLOSE = 0.02  # of the parameters


def parameters(size: Size, architecture: str = "qwen3") -> int:
    """How many parameters a model of this shape has, whose head is its embedding."""
    heads, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim
    norms = 2 * size.width + (2 * size.head_dim if architecture == "qwen3" else 0)
    block = 2 * size.width * (heads + kv) + 3 * size.width * size.mlp + norms
    return len(tokenizer.VOCABULARY) * size.width + size.layers * block + size.width


def monolith(recipes: Sequence[Recipe], count: int, tokens: Sequence[Sequence[int]], seed: int = 0, name: str = "monolith") -> Recipe:
    """One recipe for `count` parameters and all the tokens of these recipes: tokens[recipe][phase] are those that were really seen.

    Raises UserError for members that no single model stands for, and where no shape has as many parameters.
    """
    check(recipes)
    largest = max(recipes, key=lambda recipe: parameters(recipe.size, recipe.architecture))
    seen = [(recipe, phase, n) for recipe, per_phase in zip(recipes, tokens, strict=True) for phase, n in zip(recipe.phases, per_phase, strict=True)]
    plain, learned = ([one for one in seen if (one[1].kind in ("recall", "ask")) == by_heart] for by_heart in (False, True))
    return Recipe.model_validate({
        "name": name,
        "description": f"One model with the parameters and the tokens of {', '.join(recipe.name for recipe in recipes)} together.",
        "architecture": largest.architecture,
        "tier": "cloud",
        "size": shape(count, largest.size, largest.architecture),
        "seed": seed,
        "skills": _mixture(learned or plain),
        "phases": [_phase(kind, part) for kind, part in (("answer", plain), ("recall", learned)) if part],
        "max_length": max(recipe.max_length for recipe in recipes),
        "shard": "all" if learned else "",
    })  # fmt: skip


def check(recipes: Iterable[Recipe]) -> None:
    """Raise UserError for members that no single model stands for."""
    for recipe in recipes:
        if recipe.vision or recipe.exits:
            raise UserError(f"'{recipe.name}' {'sees' if recipe.vision else 'is a family'}: there is no single model to hold such a team against")


def shape(count: int, like: Size, architecture: str = "qwen3") -> Size:
    """A shape with about `count` parameters, whose proportions (width to layers, mlp to width) are nearest to those of `like`."""
    found: list[tuple[float, Size]] = []
    for layers in range(1, 49):
        for heads in range(1, 65):
            width, kv = heads * HEAD_DIM, heads // 2 if heads % 2 == 0 else heads
            rest = parameters(Size(width=width, layers=layers, heads=heads, kv_heads=kv, head_dim=HEAD_DIM, mlp=1), architecture) - 3 * width * layers
            mlp = round((count - rest) / (3 * width * layers) / 8) * 8
            if mlp <= 0:
                continue
            size = Size(width=width, layers=layers, heads=heads, kv_heads=kv, head_dim=HEAD_DIM, mlp=mlp)
            if abs(parameters(size, architecture) / count - 1) < CLOSE:
                ratios = (width / layers) / (like.width / like.layers), (mlp / width) / (like.mlp / like.width)
                found.append((sum(abs(math.log(ratio)) for ratio in ratios), size))
    if not found:
        raise UserError(f"no shape has {count:,} parameters within {CLOSE:.0%}")
    return min(found, key=lambda one: one[0])[1]


def _phase(kind: str, part: Sequence[tuple[Recipe, Phase, int]]) -> Phase:
    """One phase for all of these: their tokens, and rate and batch of those that begin a training, where most of them have it."""
    first = [(phase, n) for recipe, phase, n in part if phase is recipe.phases[0]] or [(phase, n) for _, phase, n in part]
    total = sum(n for _, n in first)
    batches: dict[int, int] = {}
    for phase, n in first:
        batches[phase.batch] = batches.get(phase.batch, 0) + n
    lr, batch = round(sum(phase.lr * n for phase, n in first) / total, 5), max(batches, key=lambda size: batches[size])
    return Phase.model_validate({"kind": kind, "tokens": sum(n for _, _, n in part), "lr": lr, "batch": batch, "skills": _mixture(part)})


def _mixture(part: Iterable[tuple[Recipe, Phase, int]]) -> dict[str, float]:
    """Shares of all skills, each member's own weighed by its tokens."""
    mixed: dict[str, float] = {}
    for recipe, phase, n in part:
        skills = phase.skills or recipe.skills
        for name, share in skills.items():
            mixed[name] = mixed.get(name, 0.0) + n * share / sum(skills.values())
    whole = sum(mixed.values())
    return {name: round(share / whole, 5) for name, share in mixed.items()}
