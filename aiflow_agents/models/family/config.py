"""What a model folder says about its decoder: `config.json`, read and checked without loading a tensor (or torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiflow_agents.errors import ConfigError, UserError
from aiflow_agents.models.protocol import Shape

MODEL_TYPES = ("llama", "qwen2", "qwen3")
RUYI = {"ruyi_qwen2": "qwen2", "ruyi_qwen3": "qwen3"}  # the released familial checkpoints: the plain architecture, and exits
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
          "max_position_embeddings")  # fmt: skip


def read_text(file: Path) -> str:
    """A text file of a model folder. Raises `ConfigError` with the line that is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("this is not UTF-8 text", file=file, line=error.object.count(b"\n", 0, error.start) + 1) from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no file. Raises `ConfigError` with the line that is not JSON."""
    if not file.exists():
        return {}
    try:
        found = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error.msg}", file=file, line=error.lineno) from None
    if not isinstance(found, dict):
        raise ConfigError("expected an object { ... }", file=file, line=1)
    return found


@dataclass(frozen=True)
class VisionConfig:
    """What a model that sees looks at: pictures of `size` x `size` pixels from so many cameras, in patches; from `layer` on all are read together."""

    size: int
    patch: int
    channels: int
    cameras: int
    layer: int

    @property
    def patches(self) -> int:
        """Positions that one picture takes."""
        return (self.size // self.patch) ** 2

    @property
    def numbers(self) -> int:
        """Numbers of one patch."""
        return self.patch**2 * self.channels


@dataclass(frozen=True)
class DecoderConfig:
    """The part of `config.json` that decides what is computed.

    `exits`, ascending, end with `layers - 1`: exit e runs the first e layers and then one block, its own, or the last layer at the last exit. A plain
    checkpoint has that one alone. With `own_heads` each exit has an output projection of its own.
    """

    model_type: str
    vocab: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    max_context: int
    rope: tuple[tuple[str, Any], ...]
    exits: tuple[int, ...] = ()
    own_heads: bool = False
    vision: VisionConfig | None = field(default=None, repr=False)  # what has no eyes keeps the hash it had

    @classmethod
    def read(cls, folder: str | Path) -> DecoderConfig:
        """Read and check `folder/config.json`. Raises `ConfigError` naming the key that this decoder cannot honour."""
        file = Path(folder) / "config.json"
        if not file.exists():
            raise UserError(f"model folder {folder} has no config.json; a model is a folder in the Hugging Face layout")
        raw = read_json(file)
        _refuse_unsupported(raw, file)
        kind = RUYI.get(raw["model_type"], raw["model_type"])
        try:
            width, heads = raw["hidden_size"], raw["num_attention_heads"]
            bias = bool(raw.get("attention_bias", False))
            return cls(
                model_type=kind,
                vocab=raw["vocab_size"],
                width=width,
                inner=raw["intermediate_size"],
                layers=raw["num_hidden_layers"],
                heads=heads,
                kv_heads=raw.get("num_key_value_heads") or heads,
                # Qwen3 alone has a fixed default; the others divide the width.
                head_dim=raw.get("head_dim") or (128 if kind == "qwen3" else width // heads),
                norm_eps=raw.get("rms_norm_eps", 1e-6),
                tied=raw.get("tie_word_embeddings", False),
                qkv_bias=True if kind == "qwen2" else bias,
                out_bias=False if kind == "qwen2" else bias,
                mlp_bias=kind == "llama" and bool(raw.get("mlp_bias", False)),
                qk_norm=kind == "qwen3",
                max_context=raw.get("max_position_embeddings", 2048),
                rope=tuple(sorted(_rope_settings(raw, file).items())),
                exits=_exits(raw, file),
                own_heads="early_exit_points" in raw and not raw.get("shared_heads", False),
                vision=_vision(raw, file),
            )
        except KeyError as missing:
            raise ConfigError("is missing", file=file, key=str(missing.args[0])) from None

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    def path(self, exit: int | None = None) -> tuple[int, ...]:
        """The blocks that an exit runs, in order (None: the last exit). Blocks 0..layers-1 are the backbone, those behind are the branches' own.

        Raises `UserError` for an exit that is not there.
        """
        if exit is None or exit == self.exits[-1]:
            return tuple(range(self.layers))
        if exit not in self.exits:
            raise UserError(f"no exit {exit}; this model has {', '.join(map(str, self.exits))}")
        return (*range(exit), self.layers + self.exits.index(exit))

    def shape(self, dtype_bytes: int = 4, exit: int | None = None) -> Shape:
        """Sizes and parameter counts of one exit for the cost model. The last norm is counted with the blocks."""
        layers = len(self.path(exit))
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        block = self.width * (q + 2 * kv) + q * self.width + 3 * self.width * self.inner + 2 * self.width
        block += self.qkv_bias * (q + 2 * kv) + self.out_bias * self.width + self.mlp_bias * (2 * self.inner + self.width)
        block += self.qk_norm * 2 * self.head_dim
        return Shape(
            layers=layers, width=self.width, heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim,
            block_params=layers * block + self.width, head_params=self.vocab * self.width, vocab=self.vocab, dtype_bytes=dtype_bytes,
        )  # fmt: skip


def _refuse_unsupported(raw: Mapping[str, Any], file: Path) -> None:
    kind = raw.get("model_type")
    if kind not in (*MODEL_TYPES, *RUYI):
        raise ConfigError(f"'{kind}' is not supported; known: {', '.join((*MODEL_TYPES, *RUYI))}", file=file, key="model_type")
    for key in COUNTS:
        if raw.get(key) is not None and (type(raw[key]) is not int or raw[key] < 1):
            raise ConfigError(f"expected a whole number above 0, found {raw[key]!r}", file=file, key=key)
    for key in ("rms_norm_eps", "rope_theta"):
        if raw.get(key) is not None and type(raw[key]) not in (int, float):
            raise ConfigError(f"expected a number, found {raw[key]!r}", file=file, key=key)
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"'{raw['hidden_act']}' is not supported; expected 'silu'", file=file, key="hidden_act")
    if raw.get("quantization_config"):
        raise ConfigError("quantized weights are not supported; use an unquantized copy of the model", file=file, key="quantization_config")
    layers, windowed = raw.get("num_hidden_layers", 0), raw.get("use_sliding_window") and raw.get("sliding_window")
    kinds = raw.get("layer_types") or (["sliding_attention"] if windowed and raw.get("max_window_layers", 28) < layers else [])
    for other in sorted(set(kinds) - {"full_attention"}):
        raise ConfigError(f"'{other}' layers are not supported; only full attention is", file=file, key="layer_types")


def _vision(raw: Mapping[str, Any], file: Path) -> VisionConfig | None:
    given = raw.get("vision")
    if given is None:
        return None
    keys = ("size", "patch", "channels", "cameras", "layer")
    if not isinstance(given, dict) or any(type(given.get(key)) is not int or given[key] < 1 for key in keys):
        raise ConfigError(f"expected whole numbers above 0 for {', '.join(keys)}, found {given!r}", file=file, key="vision")
    if given["size"] % given["patch"] or given["layer"] >= raw["num_hidden_layers"]:
        raise ConfigError("expected a size of whole patches and a layer of this model", file=file, key="vision")
    return VisionConfig(**{key: given[key] for key in keys})


def _exits(raw: Mapping[str, Any], file: Path) -> tuple[int, ...]:
    last = raw["num_hidden_layers"] - 1
    exits = raw.get("early_exit_points") or [last]
    numbers = isinstance(exits, list) and all(isinstance(e, int) for e in exits)
    if not numbers or exits != sorted({*exits}) or exits[0] < 0 or exits[-1] != last:
        raise ConfigError(f"expected ascending layer numbers up to {last}, found {exits}", file=file, key="early_exit_points")
    return tuple(exits)


def _rope_settings(raw: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Rotary settings from `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (before)."""
    given = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    given.pop("type", None)
    key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    if kind not in ROPE_TYPES:
        raise ConfigError(f"rope type '{kind}' is not supported; known: {', '.join(ROPE_TYPES)}", file=file, key=key)
    if given.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError("heads that turn only in part are not supported", file=file, key="partial_rotary_factor")
    needed = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ("factor",)}.get(kind, ())
    for name in needed:
        if given.get(name) is None:
            raise ConfigError(f"rope type '{kind}' needs a number here", file=file, key=f"{key}.{name}")
    theta = given.get("rope_theta") or raw.get("rope_theta") or 10000.0
    trained = "original_max_position_embeddings"
    original = given.get(trained) or raw.get(trained) or raw.get("max_position_embeddings", 2048)
    plain = {name: value for name, value in given.items() if isinstance(value, (int, float, bool))}
    return {**plain, "rope_type": kind, "rope_theta": float(theta), trained: original}


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model folder, sorted by name. Raises `UserError` when there are none."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        other = next(iter(sorted([*Path(folder).glob("*.bin"), *Path(folder).glob("*.pt")])), None)
        hint = f"{other.name} is a pickle and is not read; save it again as safetensors" if other else "copy or train them first"
        raise UserError(f"model folder {folder} has no weights (*.safetensors): {hint}")
    return files


def open_weights(folder: str | Path, stack: ExitStack, framework: str = "pt") -> dict[str, Any]:
    """Name of a tensor -> the open safetensors file that holds it, over all files of a folder. Raises `UserError` for one that cannot be read."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Any] = {}
    for path in weight_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework=framework))
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read ({error}); copy the file again") from None
        found |= dict.fromkeys(file.keys(), file)
    return found
