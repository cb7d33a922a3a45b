"""`aiflow bench wire`: what hidden states weigh once they are coded, and what is still known afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UnknownName, UserError
from .options import Display, Json, QuestionSeed
from .output import print_json
from .states import MODEL, OTHERS, Drawn, Model, Skills, cut_at, ready_folder, with_boundary

if TYPE_CHECKING:
    from ..training.cut import Cut
    from ..wire.codecs import Codec

CODECS = (
    "float16", "bfloat16", "bfloat16+range", "int8", "int8+range", "int4", "int4+range", "int:bits=3+range", "hadamard:bits=8+range", "hadamard+range",
    "outliers+range", "klt:bits=8,rank=64+range", "klt:bits=4+range", "klt:step=0.25+range", "klt:step=0.5", "klt:step=0.5+range", "klt:step=1+range",
    "klt:step=0.25,by=output+range", "klt:step=0.5,by=output+range", "klt:step=1,by=output+range", "predict:step=0.4", "predict:step=0.55", "predict:step=0.7", "predict:step=0.85",
    "predict:step=1",
)  # fmt: skip
LOWER_CODECS = ("float16", "int8+range", "int4+range", "int:bits=3+range", "klt:step=0.25+range", "klt:step=0.5+range", "klt:step=1+range")

Layer = Annotated[int, typer.Option(min=0, help="Cut at the input of this layer.")]


def wire(
    model: Model = MODEL,
    layer: Layer = 3,
    exit: Annotated[int | None, typer.Option(help="Where the states are gone on to. Default: the last exit.", show_default=False)] = None,
    codec: Annotated[
        list[str] | None, typer.Option(help="A codec as in klt:step=0.5+range, or a file of one that was fitted; repeatable. Default: all kinds, and those in the model's codecs/.", show_default=False)
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="How many test questions travel.")] = 1000,
    calibration: Annotated[int, typer.Option(min=20, help="How many training questions codecs are fitted on.")] = OTHERS,
    skills: Skills = None,
    lower: Annotated[bool, typer.Option("--lower", help="Keys and values of the layers below instead, which a receiver needs to speak on.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write the trade as a picture, an SVG.", show_default=False)] = None,
    seed: QuestionSeed = 0,
    display: Display = "rich",
    json: Json = False,
) -> None:
    """Codecs side by side on a model's own hidden states: bits a number, next tokens that stay the same, answers lost, milliseconds.

    Every byte of a message counts. Test questions with their right answers travel; codecs are fitted on training questions.
    """
    from aiflow_agents.bench.wire import bench_codec, references
    from aiflow_agents.bench.wire_lower import bench_lower

    from .display import watcher

    if plot is not None:
        ready_folder(plot.parent)
    cut, drawn = cut_at(model, layer, (exit,)), Drawn(skills, seed)
    rows = []
    with watcher(display) as watch:
        codecs = _codecs(cut, model, codec, lower, lambda: drawn.samples(cut, calibration, lower), watch)
        asked = drawn.questions("test", questions)
        exact = [] if lower else references(cut, asked)
        watch.stage("codecs", len(codecs))
        for one in codecs:
            rows.append(bench_lower(cut, one, asked) if lower else bench_codec(cut, one, exact))
            watch.advance(1)
    about = {
        "model": model, "layer": layer, "form": "keys and values below" if lower else "input of", "questions": questions, "seed": seed,
        "exit": cut.family.exits[-1] if exit is None else exit,
    }  # fmt: skip
    if plot is not None:
        from aiflow_agents.bench.wire_plot import wire_svg

        plot.write_text(wire_svg(rows, f"{model}, {about['form']} layer {layer}, {questions:,} messages"), encoding="utf-8")
    if json:
        print_json({**about, "codecs": rows})
    else:
        _show(about, rows)


def _codecs(cut: Cut, model: str, wanted: list[str] | None, lower: bool, samples: Any, watch: Any) -> list[Codec]:
    """Those asked for, fitted where they need it, or all kinds and what ships with the model."""
    from .. import catalog
    from ..wire import calibration
    from ..wire.codecs import codec, fit, needs_fitting, parse

    space, found, shared = f"key.{cut.layer - 1}" if lower else f"hidden.{cut.layer}", [], None
    shipped = sorted((catalog.find("model", model).path / "codecs").glob("*.safetensors"))
    for name in wanted or [*(LOWER_CODECS if lower else CODECS), *map(str, shipped)]:
        named = [file for file in shipped if file.stem == name]
        if named or name.endswith(".safetensors"):
            one = calibration.load(named[0] if named else name)
            if space in one.codings:
                found.append(one)
            elif wanted:
                raise UserError(f"codec {name} is fitted for {', '.join(sorted(one.codings))}; not for {space}")
            continue
        try:
            spec = with_boundary(parse(name).text)
        except UnknownName as error:
            raise UserError(f"{error}, or a file.safetensors") from None
        if not needs_fitting(spec):
            found.append(codec(spec))
            continue
        if shared is None:
            watch.stage("states to fit on", 0)
            shared = samples()
        found.append(fit(spec, shared))
    return found


def _show(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    typer.echo(f"{about['model']}, {about['form']} layer {about['layer']} to exit {about['exit']}: {about['questions']:,} messages, seed {about['seed']}\n")
    head = f"{'codec':30} {'bytes':>7} {'bits':>6} {'told':>6} {'body':>6} {'single':>6}  {'answers agree':>13} {'all':>6} {'KL':>8}"
    typer.echo(f"{head}  {'points lost':>20}  {'encode':>8} {'decode':>8}")
    for row in rows:
        bits = " ".join(f"{row[key]:6.2f}" if key in row else "     -" for key in ("bits", "told_bits", "body_bits", "single_bits"))
        low, high = row["accuracy"]["lost_ci95"]
        lost = f"{100 * row['accuracy']['lost']:5.2f} [{100 * low:5.2f}, {100 * high:5.2f}]"
        kept = f"{100 * row['agreement']['answers']:11.2f} % {100 * row['agreement']['all']:6.2f} {row['kl']['answers']:8.5f}"
        typer.echo(f"{row['codec'][:30]:30} {row['message_bytes']:7.1f} {bits}  {kept}  {lost:>20}  {row['encode_ms']:5.2f} ms {row['decode_ms']:5.2f} ms")
    if rows:
        typer.echo(f"\nright answers with exact states: {100 * rows[0]['accuracy']['exact']:.1f} %. bits: of all bytes of a message, for each number.")
        typer.echo("told: where the receiver has the token ids; body: without frame and ids; single: one position a message.")
