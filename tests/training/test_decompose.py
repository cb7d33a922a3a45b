"""Factors against the best there can be, and moments against what a layer really reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.info import at_exit, model_info
from aiflow_agents.models.family.rank import linears
from aiflow_agents.training import moments as measuring
from aiflow_agents.training import tokenizer
from aiflow_agents.training.branches import add_branches
from aiflow_agents.training.corpus import collate
from aiflow_agents.training.decompose import METHODS, Factors, Method, decompose, factors, save
from aiflow_agents.training.moments import Moments, layers, load, measure
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.sources import is_text, skill_source, source_of, text_source, up_to
from aiflow_agents.training.trainer import build


def layer(seed: int, out: int, into: int, directions: int | None = None) -> tuple[torch.Tensor, Moments, torch.Tensor]:
    """(weight, moments, inputs [tokens, into]): inputs of very unequal directions, only so many of them where that is said."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(into, into, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, into, dtype=torch.float64)[:, None]
    x = torch.randn(300, into, generator=draw, dtype=torch.float64)
    x[:, directions or into :] = 0
    x = x @ mix
    g = torch.randn(300, out, generator=draw, dtype=torch.float64) * torch.logspace(0, -1, out, dtype=torch.float64)
    weight = torch.randn(out, into, generator=draw, dtype=torch.float64).float()
    return weight, Moments(x.T @ x / 300, x.abs().mean(0), g.T @ g / 300), x


def left_out(weight: torch.Tensor, found: Factors, x: torch.Tensor, r: int) -> float:
    """E|W x - W_r x|^2 over the inputs themselves."""
    away = weight.double() - found.b[:, :r].double() @ found.a[:r].double()
    return float((x @ away.T).square().sum(1).mean())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), out=st.integers(1, 12), into=st.integers(1, 12))
def test_whitened_factors_leave_out_the_least_at_every_rank(seed: int, out: int, into: int) -> None:
    weight, moments, x = layer(seed, out, into)
    found = {method: factors(weight, moments, method) for method in METHODS}
    total = float((x @ weight.double().T).square().sum(1).mean())
    best = np.linalg.svd(weight.double().numpy() @ np.real(sqrtm(moments.inputs.numpy())), compute_uv=False) ** 2
    for r in range(1, min(out, into) + 1):
        whitened = left_out(weight, found["whitened"], x, r)
        assert whitened == pytest.approx(best[r:].sum(), rel=1e-3, abs=1e-5 * total)
        for other in METHODS:
            assert whitened <= left_out(weight, found[other], x, r) + 1e-5 * total


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), out=st.integers(1, 12), into=st.integers(1, 12), directions=st.integers(1, 12), method=st.sampled_from(METHODS))
def test_full_rank_is_the_weight_whatever_the_inputs(seed: int, out: int, into: int, directions: int, method: Method) -> None:
    weight, moments, _ = layer(seed, out, into, min(directions, into))
    found = factors(weight, moments, method)
    assert found.b.shape == (out, min(out, into)) and found.a.shape == (min(out, into), into)
    torch.testing.assert_close(found.b @ found.a, weight, rtol=0, atol=2e-4 * float(weight.abs().max()))
    assert bool((found.spectrum[:-1] >= found.spectrum[1:]).all()) and bool((found.spectrum >= 0).all())


def test_inputs_that_do_not_fill_their_space_have_no_cholesky_factor_and_are_decomposed_all_the_same() -> None:
    weight, moments, x = layer(3, 10, 12, directions=4)
    assert int(torch.linalg.cholesky_ex(moments.inputs)[1]) > 0
    whitened, plain = factors(weight, moments, "whitened"), factors(weight, moments, "svd")
    total = left_out(weight, whitened, x, 0)
    assert left_out(weight, whitened, x, 4) < 1e-6 * total < left_out(weight, plain, x, 4), "four directions of input need four parts"


def test_a_gain_may_be_counted_to_the_weight_or_to_the_input() -> None:
    weight, moments, x = layer(4, 9, 12)
    gain = torch.linspace(0.1, 3, 12, dtype=torch.float64)
    folded, outside = (weight.double() * gain).float(), Moments(*(moments.inputs / gain.outer(gain), moments.absolute / gain, moments.gradients))
    for method, same in (("whitened", True), ("fisher", True), ("svd", False), ("asvd", False)):
        one, other = factors(weight, moments, method), factors(folded, outside, method)  # type: ignore[arg-type]
        difference = (one.b[:, :3] @ one.a[:3]) * gain.float() - other.b[:, :3] @ other.a[:3]
        assert (float(difference.abs().max()) < 1e-3) == same, method


def test_fisher_leaves_out_what_predictions_feel_least() -> None:
    weight, moments, _ = layer(5, 10, 12)

    def felt(found: Factors, r: int) -> float:
        away = weight.double() - found.b[:, :r].double() @ found.a[:r].double()
        return float((moments.gradients @ away @ moments.inputs @ away.T).trace())

    found = {method: factors(weight, moments, method) for method in METHODS}
    for r in range(1, 10):
        assert felt(found["fisher"], r) == pytest.approx(float(found["fisher"].spectrum[r:].sum()), rel=2e-2, abs=1e-6)
        assert all(felt(found["fisher"], r) < felt(found[other], r) for other in METHODS if other != "fisher")


def test_spectra_of_all_methods_sum_to_what_is_at_stake() -> None:
    weight, moments, x = layer(6, 8, 12)
    outputs = left_out(weight, factors(weight, moments, "svd"), x, 0)
    for method in ("svd", "asvd", "whitened"):
        total = float(factors(weight, moments, method).spectrum.sum())  # type: ignore[arg-type]
        assert total == pytest.approx(outputs * float(moments.gradients.trace()) / 8, rel=1e-4)


# --- moments of a real model ---


@pytest.fixture(scope="module")
def folder(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    build(tiny).save_pretrained(path)
    tokenizer.save(path, 64)
    return path


SKILLS = {"add": 1.0, "sort": 1.0}


def test_moments_are_those_of_what_the_first_layer_reads(folder: Path, small: None) -> None:
    model, (batch, *_) = load(folder), list(up_to(skill_source(SKILLS, 1), 2000, start=0))
    found = measure(model, [batch])
    assert set(found) == {
        f"model.layers.0.{name}_proj" for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    }
    assert not any(p.requires_grad for p in model.parameters()) and not layers(model)["model.layers.0.mlp.up_proj"]._forward_hooks
    inner = model.whole.model
    with torch.no_grad():
        x = inner.layers[0].input_layernorm(inner.embed_tokens(batch.ids))
    rows = [x[i, : int((batch.ids[i] != tokenizer.PAD).sum())] for i in range(len(x))]  # the last token of a question is never an input
    x = torch.cat(rows).double()
    assert len(x) == int(is_text(batch).sum()) < batch.ids.numel()
    for name in ("q", "k", "v"):
        one = found[f"model.layers.0.self_attn.{name}_proj"]
        torch.testing.assert_close(one.inputs, x.T @ x / len(x), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.absolute, x.abs().mean(0), rtol=1e-4, atol=1e-6)
    assert found["model.layers.0.mlp.down_proj"].inputs.shape == (64, 64)


def test_gradients_are_those_of_the_predictions(folder: Path) -> None:
    """Over many draws they come to the sum over the vocabulary of p(token) * g g', g the gradient of that token's -log p."""
    model, one = load(folder), (tokenizer.prompt_ids("1+2=") + [9, 2], 6)
    batch = collate([one])
    model.whole.lm_head.weight.data *= 5  # a model that has an opinion
    name = "model.layers.0.mlp.down_proj"
    found = measure(model, [collate([one] * 64)] * 40, seed=3)[name].gradients

    hidden: list[torch.Tensor] = []
    hook = layers(model)[name].register_forward_hook(lambda module, inputs, output: hidden.append(output.requires_grad_(True)))
    said = model.head(model(batch.ids)[0][batch.targets >= 0]).log_softmax(-1)  # [targets, vocab]
    hook.remove()
    exact = torch.zeros_like(found)
    for row in said:
        for logp in row:
            (g,) = torch.autograd.grad(-logp, hidden[0], retain_graph=True)
            exact += float(logp.detach().exp()) * (g[0].T @ g[0]).double()
    exact /= int(is_text(batch).sum())
    assert float((found - exact).norm()) < 0.15 * float(exact.norm())


@pytest.mark.parametrize("method", METHODS)
def test_a_decomposed_model_is_read_back_as_the_original(method: Method, folder: Path, small: None, tmp_path: Path) -> None:
    model = load(folder)
    found = decompose(model, measure(model, up_to(skill_source(SKILLS, 1), 2000)), method)
    save(folder, tmp_path, found, {"method": method})
    tokens = torch.randint(7, 90, (2, 20))
    torch.testing.assert_close(Decoder.load(tmp_path).logits(tokens), Decoder.load(folder).logits(tokens), rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["rank"] == {"method": method} and (tmp_path / "tokenizer.json").exists()
    with pytest.raises(UserError, match="is decomposed already"):
        load(tmp_path)


def test_branches_are_decomposed_too(tiny: Recipe, small: None, tmp_path: Path) -> None:
    model: Any = build(tiny.model_copy(update={"size": tiny.size.model_copy(update={"layers": 3})}))
    add_branches(model, [1, 2])
    torch.nn.init.normal_(model.model.eelayers[0].mlp.up_proj.weight)
    model.save_pretrained(tmp_path / "family")
    loaded = load(tmp_path / "family")
    found = measure(loaded, up_to(skill_source(SKILLS, 1), 2000))
    assert len(found) == 28 and float(found["model.eelayers.0.self_attn.q_proj"].gradients.trace()) > 0
    same = found["model.eelayers.0.self_attn.q_proj"].inputs, found["model.layers.1.self_attn.q_proj"].inputs
    torch.testing.assert_close(*same)  # a branch's block and the layer beside it read the same, as their norms are still alike
    save(tmp_path / "family", tmp_path / "out", decompose(loaded, found, "whitened"), {})
    assert "model.eelayers.0.mlp.up_proj" in linears(tmp_path / "out") and len(linears(tmp_path / "out")) == 28
    tokens = torch.randint(7, 90, (2, 20))
    for e in (1, 2):
        logits = [Decoder.load(tmp_path / name).logits(tokens, e) for name in ("family", "out")]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    tokenizer.save(tmp_path / "out", 64)
    saved = {}
    for e, blocks in ((1, ("layers.0.", "eelayers.0.")), (2, ("layers.0.", "layers.1.", "layers.2."))):
        info, shapes = model_info(tmp_path / "out", keep=0.5), linears(tmp_path / "out")
        saved[e] = at_exit(info, tmp_path / "out", e).shape.block_params - at_exit(info, tmp_path / "out", e, 0.5).shape.block_params
        of = [one for name, one in shapes.items() if name.startswith(tuple(f"model.{block}" for block in blocks))]
        assert saved[e] == sum(one.dense - one.rank(0.5) * one.part for one in of) and len(of) == 7 * len(blocks)
    assert 0 < saved[1] < saved[2]


def test_what_cannot_be_decomposed_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2, "early_exit_points": [0, 1]}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="family with several heads; decompose one of its exits: aiflow family export"):
        load(tmp_path)
    with pytest.raises(UserError, match="no text to measure"):
        measure(load(folder), [])


# --- what is read ---


def test_a_text_is_read_up_to_so_many_tokens(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(97 + i % 26) for i in range(1000)))
    source = text_source(file, folder, seed=1, batch=4, length=50)
    batch = next(iter(source.chunk(0)))
    assert batch.ids.shape == (4, 49) and torch.equal(batch.targets[:, :-1], batch.ids[:, 1:]) and bool(is_text(batch).all())
    assert 2500 <= sum(b.tokens for b in up_to(source, 2500)) < 2500 + 4 * 50


def test_a_model_without_a_recipe_needs_a_text(folder: Path) -> None:
    with pytest.raises(UserError, match="no recipe.yaml that names skills in our own tokens; give it a text: --text FILE"):
        source_of(folder, None, 0)
    assert measuring.LAYER.fullmatch("model.eelayers.3.mlp.up_proj") and not measuring.LAYER.fullmatch("model.layers.3.self_attn.q_norm")
