"""`aiflow bench rank`: ways to decompose a model, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import catalog
from ..errors import UserError
from . import Interrupted
from .again import command, flag_words, option_words
from .decompose import KEEPS, Keeps, Measured, Rate, keeps_of
from .display import tuning
from .options import Json
from .output import print_json


def rank(
    model: Annotated[str, typer.Argument(help="A model with a recipe, by name or folder.")] = "oak",
    method: Annotated[list[str] | None, typer.Option(help="svd, asvd, whitened or fisher; repeatable. Default: all.", show_default=False)] = None,
    keeps: Keeps = KEEPS,
    tune_tokens: Annotated[int, typer.Option(min=0, help="For each method; 0: only as they come.")] = 400_000,
    measure_tokens: Measured = 100_000,
    lr: Rate = 1e-3,
    per_skill: Annotated[int, typer.Option(min=1, help="Test questions of each skill.")] = 200,
    work: Annotated[Path, typer.Option(help="Gets the decomposed models, and checkpoints to go on from.")] = Path("logs/bench-rank"),
    seed: Annotated[int, typer.Option(help="Draws the questions and the sizes.")] = 0,
    json: Json = False,
) -> None:
    """Accuracy and perplexity over sizes for each way to decompose, as it comes and after the same tuning, with paired tests between them."""
    from ..bench.rank import bench_rank
    from ..training.decompose import METHODS
    from ..training.nested import Tuning

    unknown = sorted(set(method or ()) - set(METHODS))
    if unknown:
        raise UserError(f"no method '{unknown[0]}'; known: {', '.join(METHODS)}")
    folder, methods, chosen = catalog.find("model", model).path, [one for one in METHODS if one in (method or METHODS)], keeps_of(keeps)
    options: dict[str, Any] = {
        "keeps": keeps,
        "tune-tokens": tune_tokens,
        "measure-tokens": measure_tokens,
        "lr": lr,
        "per-skill": per_skill,
        "work": work,
        "seed": seed,
    }
    words = [*(word for one in method or () for word in ("--method", one)), *option_words(options), *flag_words(json=json)]

    import torch

    torch.set_num_threads(1)
    with tuning() as (note, progress):
        try:
            found = bench_rank(
                folder, work / folder.name, methods=methods, how=Tuning(tune_tokens, chosen, lr, seed), measured_tokens=measure_tokens,
                per_skill=per_skill, note=note, progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted(command("bench", "rank", model, *words)) from None
    if json:
        print_json(found)
    else:
        _show(found, methods)


def _show(found: dict[str, Any], methods: list[Any]) -> None:
    whole = found["original"]
    typer.echo(f"{found['model']}, {whole['n']:,} test questions: {whole['accuracy']:.1%} right, perplexity of answers {whole['perplexity']:.3f}")
    for tuned in (False, True):
        for budget in (False, True):
            rows = {(row["method"], row["keep"]): row for row in found["rows"] if row["tuned"] == tuned and row["budget"] == budget}
            shown = [method for method in methods if any(method == name for name, _ in rows)]  # not every way has budgets
            if rows:
                title = f"tuned on {found['tuning']['tokens']:,} tokens" if tuned else "as decomposed"
                typer.echo(
                    f"\n{title}, {'parameters spread by spectra' if budget else 'every layer alike'}\n{'keep':>5}"
                    + "".join(f"{m:>18}" for m in shown)
                )
                for keep in sorted({keep for _, keep in rows}, reverse=True):
                    cells = (f"{rows[m, keep]['accuracy']:8.1%} {rows[m, keep]['perplexity']:8.3f}" for m in shown)
                    typer.echo(f"{keep:5g}" + "".join(f"{cell:>18}" for cell in cells))
    typer.echo("\npaired tests, every layer alike (p: exact McNemar and paired permutation, the weakest rival, Holm over sizes)")
    for claim in found["claims"]:
        against = "; ".join(f"{name} {pair['delta']:+.1%} ({pair['wins']}:{pair['losses']})" for name, pair in claim["against"].items())
        p = f"p {claim['p_accuracy_holm']:.2g} accuracy, {claim['p_perplexity_holm']:.2g} perplexity"
        typer.echo(f"{claim['method']}{' tuned' if claim['tuned'] else ''} at {claim['keep']:g} against {against}: {p}")
