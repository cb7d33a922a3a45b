"""A team and one model of its size, trained on as many tokens, at a scale that a small machine allows for both.

    recipes of the members --scale--> trained anew ----------------> team.yaml ---.
    their parameters, skills, tokens seen --> one recipe --> monolith -------------> one evaluation of the suite
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiflow_agents import catalog
from aiflow_agents.config import dump_yaml, load_yaml
from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.evals.evaluate import Report, evaluate
from aiflow_agents.evals.runner import Watcher
from aiflow_agents.evals.suite import Suite, load_suite
from aiflow_agents.runtime.team import TeamFile
from aiflow_agents.training.card import seen
from aiflow_agents.training.monolith import check, monolith, parameters
from aiflow_agents.training.nursery import QUESTIONS, Nursery
from aiflow_agents.training.recipe import Recipe, load_recipe

FEWEST = 1000  # questions that peers are asked, however small the scale


@dataclass(frozen=True)
class Plan:
    """What is to be trained: members by name with the recipe of each, and peers that are only heard."""

    suite: Suite
    team: TeamFile
    members: dict[str, Recipe]
    peers: list[Recipe]

    @property
    def recipes(self) -> list[Recipe]:
        """One for each model, however many members have it."""
        return list({recipe.name: recipe for recipe in self.members.values()}.values())


def plan_monolith(suite: str, *, scale: float, train_seed: int = 0) -> Plan:
    """The recipes of a suite's team at a share of their tokens, with other seeds for another `train_seed`.

    Raises UserError for a group of suites, and for members without a recipe or whose models no single one stands for.
    """
    one = load_suite(suite)
    team = load_yaml(catalog.find("team", one.file.team, base=one.folder).path, TeamFile)

    def scaled(recipe: Recipe) -> Recipe:
        tokens = round(scale * sum(phase.tokens for phase in recipe.phases))
        return recipe.scaled(max(1, tokens)).model_copy(update={"seed": recipe.seed + 1000 * train_seed})

    members = {name: scaled(_recipe(name, Path(member.model))) for name, member in team.members.items()}
    check(members.values())
    names = {recipe.name for recipe in members.values()}
    heard = dict.fromkeys(peer for recipe in members.values() for phase in recipe.phases for peer in phase.peers if peer not in names)
    return Plan(one, team, members, [scaled(load_recipe(catalog.find("recipe", name).path)) for name in heard])


def train_both(plan: Plan, nursery: Nursery) -> tuple[Recipe, list[dict[str, Any]]]:
    """Train every member, then one model of their parameters on as many tokens as they saw. What is trained already is not trained again.

    Returns the monolith's recipe, and name, parameters and tokens of each model trained, the monolith's last.
    """
    for recipe in (*plan.recipes, *plan.peers):
        nursery.answer(recipe)
    for recipe in plan.recipes:
        nursery.hear(recipe)
    count = sum(parameters(recipe.size, recipe.architecture) for recipe in plan.members.values())
    tokens = [_tokens(nursery.work / recipe.name, recipe) for recipe in plan.recipes]
    whole = monolith(plan.recipes, count, tokens, seed=plan.recipes[0].seed)
    nursery.answer(whole)
    nursery.hear(whole)
    trained = [*zip(plan.recipes, tokens, strict=True), (whole, _tokens(nursery.work / whole.name, whole))]
    return whole, [{"name": one.name, "parameters": parameters(one.size, one.architecture), "tokens": sum(by_phase)} for one, by_phase in trained]


def judge_both(
    plan: Plan, nursery: Nursery, *, seed: int = 0, limit: int | None = None, runtime: str = "inline", watch: Watcher | None = None
) -> Report:
    """Evaluate the suite with the members just trained, and the monolith as a rival. A run that was stopped goes on."""
    team = plan.team.model_dump(mode="json", exclude_defaults=True)
    for name, recipe in plan.members.items():
        team["members"][name]["model"] = str((nursery.out / recipe.name).absolute())
    file, run = nursery.work / "team.yaml", nursery.work / f"run-{seed}-{limit or 'all'}"
    file.write_text(dump_yaml(team), encoding="utf-8")
    return evaluate(
        plan.suite, str(file.absolute()), seed=seed, limit=limit, monolith=(nursery.out / "monolith").absolute(), runtime=runtime, path=run,
        resume=(run / "config.json").is_file(), watch=watch,
    )  # fmt: skip


def questions_at(scale: float) -> int:
    """How many questions peers are asked at a scale."""
    return min(QUESTIONS, max(FEWEST, round(QUESTIONS * scale)))


def _recipe(member: str, model: Path) -> Recipe:
    """What made a member's model."""
    beside = model / "recipe.yaml"
    try:
        return load_recipe(beside if beside.is_file() else catalog.find("recipe", model.name).path)
    except UnknownName:
        raise UserError(f"member '{member}': the model {model} has no recipe.yaml, so it cannot be trained anew") from None


def _tokens(folder: Path, recipe: Recipe) -> Sequence[int]:
    """Tokens really seen in each phase: a phase ends with a whole chunk."""
    after = seen(folder)["after"]
    ends = [int(after[str(phase + 1)]) for phase in range(len(recipe.phases))]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
