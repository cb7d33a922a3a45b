"""`aiflow family decompose`: rank as a size, one file for all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import catalog
from ..errors import UserError
from . import Interrupted
from .again import command, flag_words, option_words
from .options import Json, Threads
from .output import print_json

if TYPE_CHECKING:
    from ..training.nested import Progress

EVERY_S = 10.0  # between progress lines where there is no terminal
KEEPS = "0.9,0.8,0.7,0.6,0.5,0.4"
Keeps = Annotated[str, typer.Option(help="Sizes that tuning draws from: shares of each layer's parameters.")]
Tokens = Annotated[int, typer.Option(min=0, help="How long to tune; 0: not at all.")]
Measured = Annotated[int, typer.Option("--measure-tokens", min=1, help="On how much to measure what layers read.")]
Rate = Annotated[float, typer.Option(min=1e-9, help="Learning rate of tuning.")]


def decompose(
    model: Annotated[str, typer.Argument(help="A name from `aiflow list models`, or a folder in the Hugging Face layout.")],
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    method: Annotated[
        Literal["svd", "asvd", "whitened", "fisher"],
        typer.Option(
            help="What the best part of a layer is: of its weights (svd), scaled by its inputs (asvd), of what it puts out (whitened), "
            "or of what the predictions feel of that (fisher)."
        ),
    ] = "whitened",
    tune_tokens: Tokens = 0,
    keeps: Keeps = KEEPS,
    text: Annotated[
        Path | None,
        typer.Option(help="A text to measure and tune on. Default: training questions of the skills in the model's recipe.yaml.", show_default=False),
    ] = None,
    measure_tokens: Measured = 100_000,
    lr: Rate = 1e-3,
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="Of the factors in the file.")] = "float32",
    seed: Annotated[int, typer.Option(help="Draws the questions and the sizes.")] = 0,
    threads: Threads = 1,
    card: Annotated[bool, typer.Option("--card/--no-card", help="Measure it at its sizes and write its card.")] = True,
    json: Json = False,
) -> None:
    """Write each linear layer as nested low-rank factors, so that a smaller model is a prefix of a larger one, in one file for all sizes.

    The full size is the original model, whatever is tuned. Ctrl-C keeps a checkpoint in OUT; the same command goes on from it.
    """
    folder = catalog.find("model", model).path
    chosen = keeps_of(keeps)
    options: dict[str, Any] = {
        "method": method,
        "tune-tokens": tune_tokens,
        "keeps": keeps,
        "text": text,
        "measure-tokens": measure_tokens,
        "lr": lr,
        "dtype": dtype,
        "seed": seed,
        "threads": threads,
    }
    again = command("family", "decompose", model, out, *option_words(options))

    import torch

    from ..training.card import decomposed_card
    from ..training.nested import Tuning
    from ..training.shrink import shrink

    torch.set_num_threads(threads)
    with tuning_shown() as (note, progress):
        try:
            found = shrink(
                folder, out, method, Tuning(tune_tokens, chosen, lr, seed), measured_tokens=measure_tokens, text=text,
                dtype=getattr(torch, dtype), note=note, progress=lambda at: progress(out.name, at),
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted(" ".join([again, *flag_words(no_card=not card, json=json)])) from None
        if card:
            about = {key: found[key] for key in ("method", "data", "measured_tokens", "tuning")}
            decomposed_card(out, folder, about, chosen, command=again, note=note)
    if json:
        print_json(found)
        return
    typer.echo(
        f"{found['folder']}: {found['file_bytes']:,} bytes for all sizes\n\n{'keep':>5}  {'of the layers':>13}  {'block parameters':>16}  {'FLOPs a token':>13}"
    )
    for row in found["sizes"]:
        typer.echo(f"{row['keep']:5g}  {row['kept']:13.1%}  {row['block_params']:16,}  {row['flops_per_token']:13,.0f}")


def keeps_of(words: str) -> tuple[float, ...]:
    from ..training.nested import sizes

    try:
        return sizes([float(word) for word in words.split(",")])
    except ValueError:
        raise UserError(f"--keeps {words}: expected numbers with commas between them, like {KEEPS}") from None


# --- progress ---


@contextmanager
def tuning_shown() -> Iterator[tuple[Callable[[str], None], Callable[[str, Progress], None]]]:
    """Two functions, for a line of text and for the state of a tuning by name. They write to stderr, so that stdout is the result alone."""
    if not sys.stderr.isatty():
        yield (lambda text: typer.echo(text, err=True)), _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("tuning {task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TextColumn("{task.fields[rate]:,.0f} tok/s"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, at: Any) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=at.goal, rate=at.rate)
            bars.update(tasks[name], completed=min(at.tokens, at.goal), rate=at.rate)

        yield lambda text: bars.console.print(text, highlight=False, markup=False, soft_wrap=True), show


def _lines() -> Callable[[str, Progress], None]:
    last = float("-inf")

    def show(name: str, at: Any) -> None:
        nonlocal last
        if at.tokens < at.goal and monotonic() - last < EVERY_S:
            return
        last = monotonic()
        away = ", ".join(f"{keep:g} {kl:.3f}" for keep, kl in sorted(at.kl.items(), reverse=True))
        typer.echo(f"tuning {name}: {at.tokens:,}/{at.goal:,} tokens, {at.rate:,.0f} tok/s; KL to the original by size: {away}", err=True)

    return show
