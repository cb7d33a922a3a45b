"""Rank as size: what is stored, what is read back at every size, and who is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.models.family import rank
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.export import export_branch, write
from aiflow_agents.models.family.info import model_info
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.family.rank import Linear, allot
from aiflow_agents.models.protocol import Reply, Request, Turn

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {"num_key_value_heads": 4}),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def halves(make_checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Any]]:
    """halves(case) -> (the model's folder, the same decomposed by numpy's SVD, the transformers model)."""
    made: dict[str, tuple[Path, Path, Any]] = {}

    def decomposed(case: str) -> tuple[Path, Path, Any]:
        if case in made:
            return made[case]
        kind, settings = CASES[case]
        folder, model = make_checkpoint(kind, **settings)
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(folder / "model.safetensors").items():
            if not name.endswith("_proj.weight"):
                tensors[name] = tensor
                continue
            u, s, v = np.linalg.svd(tensor.double().numpy(), full_matrices=False)
            layer = name.removesuffix(".weight")
            for key, value in (("b", u * s), ("a", v), ("spectrum", s**2)):
                tensors[f"{layer}.{key}"] = torch.tensor(value, dtype=torch.float32)
        out = tmp_path_factory.mktemp("decomposed")
        config = json.loads((folder / "config.json").read_text())
        write(out, {**config, "rank": {"method": "svd"}}, tensors, beside=folder)
        made[case] = folder, out, model
        return made[case]

    return decomposed


@pytest.mark.parametrize("case", CASES)
def test_the_full_size_is_the_original(case: str, halves: Any) -> None:
    _, folder, model = halves(case)
    tokens = torch.randint(0, 64, (2, 40))
    with torch.no_grad():
        assert float((Decoder.load(folder).logits(tokens) - model(tokens).logits).abs().max()) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_a_cut_model_is_what_transformers_computes_from_its_whole_weights(case: str, halves: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole, folder, _ = halves(case)
    tokens = torch.randint(0, 64, (2, 40))
    rank.compose(folder, tmp_path / "half", 0.5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    cut = Decoder.load(folder, keep=0.5).logits(tokens)
    with torch.no_grad():
        assert float((cut - plain(tokens).logits).abs().max()) < 1e-4
    assert float((cut - Decoder.load(whole).logits(tokens)).abs().max()) > 0.1, "something must have been cut"
    weights, originals = load_file(tmp_path / "half" / "model.safetensors"), load_file(whole / "model.safetensors")
    assert weights.keys() == originals.keys() and "rank" not in json.loads((tmp_path / "half" / "config.json").read_text())
    for name, r in rank.ranks(folder, 0.5).items():
        u, s, v = np.linalg.svd(originals[f"{name}.weight"].double().numpy(), full_matrices=False)
        assert np.abs(weights[f"{name}.weight"].numpy() - (u[:, :r] * s[:r]) @ v[:r]).max() < 1e-5  # the best of that rank


def test_each_size_is_a_prefix_of_the_next(halves: Any, tmp_path: Path) -> None:
    _, folder, _ = halves("llama")
    name = "model.layers.1.mlp.down_proj"
    stored = load_file(folder / "model.safetensors")
    assert stored[f"{name}.b"].shape == (48, 48) and stored[f"{name}.a"].shape == (48, 80)
    before = torch.zeros(48, 80)
    for r in (1, 2, 47, 48):
        rank.compose(folder, tmp_path / str(r), {name: r})
        now = load_file(tmp_path / str(r) / "model.safetensors")[f"{name}.weight"]
        step = stored[f"{name}.b"][:, :r] @ stored[f"{name}.a"][:r]
        torch.testing.assert_close(now, step)
        assert int(torch.linalg.matrix_rank(now - before, atol=1e-4)) in (1, 45)
        before = now


@given(out=st.integers(1, 40), into=st.integers(1, 40), keep=st.floats(0.05, 0.999))
def test_a_keep_ratio_is_never_exceeded_and_used_up(out: int, into: int, keep: float) -> None:
    layer = Linear(out, into)
    r = layer.rank(keep)
    assert 1 <= r <= layer.full
    if 1 < r < layer.full:
        assert r * (out + into) <= keep * out * into + 1e-6
    if r < layer.full:
        assert (r + 1) * (out + into) > keep * out * into and layer.params(r) < layer.dense
    else:
        assert layer.params(1) == layer.dense or layer.full == 1
    assert layer.rank(1.0) == layer.full and layer.params(layer.full) == out * into


# --- budgets ---


def spectra_of(seed: int, layers: dict[str, Linear]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.sort(rng.exponential(size=layer.full) ** rng.integers(1, 5))[::-1] * rng.choice([0.1, 1.0]) for name, layer in layers.items()}


def kept_energy(layers: dict[str, Linear], spectra: dict[str, np.ndarray], ranks: dict[str, int]) -> float:
    return sum(float(spectra[name][: ranks[name]].sum()) for name in layers)


def cost(layers: dict[str, Linear], ranks: dict[str, int]) -> int:
    return sum(layer.params(ranks[name]) for name, layer in layers.items())


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=5),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_budget_is_respected_and_more_of_it_takes_nothing_away(seed: int, sizes: list[tuple[int, int]], shares: tuple[float, float]) -> None:
    layers = {f"layer{i}": Linear(*size) for i, size in enumerate(sizes)}
    spectra = spectra_of(seed, layers)
    least, whole = sum(layer.params(1) for layer in layers.values()), sum(layer.dense for layer in layers.values())
    small, large = sorted(least + int(share * (whole - least)) for share in shares)
    first, second = allot(layers, spectra, small), allot(layers, spectra, large)
    for name, layer in layers.items():
        assert 1 <= first[name] <= second[name] <= layer.full
        assert layer.params(first[name]) < layer.dense or first[name] == layer.full, "who pays for the whole layer gets it"
    assert cost(layers, first) <= small and cost(layers, second) <= large
    assert small - cost(layers, first) < max(layer.part for layer in layers.values()), "less than one part is left over"
    assert allot(layers, spectra, whole) == {name: layer.full for name, layer in layers.items()}


def on_hull(layer: Linear, spectrum: np.ndarray, r: int) -> bool:
    """Whether no two other sizes of this layer, mixed, give as much as rank r for its price."""
    points = [(layer.params(k), float(spectrum[:k].sum())) for k in range(1, layer.full + 1) if layer.params(k) < layer.dense or k == layer.full]
    x, y = layer.params(r), float(spectrum[:r].sum())
    for (x1, y1), (x2, y2) in product(points, points):
        if x1 < x < x2 and y1 + (y2 - y1) * (x - x1) / (x2 - x1) > y + 1e-12:
            return False
    return True


@pytest.mark.parametrize("seed", range(40))
def test_where_no_layer_is_half_bought_nothing_better_can_be_had_for_the_price(seed: int) -> None:
    pick = random.Random(seed)
    layers = {name: Linear(pick.randrange(2, 9), pick.randrange(2, 9)) for name in "abc"}
    spectra = spectra_of(seed, layers)
    whole, least = sum(layer.dense for layer in layers.values()), sum(layer.params(1) for layer in layers.values())
    compared = 0
    for budget in range(least, whole + 1):
        found = allot(layers, spectra, budget)
        if all(on_hull(layers[name], spectra[name], found[name]) for name in layers):
            compared += 1
            spent = cost(layers, found)
            sizes = (range(layer.rank(0.0), layer.full + 1) for layer in layers.values())
            others = (dict(zip(layers, at, strict=True)) for at in product(*sizes))
            best = max(kept_energy(layers, spectra, at) for at in others if cost(layers, at) <= spent)
            assert kept_energy(layers, spectra, found) >= best - 1e-9
    assert compared > 1


def test_a_budget_is_read_from_the_file(halves: Any) -> None:
    _, folder, _ = halves("qwen3")
    layers = rank.linears(folder)
    whole = sum(layer.dense for layer in layers.values())
    at = rank.spread(folder, whole // 2)
    assert 0.45 < rank.kept(layers, at) <= 0.5 and len(set(at.values())) > 3
    Decoder.load(folder, keep=at)
    with pytest.raises(UserError, match="10 parameters are too few: rank 1 everywhere takes"):
        rank.spread(folder, 10)


@pytest.mark.parametrize("case", CASES)
def test_an_export_of_a_decomposed_model_has_whole_weights(case: str, halves: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, folder, model = halves(case)
    export_branch(folder, model.config.num_hidden_layers - 1, tmp_path / "plain")
    tokens = torch.randint(0, 64, (2, 40))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)(tokens).logits
        assert float((theirs - model(tokens).logits).abs().max()) < 1e-4


def test_each_request_is_answered_at_its_size(halves: Any, add_tokenizer: Callable[[Path], None]) -> None:
    """One loaded model answers a batch of several sizes as models loaded at those sizes do, each alone."""
    whole, folder, _ = halves("qwen3")
    for one in (whole, folder):
        add_tokenizer(one)
    asked, keeps = [Request((Turn("user", text),), 12) for text in "abc"], (None, 0.3, 0.7)
    mixed = FamilyModel.load(folder).generate([replace(request, keep=keep) for request in asked for keep in keeps])
    for i, keep in enumerate(keeps):
        alone = FamilyModel.load(folder, keep=1.0 if keep is None else rank.spend(folder, keep))
        assert mixed[i::3] == alone.generate(asked)
    assert mixed[1::3] != mixed[0::3]
    with pytest.raises(UserError, match="decompose them first"):
        FamilyModel.load(whole).generate([replace(asked[0], keep=0.5)])


# --- counts, and a model that answers ---


@pytest.mark.parametrize("case", CASES)
def test_shape_counts_what_is_left(case: str, halves: Any, add_tokenizer: Callable[[Path], None]) -> None:
    whole, folder, model = halves(case)
    others = sum(
        p.numel() for name, p in model.named_parameters() if not name.endswith("_proj.weight") and "embed" not in name and "lm_head" not in name
    )
    parts = 0
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            out, into = module.weight.shape
            parts += int(0.6 * out * into / (out + into)) * (out + into)
    for place in (whole, folder):
        add_tokenizer(place)
    small, full, plain = model_info(folder, keep=0.6), model_info(folder), model_info(whole)
    assert small.shape.block_params == others + parts < full.shape.block_params
    assert full.shape == plain.shape and small.shape.head_params == plain.shape.head_params
    assert len({small.weights_hash, full.weights_hash, plain.weights_hash, model_info(folder, keep=0.5).weights_hash}) == 4
    assert model_info(whole, keep=1.0).weights_hash == plain.weights_hash


def test_a_cut_model_answers_as_its_whole_weights_do(halves: Any, add_tokenizer: Callable[[Path], None], tmp_path: Path) -> None:
    _, folder, _ = halves("llama")
    add_tokenizer(folder)
    rank.compose(folder, tmp_path / "cut", 0.7)
    asked = [Request((Turn("user", text),), 8) for text in ("abc", "12+3=", "what")]
    cut, plain = FamilyModel.load(folder, keep=0.7), FamilyModel.load(tmp_path / "cut")
    said = [[reply.text for reply in model.generate(asked) if isinstance(reply, Reply)] for model in (cut, plain)]
    assert said[0] == said[1] and len(said[0]) == 3


# --- mistakes ---


def test_a_whole_model_has_one_size(halves: Any, tmp_path: Path) -> None:
    whole, _, _ = halves("llama")
    for load in (
        lambda: Decoder.load(whole, keep=0.5),
        lambda: rank.compose(whole, tmp_path),
        lambda: rank.spread(whole, 10**6),
        lambda: model_info(whole, keep={"x": 1}),
    ):
        with pytest.raises(UserError) as error:
            load()
        assert f"aiflow family decompose {whole} OUT" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (0.0, "more than 0 and at most 1 of its parameters, not 0"),
        (1.5, "not 1.5"),
        (float("nan"), "not nan"),
        ({"model.layers.0.mlp.down_proj": 0}, r"rank 0 of model.layers.0.mlp.down_proj lies outside 1 to 48"),
        ({"model.layers.0.mlp.down_proj": 49}, "lies outside 1 to 48"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(keep: Any, said: str, halves: Any) -> None:
    with pytest.raises(UserError, match=said):
        Decoder.load(halves("llama")[1], keep=keep)


def test_a_layer_that_is_not_there_has_a_nearest_name(halves: Any, tmp_path: Path) -> None:
    _, folder, _ = halves("llama")
    with pytest.raises(UnknownName, match="did you mean model.layers.0.mlp.down_proj"):
        Decoder.load(folder, keep={"model.layers.0.mlp.down_prj": 3})
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="already holds a model"):
        rank.compose(folder, tmp_path, 0.5)
