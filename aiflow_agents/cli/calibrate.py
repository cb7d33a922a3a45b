"""`aiflow calibrate`: codecs fitted on a model's hidden states, as they ship with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .options import Display, QuestionSeed
from .states import MODEL, OTHERS, Drawn, Model, Skills, cut_at, ready_folder, with_boundary

if TYPE_CHECKING:
    from ..wire.codecs.plain import Coding

SHIPPED = {"predict": "predict:step=0.66,step.3=0.64", "klt": "klt:step=0.25,by=output+range", "lower": "klt:step=0.25+range"}  # what `calibrate` fits, by name
SAMPLE = {"predict": 16000}  # training questions that a codec is fitted on, by name
SIGHT = {  # the same for the features of a model that sees, of cameras that stand still
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
    wanted = {stem: parse(with_boundary(spec)).text for stem, spec in wanted.items()}
    for spec in wanted.values():
        if not needs_fitting(spec):
            raise UserError(f"codec {spec} needs no fitting; name it as it is")
    drawn = Drawn(skills, seed)
    folder, of_weights = out or fitted_on / "codecs", weights_hash(fitted_on)
    cuts = [] if sees else [cut_at(model, k, None) for k in sorted(layer or cut_at(model, 0, (None,)).family.exits[:-1])]
    ready_folder(folder)
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
