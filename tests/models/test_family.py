"""Families against transformers: every exit is the plain model that its export makes, and what is resumed equals what was never interrupted."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from aiflow_agents.errors import ConfigError, UserError
from aiflow_agents.models.family import Family
from aiflow_agents.models.family.config import DecoderConfig
from aiflow_agents.models.family.export import export_branch, sizes
from aiflow_agents.training.branches import exit_states

EXITS = (1, 3, 5)
FLOAT = 1e-5  # of random models whose logits are larger than 1: some 80 steps of float32
Make = Callable[..., tuple[Path, Any]]


def ids(rows: int = 3, positions: int = 14) -> torch.Tensor:
    return torch.randint(0, 64, (rows, positions), generator=torch.Generator().manual_seed(rows * positions))


@pytest.mark.parametrize(("kind", "tied"), [("qwen3", True), ("qwen3", False), ("qwen2", False), ("llama", True)])
def test_every_exit_is_the_plain_model_that_it_exports(grow: Make, tmp_path: Path, kind: str, tied: bool) -> None:
    folder, model = grow(kind, tie_word_embeddings=tied)
    family, tokens = Family.load(folder), ids()
    assert family.exits == EXITS
    states = exit_states(model, tokens, EXITS)
    for e in EXITS:
        plain = AutoModelForCausalLM.from_pretrained(export_branch(folder, e, tmp_path / str(e)))
        assert plain.config.num_hidden_layers == e + 1 and not hasattr(plain.config, "early_exit_points")
        with torch.no_grad():
            theirs, training = plain(tokens).logits, model.lm_head(states[e])
        ours = family.logits(tokens, exit=e)
        assert (ours - theirs).abs().max() < 1e-4 and (ours - training).abs().max() < 1e-4
    assert (family.logits(tokens, exit=1) - family.logits(tokens, exit=3)).abs().max() > 0.1


def test_the_folder_of_a_family_is_also_the_plain_backbone(family: tuple[Path, Any]) -> None:
    plain = AutoModelForCausalLM.from_pretrained(family[0])
    with torch.no_grad():
        assert (Family.load(family[0]).logits(ids()) - plain(ids()).logits).abs().max() < 1e-4


@pytest.mark.parametrize(("kind", "shared"), [("qwen2", True), ("qwen3", False)])
def test_published_ruyi_folders_are_read(grow: Make, tmp_path: Path, kind: str, shared: bool) -> None:
    """Their names: a norm at every exit, `lm_head.i` where heads are not shared, `ruyi_*` as model type."""
    folder, _ = grow(kind, tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["model.norms.2.weight"] = weights.pop("model.norm.weight")
    if not shared:
        head = weights.pop("lm_head.weight")
        weights |= {f"lm_head.{i}.weight": head * (i + 1) for i in range(3)}
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": f"ruyi_{kind}", "shared_heads": shared, "auto_map": {"AutoConfig": "x.Y"}}))
    ours, ruyi, tokens = Family.load(folder), Family.load(tmp_path), ids()
    for i, e in enumerate(EXITS):
        factor = 1 if shared else i + 1
        torch.testing.assert_close(ruyi.logits(tokens, exit=e), factor * ours.logits(tokens, exit=e))
        plain = AutoModelForCausalLM.from_pretrained(export_branch(tmp_path, e, tmp_path / f"out{e}"))
        with torch.no_grad():
            assert (plain(tokens).logits - ruyi.logits(tokens, exit=e)).abs().max() < 1e-4


def test_a_plain_checkpoint_is_a_family_with_one_exit(make_checkpoint: Make) -> None:
    folder, model = make_checkpoint("llama", num_hidden_layers=3)
    family = Family.load(folder)
    assert family.exits == (2,)
    with torch.no_grad():
        assert (family.logits(ids(), exit=2) - model(ids()).logits).abs().max() < 1e-4
        hidden = model(ids(), output_hidden_states=True).hidden_states
    for layer in range(3):
        assert (family.hidden(ids(), layer=layer) - hidden[layer]).abs().max() < 1e-4


def test_resumed_equals_monolithic_for_every_layer_and_exit(family: tuple[Path, Any]) -> None:
    loaded, tokens = Family.load(family[0]), ids()
    for e in EXITS:
        whole = loaded.logits(tokens, exit=e)
        for layer in range(e + 1):
            assert (loaded.resume(loaded.hidden(tokens, layer=layer), layer=layer, exit=e) - whole).abs().max() <= 1e-5


def changing(folder: Path, plan: list[tuple[int, int]], tokens: torch.Tensor) -> None:
    """Feed pieces at changing exits; each must give what that exit gives over the whole sequence so far."""
    loaded = Family.load(folder)
    session, at = loaded.session(len(tokens)), 0
    for new, e in plan:
        made = session.feed(tokens[:, at : at + new], exit=e)
        at += new
        torch.testing.assert_close(made, loaded.logits(tokens[:, :at], exit=e)[:, -new:], rtol=FLOAT, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(EXITS)), min_size=1, max_size=8), rows=st.integers(1, 2))
def test_the_exit_may_change_at_every_token(family: tuple[Path, Any], plan: list[tuple[int, int]], rows: int) -> None:
    changing(family[0], plan, ids(rows, sum(new for new, _ in plan)))


def test_a_cache_grows_beyond_its_first_room(family: tuple[Path, Any]) -> None:
    changing(family[0], [(60, 1), (3, 5), (70, 3), (1, 1), (2, 5)], ids(2, 136))


@settings(max_examples=30, deadline=None)
@given(
    layer=st.integers(0, 5), rows=st.integers(1, 2), how=st.sampled_from(["tokens", "lower", "both"]),
    plan=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(EXITS)), min_size=1, max_size=4),
)  # fmt: skip
def test_a_session_goes_on_elsewhere(family: tuple[Path, Any], layer: int, rows: int, how: str, plan: list[tuple[int, int]]) -> None:
    loaded, known = Family.load(family[0]), 6
    tokens = ids(rows, known + sum(new for new, _ in plan))
    first = loaded.session(rows)
    first.feed(tokens[:, :known], exit=1)
    hidden, lower = first.hidden(layer), first.lower(layer)
    second = Family.load(family[0]).session(rows)
    second.resume(
        hidden, layer=layer, token_ids=tokens[:, :known] if how != "lower" else None, lower=lower if how != "tokens" else None
    )
    at = known
    for new, e in plan:
        if e < layer and how == "lower":
            with pytest.raises(UserError, match="have not seen what was said"):
                second.feed(tokens[:, at : at + new], exit=e)
            return
        made = second.feed(tokens[:, at : at + new], exit=e)
        at += new
        torch.testing.assert_close(made, loaded.logits(tokens[:, :at], exit=e)[:, -new:], rtol=FLOAT, atol=1e-5)


def test_hidden_states_alone_answer_but_do_not_go_on(family: tuple[Path, Any]) -> None:
    loaded, tokens = Family.load(family[0]), ids()
    session = loaded.session(3)
    session.resume(loaded.hidden(tokens, layer=3), layer=3)
    torch.testing.assert_close(session.logits(exit=5), loaded.logits(tokens, exit=5), rtol=FLOAT, atol=1e-5)
    with pytest.raises(UserError, match="layers below 3 have not seen what was said"):
        session.append(tokens[:, :1])
    with pytest.raises(UserError, match="at its beginning"):
        session.resume(loaded.hidden(tokens, layer=3), layer=3)


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.sampled_from(EXITS)), min_size=1, max_size=6))
def test_what_is_taken_back_leaves_no_trace(family: tuple[Path, Any], steps: list[tuple[int, int, int]]) -> None:
    loaded = Family.load(family[0])
    session, told = loaded.session(), torch.zeros(1, 0, dtype=torch.long)
    for i, (new, back, e) in enumerate(steps):
        more = torch.randint(0, 64, (1, new), generator=torch.Generator().manual_seed(i))
        told = torch.cat((told, more), 1)
        torch.testing.assert_close(session.feed(more, exit=e), loaded.logits(told, exit=e)[:, -new:], rtol=FLOAT, atol=1e-5)
        told = told[:, : max(1, told.shape[1] - back)]
        session.truncate(told.shape[1])


def test_generation_changes_its_exit_in_mid_sentence(family: tuple[Path, Any]) -> None:
    """Oracle: the whole sequence run anew for every token."""
    loaded, prompt = Family.load(family[0]), ids(1, 5)
    plan = [1, 1, 5, 5, 1, 3, 3, 1, 5]
    session = loaded.session()
    session.append(prompt)
    made = session.generate(len(plan), exit=plan.__getitem__)[0]
    told, expected = prompt, []
    for e in plan:
        expected.append(int(loaded.logits(told, exit=e)[0, -1].argmax()))
        told = torch.cat((told, torch.tensor([[expected[-1]]])), 1)
    assert made == expected
    stopping = loaded.session()
    stopping.append(prompt)
    assert stopping.generate(9, exit=plan.__getitem__, stop=[expected[2]])[0] == expected[: expected.index(expected[2]) + 1]


def test_two_families_in_many_threads(family: tuple[Path, Any], grow: Make) -> None:
    """Nothing is global: exits of two families, asked by eight threads at once."""
    loaded = [Family.load(family[0]), Family.load(grow("llama", seed=3)[0])]
    jobs = [(one, e, ids(2, 9 + i)) for i in range(6) for one in loaded for e in EXITS]
    expected = [one.logits(tokens, exit=e) for one, e, tokens in jobs]
    found: dict[int, torch.Tensor] = {}

    def work(start: int) -> None:
        for i in range(start, len(jobs), 8):
            one, e, tokens = jobs[i]
            found[i] = one.logits(tokens, exit=e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(len(jobs)))


def test_mistakes_are_said(family: tuple[Path, Any], tmp_path: Path) -> None:
    loaded = Family.load(family[0])
    with pytest.raises(UserError, match="no exit 2; this model has 1, 3, 5"):
        loaded.logits(ids(), exit=2)
    with pytest.raises(UserError, match="no layer 6"):
        loaded.hidden(ids(), layer=6)
    with pytest.raises(UserError, match="exit 1 cannot go on from the input of layer 3"):
        loaded.resume(loaded.hidden(ids(), layer=3), layer=3, exit=1)
    export_branch(family[0], 3, tmp_path / "once")
    with pytest.raises(UserError, match="already holds a model"):
        export_branch(family[0], 3, tmp_path / "once")
    config = json.loads((family[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"early_exit_points": [3, 1, 5]}))
    with pytest.raises(ConfigError, match="early_exit_points"):
        DecoderConfig.read(tmp_path)


def test_sizes_are_those_of_the_exports(family: tuple[Path, Any], tmp_path: Path) -> None:
    for row in sizes(family[0]):
        plain = AutoModelForCausalLM.from_pretrained(export_branch(family[0], row["exit"], tmp_path / str(row["exit"])))
        assert row["parameters"] == sum(p.numel() for p in plain.parameters()) and row["blocks"] == plain.config.num_hidden_layers
        assert all(stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH for file in (tmp_path / str(row["exit"])).iterdir())
