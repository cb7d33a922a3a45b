"""`aiflow family decompose`: rank as a size, one file for all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import catalog
from ..errors import UserError
from . import Interrupted
from .again import command, flag_words, option_words
from .display import tuning
from .options import Json, Threads
from .output import print_json

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
    with tuning() as (note, progress):
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
