"""`aiflow train`: recipes into models, with progress, checkpoints and cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import catalog
from ..errors import UserError
from . import Interrupted
from .again import command, flag_words, option_words
from .display import training
from .options import Device, Resume, Threads, ready_to_train
from .output import print_json

if TYPE_CHECKING:
    from ..training.recipe import Recipe

WORK, OUT = Path("logs/train"), Path("agents/models")


def train(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Names from `aiflow list recipes`, or paths.")],
    phase: Annotated[
        Literal["answer", "hear", "all"], typer.Option(help="Stop before peers are heard, or go on from there, or both.")
    ] = "all",
    work: Annotated[
        Path | None, typer.Option(help=f"Checkpoints and what peers learn from. Default: {WORK}, with --tokens {WORK}/try-N.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"Where finished models go. Default: {OUT}, with --tokens models/ in the work folder.", show_default=False)
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(help="A folder with PEER/answer, or finished models PEER, of peers trained elsewhere. Default: the work folder.", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="So many tokens in all, shared out over the phases: for a try.", show_default=False)
    ] = None,
    resume: Resume = True,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's own.", show_default=False)] = None,
    device: Device = "auto",
    threads: Threads = 1,
    questions: Annotated[int, typer.Option(min=1, help="How many training questions the peers are asked.")] = 12_000,
    card: Annotated[bool, typer.Option("--card/--no-card", help="Measure each finished model and write its card.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train models from recipes: all phases before the first that hears or asks, then peers are asked, then the other phases.

    A finished model is a folder that transformers loads. Ctrl-C saves a checkpoint; the same command goes on from it.
    """
    found = _recipes(recipes, seed, tokens)
    folder = work or (WORK if tokens is None else WORK / f"try-{tokens}")
    if phase == "hear" and not resume:
        raise UserError("--phase hear goes on from a checkpoint, which --no-resume drops; train with --phase all")
    options: dict[str, Any] = {
        "phase": None if phase == "all" else phase, "work": work, "out": out, "peers": peers, "tokens": tokens, "seed": seed,
        "device": None if device == "auto" else device, "threads": None if threads == 1 else threads,
        "questions": None if questions == 12_000 else questions,
    }  # fmt: skip
    again = command("train", *recipes, *option_words(options), *flag_words(no_card=not card, json=json))

    from ..training.nursery import Nursery

    where = ready_to_train(device, threads)
    with training({recipe.name: [each.kind for each in recipe.phases] for recipe in found}) as (note, progress):
        nursery = Nursery(folder, out or (OUT if tokens is None else folder / "models"), peers or folder, where, questions, note, progress)
        _check_peers(nursery, found, phase, {"work": peers or work, "tokens": tokens, "seed": seed})
        try:
            done = _trained(nursery, found, phase, folder, resume)
            if card and phase != "answer":
                again_here = {"tokens": tokens, "seed": seed, "questions": options["questions"], "peers": peers}
                for recipe, entry in zip(found, done, strict=True):
                    entry["card"] = nursery.card(recipe, _reproduce(recipe, found, again_here))
        except KeyboardInterrupt:
            raise Interrupted(again) from None
    if json:
        print_json(done)
    else:
        _show(done)


def _trained(nursery: Any, recipes: Sequence[Recipe], phase: str, folder: Path, resume: bool) -> list[dict[str, Any]]:
    """Train them all through the first phases before any goes on to the others. What was made last, as plain data."""
    done: list[dict[str, Any]] = []
    if phase != "hear":
        for recipe in recipes:
            if not resume:
                nursery.clear(recipe)
            nursery.answer(recipe)
            done.append({"name": recipe.name, "folder": str(folder / recipe.name / "answer"), "phase": "answer"})
    if phase != "answer":
        done = []
        for recipe in recipes:
            nursery.hear(recipe)
            done.append({"name": recipe.name, "folder": str(nursery.out / recipe.name), "phase": "hear"})
    return done


def _show(done: Sequence[dict[str, Any]]) -> None:
    """Where each model is, and what its card says."""
    for entry in done:
        score = entry["card"]["measured"] if "card" in entry else None
        ways = {"heard": "hearing", "asking": "asking"}
        hearing = "".join(f", {score[key]['overall']['accuracy']:.1%} {way} its peers" for key, way in ways.items() if score and key in score)
        right = f": {score['alone']['overall']['accuracy']:.1%} of test questions right alone{hearing}" if score else ""
        typer.echo(f"{entry['folder']}{right}")


def _recipes(names: Sequence[str], seed: int | None, tokens: int | None) -> list[Recipe]:
    from ..training.recipe import load_recipe

    found: dict[str, Recipe] = {}
    places: dict[str, Path] = {}
    for name in names:
        path = catalog.find("recipe", name).path
        recipe = load_recipe(path)
        if places.setdefault(recipe.name, path) != path:
            raise UserError(f"{places[recipe.name]} and {path} both make '{recipe.name}'; give one of them another name")
        recipe = recipe if seed is None else recipe.model_copy(update={"seed": seed})
        found[recipe.name] = recipe if tokens is None else recipe.scaled(tokens)
    return list(found.values())


def _check_peers(nursery: Any, recipes: Sequence[Recipe], phase: str, options: dict[str, Any]) -> None:
    """Say at the start, and not after an hour, that a peer is missing."""
    if phase == "answer":
        return
    coming = [recipe.name for recipe in recipes] if phase == "all" else []
    for recipe in recipes:
        missing = nursery.missing(recipe, coming)
        if missing:
            what = f"'{recipe.name}' learns from the answers of {', '.join(missing)}, not found in {nursery.peers}"
            raise UserError(f"{what}; make them with: {command('train', *missing, *option_words({'phase': 'answer'} | options))}")


def _reproduce(recipe: Recipe, together: Sequence[Recipe], options: dict[str, Any]) -> str:
    """The command that makes this model again: with all peers, or with those that were trained together where others were there already."""
    peers = [one.name for one in together] if options["peers"] else [peer for phase in recipe.phases for peer in phase.peers]
    return command("train", *dict.fromkeys([recipe.name, *peers]), *option_words(options))
