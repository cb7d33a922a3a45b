"""`aiflow family`: many sizes in one model. Grow exits onto a checkpoint, write one out as a plain model, show what each costs and knows."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import catalog
from ..errors import UserError
from . import Interrupted
from .again import command, flag_words, option_words
from .decompose import decompose
from .display import training
from .options import Device, Json, Resume, Threads, ready_to_train
from .output import print_json, print_table

if TYPE_CHECKING:
    from ..training.grow import Grower

family = typer.Typer(add_completion=False, no_args_is_help=True, help="Many sizes in one model: an exit runs the first layers, then a block of its own.")

WORK, OUT = Path("logs/grow"), Path("agents/models")
LR = {"frozen": 0.02, "joint": 0.003}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


family.command("decompose", short_help="Make rank a size: one file for all sizes.")(decompose)


@family.command()
def grow(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A Llama, Qwen2 or Qwen3 model, by name or path.")],
    exits: Annotated[str | None, typer.Option(metavar="E,E,...", help="Where to leave: exit E runs the first E layers, then its own block.", show_default=False)] = None,
    tier_sizes: Annotated[
        str | None, typer.Option(metavar="TIER=N,...", help="Instead: for each tier the deepest exit of at most so many parameters, as in device=2M,edge=8M.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text to learn from. Default: questions of the skills that the model's recipe.yaml names.", show_default=False)
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many to train on.")] = 2_000_000,
    lr: Annotated[float | None, typer.Option(help=f"Learning rate. Default: {LR['frozen']:g}, joint {LR['joint']:g}.", show_default=False)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 64,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a row of text, as far as the model's context goes.")] = 256,
    joint: Annotated[bool, typer.Option("--joint", help="Train everything on the text itself. Default: a frozen backbone, which the branches learn from.")] = False,
    decay: Annotated[float, typer.Option(min=0.01, max=1.0, help="Joint: what an exit's loss weighs, as a share of the next deeper one's.")] = 0.8,
    out: Annotated[Path | None, typer.Option(help=f"The family's folder. Default: {OUT}/BASE-family.", show_default=False)] = None,
    work: Annotated[Path | None, typer.Option(help=f"Where the checkpoint is kept. Default: {WORK}/NAME of the family.", show_default=False)] = None,
    resume: Resume = True,
    seed: Annotated[int, typer.Option(help="Draws what is trained on.")] = 0,
    device: Device = "auto",
    threads: Threads = 1,
    card: Annotated[bool, typer.Option("--card/--no-card", help="Measure the family and write its card.")] = True,
    json: Json = False,
) -> None:
    """Add exits to any checkpoint and train them. The result is a family, and to other tools still the plain model.

    Ctrl-C saves a checkpoint; the same command goes on from it.
    """
    from ..models.family.config import DecoderConfig
    from ..training.grow import check_exits, tier_exits

    if (exits is None) == (tier_sizes is None):
        raise UserError("say where to leave, either with --exits 4,8 or with --tier-sizes device=2M,edge=8M")
    folder = catalog.find("model", base).path
    config = DecoderConfig.read(folder)
    tiers = {} if tier_sizes is None else tier_exits(config, _budgets(tier_sizes))
    wanted = check_exits(config, tiers.values() if exits is None else _numbers(exits))
    target = out or OUT / f"{folder.name}-family"
    place = work or WORK / target.name
    _check_target(target, folder, place)
    options = {
        "exits": exits, "tier-sizes": tier_sizes, "text": text, "tokens": _unless(tokens, 2_000_000), "lr": lr, "batch": _unless(batch, 64),
        "length": _unless(length, 256), "decay": _unless(decay, 0.8), "out": out, "seed": _unless(seed, 0),
    }  # fmt: skip
    again = command("family", "grow", base, *option_words(options), *flag_words(joint=joint))

    from ..training.card import grown_card
    from ..training.grow import Grower
    from ..training.sources import source_of

    where = ready_to_train(device, threads)
    source = source_of(folder, text, seed, batch, min(length, config.max_context))
    rate = LR["joint" if joint else "frozen"] if lr is None else lr
    if not resume:
        shutil.rmtree(place / "checkpoint", ignore_errors=True)
    grower = Grower(folder, wanted, source, place, tokens=tokens, lr=rate, joint=joint, decay=decay, device=where)
    before = grower.measure()
    with training({target.name: ["grow"]}) as (note, progress):
        for tier, e in tiers.items():
            note(f"{target.name}: {tier} gets exit {e}")
        if grower.resume():
            seen = f"resumes at {grower.state['total_tokens']:,} of {tokens:,} tokens"
            note(f"{target.name}: {'already trained' if grower.state['phase'] else seen} ({grower.checkpoint})")
        try:
            grower.run(lambda at: progress(target.name, at))
            grower.export(target)
            measured = grown_card(target, grower, before, command=again, note=note)["measured"] if card else {}
        except KeyboardInterrupt:
            more = {"work": work, "device": _unless(device, "auto"), "threads": _unless(threads, 1)}
            flags = flag_words(joint=joint, no_card=not card, json=json)
            raise Interrupted(command("family", "grow", base, *option_words(options | more), *flags)) from None
    _show_grown(target, grower, before, measured, tiers, json)


@family.command()
def export(
    name: Annotated[str, typer.Argument(metavar="FAMILY", help="A family by name or path.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new model's folder.")],
    exit: Annotated[int, typer.Option(help="Which exit; `aiflow family show FAMILY` lists them.")],
    json: Json = False,
) -> None:
    """Write one exit as a plain checkpoint for other tools."""
    from ..models.family.export import export_branch, number_bytes, sizes

    folder = catalog.find("model", name).path
    export_branch(folder, exit, out)
    (row,) = sizes(out, number_bytes(out))
    if json:
        print_json({"folder": str(out), "family": str(folder), **row, "exit": exit})
        return
    typer.echo(f"{_path(out)}: {row['parameters']:,} parameters in {row['blocks']} blocks\nuse it in a team file as model: {_path(out)}")


@family.command()
def show(
    name: Annotated[str, typer.Argument(metavar="FAMILY", help="A family, or any model, by name or path.")],
    json: Json = False,
) -> None:
    """What each exit costs, and how good it is.

    Accuracies are those of the card, where there is one. A plain model has one exit.
    """
    from ..models.family.config import weight_files
    from ..models.family.export import number_bytes, sizes

    folder = catalog.find("model", name).path
    rows = sizes(folder, number_bytes(folder))
    scores = _scores(folder, rows[-1]["exit"])
    for row in rows:
        row["accuracy"] = scores.get(row["exit"])
    nbytes = sum(file.stat().st_size for file in weight_files(folder))
    if json:
        print_json({"name": folder.name, "path": str(folder), "weight_bytes": nbytes, "exits": rows})
        return
    names = ["exit", "blocks", "parameters", "FLOPs/token", "bytes", *(["accuracy"] if scores else [])]
    cells = [[str(row["exit"]), str(row["blocks"]), *(f"{row[key]:,.0f}" for key in ("parameters", "flops_per_token", "weight_bytes")),
              *([_percent(row["accuracy"])] if scores else [])] for row in rows]  # fmt: skip
    typer.echo(f"{folder.name}: {len(rows)} exit{'s' if len(rows) > 1 else ''}, {nbytes:,} bytes in all\n")
    print_table([names, *cells], left=0)


def _check_target(target: Path, base: Path, work: Path) -> None:
    """Never write over a model that this growth has not made."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose another --out")
    if target.exists() and target.samefile(base):
        raise UserError(f"{target} is the base itself; choose another --out")
    if list(target.glob("*.safetensors")) and not (work / "checkpoint" / "state.json").exists():
        raise UserError(f"{target} already holds a model; choose another --out")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--exits {text}: expected numbers of layers with commas between, as in 4,8") from None


def _budgets(text: str) -> dict[str, int]:
    """`device=2M,edge=8M` as numbers of parameters."""
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*=\s*(\d+(?:\.\d+)?)([kmgbKMGB]?)\s*", part)
        if match is None or match[1] in found:
            raise UserError(f"--tier-sizes {text}: expected each tier once with its most parameters, as in device=2M,edge=8M")
        found[match[1]] = int(float(match[2]) * UNITS[match[3].lower()])
    return found


def _scores(folder: Path, last: int) -> dict[int, float]:
    """Accuracy by exit, from card.json. A card without exits speaks of the last one."""
    from ..models.family.config import read_json

    measured = read_json(folder / "card.json").get("measured") or {}
    found = measured.get("exits") or ({str(last): {"overall": measured["alone"]["overall"]}} if "alone" in measured else {})
    return {int(e): row["overall"]["accuracy"] for e, row in found.items()}


def _show_grown(target: Path, grower: Grower, before: Any, measured: dict[str, Any], tiers: dict[str, int], json: bool) -> None:
    from ..models.family.export import number_bytes, sizes

    after, scores = grower.measure(), measured.get("exits", {})
    rows = [{**row, "before": before[row["exit"]]._asdict(), "after": after[row["exit"]]._asdict()} for row in sizes(target, number_bytes(target))]
    for row in rows:
        row["accuracy"] = scores[str(row["exit"])]["overall"]["accuracy"] if scores else None
    if json:
        state = {"tokens": grower.state["total_tokens"], "seconds": grower.state["seconds"]}
        print_json({"name": target.name, "folder": str(target), "base": str(grower.base), "tiers": tiers, **state, "exits": rows})
        return
    typer.echo(f"{_path(target)}\n")
    names = ["exit", "blocks", "parameters", "loss", "KL before", "KL after", "same token", *(["accuracy"] if scores else [])]
    cells = [[str(row["exit"]), str(row["blocks"]), f"{row['parameters']:,}", f"{row['after']['loss']:.3f}", f"{row['before']['kl']:.3f}",
              f"{row['after']['kl']:.3f}", _percent(row["after"]["agreement"]), *([_percent(row["accuracy"])] if scores else [])] for row in rows]  # fmt: skip
    print_table([names, *cells], left=0)
    typer.echo("\nKL: from what the last exit says, in nats a token, on what no training saw")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _unless(value: Any, default: Any) -> Any:
    return None if value == default else value


def _path(path: Path) -> str:
    """As it can be named on the command line."""
    return str(path) if path.is_absolute() else os.path.join(".", path)
