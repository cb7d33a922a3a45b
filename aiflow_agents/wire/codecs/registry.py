"""Codecs by name: `raw:dtype=bfloat16`, `int8`, `klt:step=0.5+range`. A name, its settings, and `+range` where the symbols are entropy-coded.
A number with a layer behind its name holds for that layer alone: `predict:step=0.65,step.3=0.6`.

    raw          float32, float16 or bfloat16                   hadamard     rotated, then integers
    int8, int4   integers, a scale a channel; int:bits=3        klt          by directions of variance; step=, bits=, rank=, by=output, places=
    outliers     some channels in float16, integers for others  predict      what tokens and past do not tell; always entropy-coded
    merge        what positions say alike is said once; step=, spread=, centres=; always entropy-coded
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple, get_args, get_type_hints

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.wire.codecs.codec import ANY, TEXT, Codec
from aiflow_agents.wire.codecs.floats import FloatFormat, Raw
from aiflow_agents.wire.codecs.hadamard import Hadamard
from aiflow_agents.wire.codecs.integer import Integer
from aiflow_agents.wire.codecs.klt import Klt
from aiflow_agents.wire.codecs.merge import Merge, Merging
from aiflow_agents.wire.codecs.outliers import Outliers
from aiflow_agents.wire.codecs.plain import Coding, Plain, Unchanged
from aiflow_agents.wire.codecs.predictive import Predict, Predictive
from aiflow_agents.wire.codecs.sample import Sample
from aiflow_agents.wire.codecs.stored import Stored
from aiflow_agents.wire.codecs.tokens import TokenModel

Settings = Raw | Integer | Hadamard | Klt | Outliers | Merge | Predict
NAMES: dict[str, type[Settings]] = {
    "raw": Raw, "int": Integer, "hadamard": Hadamard, "klt": Klt, "outliers": Outliers, "merge": Merge, "predict": Predict,
}  # fmt: skip
SHORT = {"int8": "int:bits=8", "int4": "int:bits=4", "float32": "raw:dtype=float32", "float16": "raw:dtype=float16", "bfloat16": "raw:dtype=bfloat16"}
ENTROPY, BEFORE = "range", "ans"  # what stands for entropy coding, and what stood for it when another coder did it
ALWAYS = {("raw", "dtype"), ("int", "bits"), ("merge", "step")}  # said even where it is the default
RANGES = {
    "bits": (1, 16), "step": (0, 1e6), "rank": (0, 1 << 20), "channels": (1, 1 << 20), "boundary": (0, 1 << 30),
    "spread": (0, 1e6), "centres": (0, 1 << 20), "near": (1, 1 << 10), "places": (0, 1 << 12),
}  # fmt: skip


class Spec(NamedTuple):
    """A spec, read. `text` is the one way to write it, so that equal codecs have equal specs."""

    text: str
    settings: Settings
    entropy: bool
    layers: Mapping[int, Settings]  # of those that have settings of their own

    def at(self, space: str) -> Settings:
        """What holds for `hidden.3` or `key.0`."""
        layer = space.rpartition(".")[2]
        return self.layers.get(int(layer), self.settings) if layer.isdecimal() else self.settings


def parse(spec: str) -> Spec:
    """Read a spec. Raises UnknownName with the nearest name, or UserError for a setting that is none."""
    body, plus, suffix = spec.strip().partition("+")
    if plus and suffix not in (ENTROPY, BEFORE):
        raise UserError(f"codec '{spec}': after '+' comes {ENTROPY}, not '{suffix}'")
    name, _, given = SHORT.get(body, body).partition(":")
    if name not in NAMES:
        raise UnknownName("codec", name, [*NAMES, *SHORT])
    kind = NAMES[name]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    own: dict[int, dict[str, Any]] = {}  # of layers
    for pair in given.split(",") if given else ():
        said, equals, value = pair.partition("=")
        key, dot, layer = said.partition(".")
        if key not in hints or not equals or dot and not (layer.isdecimal() and len(layer) < 5 and hints[key] in (int, float)):
            raise UserError(f"codec '{spec}': '{pair}' is no setting of {name}; it has {', '.join(f'{key}=' for key in hints)}")
        (own.setdefault(int(layer), {}) if dot else values)[key] = _value(spec, key, value, hints[key])
    settings, layers = kind(**values), {layer: kind(**{**values, **others}) for layer, others in sorted(own.items())}
    if plus and name in ("merge", "predict"):
        raise UserError(f"codec '{spec}': {name} is always entropy-coded; leave +range out")
    chosen = [f.name for f in fields(kind) if getattr(settings, f.name) != f.default or (name, f.name) in ALWAYS]
    shown = [f"{key}={_show(getattr(settings, key))}" for key in chosen]
    for at, one in layers.items():
        shown += [f"{f.name}.{at}={_show(getattr(one, f.name))}" for f in fields(kind) if getattr(one, f.name) != getattr(settings, f.name)]
    text = ":".join([name, *filter(None, [",".join(shown)])])
    return Spec({long: short for short, long in SHORT.items()}.get(text, text) + (plus and f"+{ENTROPY}"), settings, bool(plus), layers)


def needs_fitting(spec: str) -> bool:
    """Whether a codec is fitted on states before it can be used."""
    found = parse(spec)
    return not isinstance(found.settings, Raw) or found.entropy


def codec(spec: str) -> Codec:
    """A codec that needs no calibration. Raises UserError for one that does: `fit` it, or `load` one that was fitted."""
    text, settings, *_ = parse(spec)
    if not isinstance(settings, Raw) or needs_fitting(text):
        raise UserError(f"codec '{text}' is fitted on states of a model: fit(spec, samples) does that, calibration.load(file) reads one that was")
    return Codec(text, {ANY: Unchanged(FloatFormat(settings.dtype))})


def fit(spec: str, samples: Mapping[str, Sample]) -> Codec:
    """Fit a codec. samples: space -> states, where a space is `hidden.3` (the input of layer 3), `key.0` or `value.0`."""
    found = parse(spec)
    text, settings, entropy, _ = found
    if isinstance(settings, Raw) and not entropy:
        return codec(text)
    codings: dict[str, Coding] = {}
    for space, sample in samples.items():
        own = found.at(space)
        fitted = FloatFormat(own.dtype, sample.states.shape[1]) if isinstance(own, Raw) else own.fit(sample)
        codings[space] = fitted if isinstance(fitted, Predictive | Merging) else Plain.fit(fitted, sample, entropy)
    return Codec(text, codings, text=TokenModel.fit(next(iter(samples.values()))) if isinstance(settings, Predict) else None)


def restore(spec: str, spaces: Mapping[str, Stored]) -> Codec:
    """A fitted codec from stored arrays. Raises CalibrationError for arrays that do not fit."""
    text, settings, entropy, _ = parse(spec)
    if isinstance(settings, Predict):
        codings = {space: Predictive.restore(stored) for space, stored in spaces.items() if space != TEXT}
        return Codec(text, codings, text=TokenModel.restore(spaces[TEXT]) if TEXT in spaces else None)
    if isinstance(settings, Merge):
        return Codec(text, {space: Merging.restore(stored) for space, stored in spaces.items()})
    floats = FloatFormat(settings.dtype) if isinstance(settings, Raw) else None
    return Codec(text, {space: Plain.restore(stored, floats, entropy) for space, stored in spaces.items()})


def _value(spec: str, key: str, value: str, hint: Any) -> Any:
    if choices := get_args(hint):
        if value not in choices:
            raise UserError(f"codec '{spec}': {key} is one of {', '.join(choices)}, not '{value}'")
        return value
    try:
        found = hint(value)
    except ValueError:
        raise UserError(f"codec '{spec}': {key} is a number, not '{value}'") from None
    low, high = RANGES[key]
    if not low <= found <= high:
        raise UserError(f"codec '{spec}': {key} lies between {low} and {high:g}, not at {value}")
    return found


def _show(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
