from __future__ import annotations

import json
import random
import shutil

import pytest
import torch

from aiflow_agents.errors import ConfigError, UserError
from aiflow_agents.models.family.config import DecoderConfig
from aiflow_agents.models.family.decoder import Cache, Decoder

NTK = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0}
NTK["original_max_position_embeddings"] = 64
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1000.0}
CASES = {
    "llama": ("llama", {}),
    "llama-biases-tied-wide-heads": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "tie_word_embeddings": True}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama-llama3": ("llama", {"rope_parameters": NTK}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn-mscale": ("qwen2", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False}}),
    "qwen2-window-above-all-layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-one-kv-head-biases": ("qwen3", {"head_dim": 24, "num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-yarn": ("qwen3", {"head_dim": 32, "num_key_value_heads": 4, "rope_parameters": YARN}),
}


def error_of(folder, model, rows=2, positions=70) -> float:
    tokens = torch.randint(0, model.config.vocab_size, (rows, positions))
    with torch.no_grad():
        return float((Decoder.load(folder).logits(tokens) - model(tokens).logits).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case, make_checkpoint):
    kind, settings = CASES[case]
    assert error_of(*make_checkpoint(kind, **settings)) < 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_logits_equal_those_of_transformers_on_random_shapes(seed, make_checkpoint):
    pick = random.Random(seed)
    kv, group = pick.choice([1, 2, 3]), pick.choice([1, 2, 5])
    shape = {
        "num_attention_heads": kv * group,
        "num_key_value_heads": kv,
        "hidden_size": kv * group * pick.choice([4, 6]),
        "head_dim": pick.choice([6, 16]),
        "intermediate_size": pick.randrange(30, 90),
        "vocab_size": pick.randrange(20, 90),
        "tie_word_embeddings": pick.random() < 0.5,
        "rms_norm_eps": pick.choice([1e-6, 1e-2]),
        "num_hidden_layers": pick.randrange(1, 4),
    }
    kind = pick.choice(["llama", "qwen3"])
    assert error_of(*make_checkpoint(kind, seed, **shape)) < 1e-4


def test_shards_are_read_as_one(make_checkpoint):
    folder, model = make_checkpoint("llama", shard="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert error_of(folder, model) < 1e-4


def test_rope_settings_of_older_files_mean_the_same(make_checkpoint, tmp_path):
    folder, model = make_checkpoint("llama", rope_parameters=NTK)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    old = config.pop("rope_parameters")
    config["rope_theta"] = old.pop("rope_theta")
    config["rope_scaling"] = {**old, "type": old.pop("rope_type")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert error_of(tmp_path, model) < 1e-4


def test_bfloat16_stays_near_float32(make_checkpoint):
    folder, _ = make_checkpoint("qwen3", head_dim=16)
    tokens = torch.randint(0, 64, (2, 20))
    whole, half = Decoder.load(folder).logits(tokens), Decoder.load(folder, torch.bfloat16).logits(tokens)
    assert half.dtype == torch.float32
    assert 0 < (whole - half).abs().max() < 0.05 * whole.abs().max()


def test_layers_can_be_run_in_pieces_from_a_hidden_state(make_checkpoint):
    folder, _ = make_checkpoint("llama", num_hidden_layers=3)
    decoder, tokens = Decoder.load(folder), torch.randint(0, 64, (2, 12))
    with torch.inference_mode():
        cache, span = Cache.new(decoder.config, 2, 12, torch.float32, range(3)), decoder.prompt_span(0, 12)
        hidden = decoder.run(decoder.embed(tokens), cache, span, [0, 1])
        kept = hidden.clone()
        elsewhere = Cache.new(decoder.config, 2, 12, torch.float32, range(3))
        whole = decoder.head(decoder.run(hidden, elsewhere, span, [2]))
        ends = torch.tensor([11, 4])
        last = decoder.head(decoder.run(hidden, elsewhere, span, [2], read=torch.stack((ends, ends - 2), 1)))
        none = decoder.run(hidden, elsewhere, span, [2], read=torch.zeros(2, 0, dtype=torch.long))
    assert torch.equal(hidden, kept), "a hidden state that was handed over must not change afterwards"
    assert torch.equal(whole, decoder.logits(tokens))
    torch.testing.assert_close(last, torch.stack((whole[[0, 1], ends], whole[[0, 1], ends - 2]), 1), rtol=1e-4, atol=1e-4)
    assert none.shape == (2, 0, 48)
    assert cache.k[2].abs().sum() == 0 and elsewhere.k[0].abs().sum() == 0, "each part writes its own layers only"


def test_padding_on_the_right_is_not_read(make_checkpoint):
    folder, _ = make_checkpoint("qwen2")
    decoder, tokens = Decoder.load(folder), torch.randint(0, 64, (1, 24))
    other = tokens.clone()
    other[:, 16:] = (other[:, 16:] + 7) % 64
    assert torch.equal(decoder.logits(tokens)[:, :16], decoder.logits(other)[:, :16])


@pytest.mark.parametrize("case", ["llama-biases-tied-wide-heads", "qwen2", "qwen3-one-kv-head-biases", "qwen3"])
def test_shape_counts_the_parameters(case, make_checkpoint):
    kind, settings = CASES[case]
    folder, model = make_checkpoint(kind, **settings)
    shape = DecoderConfig.read(folder).shape()
    embedding = model.config.vocab_size * model.config.hidden_size
    assert shape.head_params == embedding
    assert shape.block_params == sum(p.numel() for p in model.parameters()) - embedding * (1 if model.config.tie_word_embeddings else 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "model_type: 'mamba' is not supported; known: llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None}, "'sliding_attention' layers"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention' layers are not supported"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope type 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_parameters.factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"hidden_size": "48"}, "hidden_size: expected a whole number above 0, found '48'"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected a whole number above 0, found 0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: expected a number, found 'small'"),
        ({"early_exit_points": 1}, "early_exit_points: expected ascending layer numbers"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(change, said, make_checkpoint, tmp_path):
    folder, _ = make_checkpoint("qwen2")
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ConfigError) as error:
        Decoder.load(tmp_path)
    assert said in str(error.value) and "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("raw", "said"), [(b"[]", ":1: expected an object"), (b"{\n\xff}", ":2: this is not UTF-8 text"), (b"{", ":1: not JSON")])
def test_a_damaged_config_is_refused_by_its_line(raw, said, tmp_path):
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(ConfigError, match=f"config.json{said}"):
        DecoderConfig.read(tmp_path)


def test_missing_and_misshapen_weights_are_named(make_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = make_checkpoint("llama")
    with pytest.raises(UserError, match="no config.json"):
        Decoder.load(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"has no weights \(\*\.safetensors\)"):
        Decoder.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle"):
        Decoder.load(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"no weight '{name}'"):
        Decoder.load(tmp_path)
    save_file({**weights, name: torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"shape \[3, 4\], config.json says \[80, 48\]"):
        Decoder.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        Decoder.load(tmp_path)
