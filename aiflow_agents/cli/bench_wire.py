"""`aiflow bench wire`: what hidden states weigh once they are coded, and what is still known afterwards. `aiflow calibrate` fits what ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UnknownName, UserError
from .options import Display, Json, QuestionSeed
from .output import print_json

if TYPE_CHECKING:
    from ..training.cut import Cut
    from ..wire.codecs import Codec
    from ..wire.codecs.plain import Coding

MODEL = "willow"
CODECS = (
    "float16", "bfloat16", "bfloat16+range", "int8", "int8+range", "int4", "int4+range", "int:bits=3+range", "hadamard:bits=8+range", "hadamard+range",
    "outliers+range", "klt:bits=8,rank=64+range", "klt:bits=4+range", "klt:step=0.25+range", "klt:step=0.5", "klt:step=0.5+range", "klt:step=1+range",
    "klt:step=0.25,by=output+range", "klt:step=0.5,by=output+range", "klt:step=1,by=output+range", "predict:step=0.4", "predict:step=0.55", "predict:step=0.7", "predict:step=0.85",
    "predict:step=1",
)  # fmt: skip
SHIPPED = {"predict": "predict:step=0.66,step.3=0.64", "klt": "klt:step=0.25,by=output+range", "lower": "klt:step=0.25+range"}  # what `calibrate` fits, by name
SAMPLE = {"predict": 16000}  # training questions that a codec is fitted on, by name
OTHERS = 4000
LOWER_CODECS = ("float16", "int8+range", "int4+range", "int:bits=3+range", "klt:step=0.25+range", "klt:step=0.5+range", "klt:step=1+range")

Model = Annotated[str, typer.Argument(help="A model by name or path.")]
Layer = Annotated[int, typer.Option(min=0, help="Cut at the input of this layer.")]
Skills = Annotated[str | None, typer.Option(metavar="SKILL,...", help="Which skills' questions. Default: all that models are trained on.", show_default=False)]


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
        _folder(plot.parent)
    cut, drawn = _cut(model, layer, (exit,)), _Drawn(skills, seed)
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


# and for the features of a model that sees
SIGHT = {  # the same for features of cameras that stand still
    "klt": "klt:step=0.5,by=output,places=36+range", "coarse": "klt:step=1.3,by=output,places=36+range", "int8": "int8", "int4": "int4+range", "merge": "merge:step=0.5,spread=0.2",
}  # fmt: skip


def calibrate(
    model: Model = MODEL,
    layer: Annotated[list[int] | None, typer.Option(min=0, help="Cut at the input of this layer; repeatable. Default: where exits leave.", show_default=False)] = None,
    codec: Annotated[str | None, typer.Option(help="As in klt:step=0.5+range, or predict:step=0.7,step.3=0.6 with a step of its own at layer 3. Default: all that a family ships.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="What it is called. Default: as the codec, up to its settings; lower where it is for those.", show_default=False)] = None,
    value: Annotated[
        float, typer.Option(min=0, help="Of predict: bits a number that a nat of lost knowledge is worth; the more, the better and the larger. 0: no training.")
    ] = 0.0,
    steps: Annotated[tuple[int, int], typer.Option(help="Of that training: of the predictor alone, and of everything.")] = (600, 500),
    calibration: Annotated[
        int | None, typer.Option(min=20, help="How many training questions it is fitted on. Default: 16000 for predict, 4000 for others.", show_default=False)
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="How often gradients are drawn at each: more make a better codec, and take longer.")] = 4,
    lower: Annotated[bool, typer.Option("--lower", help="For keys and values of the layers below instead.")] = False,
    skills: Skills = None,
    out: Annotated[Path | None, typer.Option(help="The folder for it. Default: codecs/ of the model.", show_default=False)] = None,
    seed: QuestionSeed = 0,
    display: Display = "rich",
) -> None:
    """Fit codecs on a model's hidden states and write them where topologies and `aiflow bench wire` find them."""
    from aiflow_agents import catalog
    from aiflow_agents.models.family.config import DecoderConfig
    from aiflow_agents.models.family.info import weights_hash
    from aiflow_agents.models.family.model import FamilyModel
    from aiflow_agents.training.feature_sample import feature_sample, needed_draws
    from aiflow_agents.training.refine import refined
    from aiflow_agents.wire import calibration as files
    from aiflow_agents.wire.codecs import Codec, fit, needs_fitting, parse

    from .display import watcher

    fitted_on = catalog.find("model", model).path
    sees = DecoderConfig.read(fitted_on).vision is not None
    if sees and (lower or layer or skills or value):
        raise UserError(f"{model} sees: codecs of its features are fitted on scenes, at the layer that reads them; leave --lower and the like out")
    wanted = SIGHT if sees else SHIPPED
    if codec or name or lower:
        chosen = codec or SHIPPED["lower" if lower else "predict"]
        wanted = {name or ("lower" if lower else chosen.partition(":")[0]): chosen}
    wanted = {stem: parse(_with_boundary(spec)).text for stem, spec in wanted.items()}
    for spec in wanted.values():
        if not needs_fitting(spec):
            raise UserError(f"codec {spec} needs no fitting; name it as it is")
    drawn = _Drawn(skills, seed)
    folder, of_weights = out or fitted_on / "codecs", weights_hash(fitted_on)
    cuts = [] if sees else [_cut(model, k, None) for k in sorted(layer or _cut(model, 0, (None,)).family.exits[:-1])]
    _folder(folder)
    lines = []
    with watcher(display) as watch:
        seen = feature_sample(FamilyModel.load(fitted_on), (calibration or OTHERS) // 4, seed, needed_draws(wanted.values())) if sees else {}
        for stem, spec in wanted.items():
            codings: dict[str, Coding] = dict(fit(spec, seen).codings) if sees else {}
            text, below = None, lower or stem == "lower"
            for cut in cuts[-1:] if below else cuts:
                watch.stage(f"{stem}: {'caches below' if below else 'states at'} layer {cut.layer}", 0)
                samples = drawn.samples(cut, calibration or SAMPLE.get(spec.partition(":")[0], OTHERS), below, draws)
                fitted = fit(spec, samples)
                if spec.startswith("predict") and value and not below:
                    fitted = refined(cut, fitted, samples, drawn.weights, value=value, steps=steps, seed=seed, watch=watch)
                codings.update(fitted.codings)
                text = fitted.text
            file = folder / f"{stem}.safetensors"
            files.save(Codec(spec, codings, text=text), file, of_weights)
            lines.append(f"{file}: {spec} for {', '.join(sorted(codings))}, {file.stat().st_size:,} bytes")
    typer.echo("\n".join(lines))


def _folder(path: Path) -> None:
    """Make the folder that something is to be written to, before anything is measured."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"nothing can be written to {path}: {error.strerror}") from None


class _Drawn:
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


def _cut(model: str, layer: int, exits: tuple[int | None, ...] | None) -> Cut:
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
            spec = _with_boundary(parse(name).text)
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


def _with_boundary(spec: str) -> str:
    """In our own texts an answer begins with <assistant>; other text has no such token."""
    from ..training.tokenizer import ASSISTANT

    if not spec.startswith("predict") or "boundary=" in spec:
        return spec
    return spec + ("," if ":" in spec else ":") + f"boundary={ASSISTANT}"


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
