"""Branches for models that are already there: what is frozen stays to the bit, what is trained learns, a kill changes nothing."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from aiflow_agents.errors import UserError
from aiflow_agents.models.family import Family
from aiflow_agents.models.family.config import DecoderConfig
from aiflow_agents.models.family.export import export_branch
from aiflow_agents.training import corpus, sources
from aiflow_agents.training.branches import exit_states
from aiflow_agents.training.grow import Grower, check_exits, load_base, tier_exits
from aiflow_agents.training.loop import Progress
from aiflow_agents.training.sources import Source, skill_source, skills_of, text_source
from tests.conftest import make_model
from tests.training.conftest import same

EXITS = (0, 1, 2)
SKILLS = {"add": 2.0, "sort": 1.0}
RECIPE = """\
name: bee
description: Knows nothing.
architecture: qwen3
tier: device
size: {width: 32, layers: 3, heads: 2, kv_heads: 2, head_dim: 16, mlp: 64}
seed: 0
skills: {add: 2, sort: 1}
phases: [{kind: answer, tokens: 100}]
"""


class Killed(BaseException):
    """What nothing catches, as a kill would be."""


@pytest.fixture(autouse=True)
def _small(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECES", 16)
    monkeypatch.setattr(sources, "HELD_QUESTIONS", 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three random layers of width 32 that speak our characters."""
    folder = make_model(tmp_path_factory.mktemp("base") / "bee", layers=3)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def grower(base: Path, work: Path, source: Source | None = None, **options: Any) -> Grower:
    source = source or skill_source(skills_of(base), seed=3, batch=16)
    return Grower(base, EXITS[:-1], source, work, **{"tokens": 6000, "lr": 0.02} | options)


@pytest.fixture(scope="module")
def grown(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Grower, dict[int, Any], Path]:
    """Trained without a stop, how it was before, and the folder of the family."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus, "CHUNK", 64)
        one = grower(base, tmp_path_factory.mktemp("grown"))
        before = one.measure()
        one.run()
        out = tmp_path_factory.mktemp("family")
        one.export(out)
    return one, before, out


# --- frozen ---


def test_a_frozen_backbone_stays_to_the_bit(base: Path, grown: tuple[Grower, Any, Path]) -> None:
    before, after = load_file(base / "model.safetensors"), load_file(grown[2] / "model.safetensors")
    assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items())
    new = {name for name in after if name not in before}
    assert {name.rsplit(".", 2)[0] for name in new if name.endswith("norms.0.weight")} == {"model.norms"}
    assert len(new) == 2 * sum(name.startswith("model.layers.0.") for name in before) + 2
    assert not any(torch.equal(after[f"model.eelayers.{i}.mlp.up_proj.weight"], before[f"model.layers.{i}.mlp.up_proj.weight"]) for i in (0, 1))
    assert not torch.equal(after["model.norms.0.weight"], before["model.norm.weight"])


def test_every_branch_comes_nearer_to_the_whole_model(grown: tuple[Grower, Any, Path]) -> None:
    one, before, _ = grown
    after = one.measure()
    for e in (0, 1):
        assert 0 < after[e].kl < 0.7 * before[e].kl and after[e].agreement > before[e].agreement
    assert after[2] == before[2] and after[2].kl == 0 and after[2].agreement == 1


def test_fit_is_what_the_family_itself_shows(base: Path, grown: tuple[Grower, Any, Path]) -> None:
    """Oracle: the written folder, read by the decoder, and sums over the vocabulary written out."""
    one, _, out = grown
    family, totals, count = Family.load(out), {e: [0.0, 0.0, 0.0] for e in EXITS}, 0
    for batch in one.source.held:
        p = {e: family.logits(batch.ids, exit=e).double().softmax(-1) for e in EXITS}
        for row, column in (batch.targets >= 0).nonzero().tolist():
            whole, right = p[2][row, column], int(batch.targets[row, column])
            count += 1
            for e in EXITS:
                said = p[e][row, column]
                totals[e][0] -= float(said[right].log())
                totals[e][1] += float((whole * (whole / said).log()).sum())
                totals[e][2] += int(said.argmax() == whole.argmax())
    for e, fit in one.measure().items():
        assert fit == pytest.approx([each / count for each in totals[e]], abs=2e-4)


def test_branches_begin_as_copies_of_what_they_stand_beside(base: Path) -> None:
    model = load_base(base, EXITS)
    for i in (0, 1):
        for ours, theirs in zip(model.model.eelayers[i].parameters(), model.model.layers[i].parameters(), strict=True):
            assert torch.equal(ours, theirs) and ours is not theirs
        assert torch.equal(model.model.norms[i].weight, model.model.norm.weight)


def test_the_family_is_also_the_plain_backbone_and_exports(base: Path, grown: tuple[Grower, Any, Path], tmp_path: Path) -> None:
    one, _, out = grown
    tokens = one.source.held[0].ids[:3]
    family, plain = Family.load(out), AutoModelForCausalLM.from_pretrained(out)
    assert family.exits == EXITS and (out / "tokenizer.json").exists() and skills_of(out) == SKILLS
    states = exit_states(one.model, tokens, EXITS)
    with torch.no_grad():
        assert (family.logits(tokens) - plain(tokens).logits).abs().max() < 1e-4
        for e in EXITS:
            exported = AutoModelForCausalLM.from_pretrained(export_branch(out, e, tmp_path / str(e)))
            assert (exported(tokens).logits - family.logits(tokens, exit=e)).abs().max() < 1e-4
            assert (one.model.lm_head(states[e]) - family.logits(tokens, exit=e)).abs().max() < 1e-4


def test_stored_dtypes_are_kept(base: Path, tmp_path: Path) -> None:
    """A checkpoint in bfloat16 with float32 norms gives branches of the same."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for joint in (False, True):
        grower(folder, tmp_path / f"work{joint}", joint=joint).export(tmp_path / f"out{joint}")
        made = load_file(tmp_path / f"out{joint}" / "model.safetensors")
        assert {name: tensor.dtype for name, tensor in made.items() if name in tensors} == {name: tensor.dtype for name, tensor in tensors.items()}
        for i in (0, 1):
            assert made[f"model.norms.{i}.weight"].dtype == made[f"model.eelayers.{i}.input_layernorm.weight"].dtype == torch.float32
            assert made[f"model.eelayers.{i}.mlp.up_proj.weight"].dtype == torch.bfloat16
        assert all(torch.equal(made[name], tensor) for name, tensor in tensors.items())  # untrained, so the same in both


# --- resumed ---


@pytest.mark.parametrize("joint", [False, True])
def test_killed_again_and_again_it_ends_where_it_would_have(base: Path, grown: tuple[Grower, Any, Path], tmp_path: Path, joint: bool) -> None:
    straight = grown[0]
    if joint:
        straight = grower(base, tmp_path / "straight", joint=True)
        straight.run()
    seen: list[Progress] = []

    def killing(now: Progress) -> None:
        seen.append(now)
        if len(seen) % 3 == 0:
            raise Killed

    starts = []
    while True:
        killed = grower(base, tmp_path / "killed", joint=joint)
        killed.resume()
        starts.append(killed.state["chunk"])
        try:
            killed.run(killing, checkpoint_s=-1)
            break
        except Killed:
            continue
    assert len({start for start in starts if start}) >= 2
    assert same(killed, straight)


def test_a_checkpoint_holds_the_branches_alone(base: Path, grown: tuple[Grower, Any, Path]) -> None:
    held = load_file(grown[0].checkpoint / "tensors-1-0.safetensors")
    assert held and all(name.startswith(("model.model.eelayers.", "model.model.norms.")) for name in held)


def test_a_checkpoint_of_another_growth_is_refused_by_what_differs(base: Path, tmp_path: Path) -> None:
    grower(base, tmp_path).save_checkpoint()
    assert grower(base, tmp_path).resume()
    for change, says in (
        ({"lr": 0.5}, "another growth of 'bee' \\(it differs in lr\\)"),
        ({"tokens": 7}, "differs in tokens"),
        ({"source": skill_source({"add": 1.0}, 3, 16)}, "differs in skills"),
        ({"source": skill_source(SKILLS, 4, 16)}, "differs in seed"),
    ):
        with pytest.raises(UserError, match=says):
            grower(base, tmp_path, **change).resume()
    other = make_model(tmp_path / "bee", seed=9, layers=3)
    with pytest.raises(UserError, match="differs in base"):
        grower(other, tmp_path, skill_source(SKILLS, 3, 16)).resume()


# --- joint ---


def test_joint_trains_everything_and_the_deeper_exits_weigh_more(base: Path, tmp_path: Path) -> None:
    one = grower(base, tmp_path, joint=True, decay=0.5)
    assert one.weights == {2: 1.0, 1: 0.5, 0: 0.25}
    batch = one.source.held[0]
    where, states = batch.targets >= 0, exit_states(one.model, batch.ids, EXITS)
    each = [float(torch.nn.functional.cross_entropy(one.model.lm_head(states[e][where]), batch.targets[where]).detach()) for e in EXITS]
    assert float(one._loss(batch).detach()) == pytest.approx((0.25 * each[0] + 0.5 * each[1] + each[2]) / 1.75, rel=1e-5)
    start = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    before = one.measure()
    one.run()
    assert not [name for name, p in one.model.named_parameters() if torch.equal(p, start[name])]
    after = one.measure()
    assert all(after[e].loss < before[e].loss for e in EXITS)
    one.export(tmp_path / "out")
    made, stored = load_file(tmp_path / "out" / "model.safetensors"), load_file(base / "model.safetensors")
    assert not [name for name in stored if torch.equal(made[name], stored[name])]


# --- text ---


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random Llama with a byte-pair tokenizer that sets <s> before a text, an untied head, in two files; and a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("reader") / "ryu"
    words = ["the", "river", "runs", "over", "old", "stones", "and", "then", "sleeps", "below", "a", "hill", "ünder"]
    drawn = random.Random(0)
    text = folder.parent / "text.txt"
    text.write_text(" ".join(drawn.choice(words) for _ in range(4000)), encoding="utf-8")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train([str(text)], trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder, text


def test_a_model_with_another_tokenizer_learns_from_a_text(reader: tuple[Path, Path], tmp_path: Path) -> None:
    folder, text = reader
    assert skills_of(folder) == {}
    one = grower(folder, tmp_path, text_source(text, folder, seed=1, batch=8, length=32), tokens=6000)
    before = one.measure()
    one.run()
    after = one.measure()
    assert all(after[e].kl < 0.7 * before[e].kl for e in (0, 1)) and after[2] == before[2]
    one.export(tmp_path / "out")
    stored = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" in stored and all(torch.equal(made[name], tensor) for name, tensor in stored.items())
    tokens, plain = one.source.held[0].ids, AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert (Family.load(tmp_path / "out").logits(tokens) - plain(tokens).logits).abs().max() < 1e-4


def test_a_text_is_cut_into_pieces_that_come_once_each(reader: tuple[Path, Path]) -> None:
    from transformers import PreTrainedTokenizerFast

    folder, text = reader
    source = text_source(text, folder, seed=1, batch=8, length=32)
    ids = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))(text.read_text(), add_special_tokens=False)["input_ids"]

    def pieces(batches: Any) -> list[tuple[int, ...]]:
        return [(int(row[0]), *(int(t) for t in targets if t >= 0)) for batch in batches for row, targets in zip(batch.ids, batch.targets, strict=True)]

    cut = [(1, *ids[at : at + 31]) for at in range(0, len(ids) - 1, 31)]
    held = pieces(source.held)
    epoch = -(-(len(cut) - len(held)) // 16)
    read = pieces(batch for index in range(epoch) for batch in source.chunk(index))[: len(cut) - len(held)]
    assert sorted(held + read) == sorted(cut) and len(held) == round(len(cut) / 20) > 3
    assert pieces(source.chunk(1)) == pieces(source.chunk(1)) != pieces(source.chunk(0))
    assert pieces(text_source(text, folder, seed=2, batch=8, length=32).chunk(0)) != pieces(source.chunk(0))


def test_texts_that_cannot_be_used(reader: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = reader
    for content, says in ((b"over", "has 2 tokens; it takes more than 31"), (b"\xff\xfe", "cannot be read"), (None, "cannot be read")):
        file = tmp_path / "text"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=says):
            text_source(file, folder, 0, length=32)
    (tmp_path / "text").write_text("the river runs")
    with pytest.raises(UserError, match="tokenizer.json cannot be read"):
        text_source(tmp_path / "text", tmp_path, 0)


def test_biases_grow_too(tmp_path: Path, reader: tuple[Path, Path]) -> None:
    """Qwen2 has biases, which a branch must take over."""
    torch.manual_seed(4)
    config = Qwen2Config(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_bytes((reader[0] / "tokenizer.json").read_bytes())
    one = Grower(tmp_path / "base", [0], text_source(reader[1], tmp_path / "base", 0, 8, 16), tmp_path / "work", tokens=500, lr=0.01)
    one.run()
    one.export(tmp_path / "out")
    tokens = one.source.held[0].ids[:2]
    with torch.no_grad():
        said = one.model.lm_head(exit_states(one.model, tokens, (0, 1))[0])
    assert (Family.load(tmp_path / "out").logits(tokens, exit=0) - said).abs().max() < 1e-4


# --- which exits, which models ---


def test_a_tier_gets_the_deepest_exit_that_fits(base: Path) -> None:
    config = DecoderConfig.read(base)
    model = load_base(base, EXITS)
    every = replace(config, exits=EXITS)
    counts = []
    for e in EXITS:
        plain = AutoModelForCausalLM.from_config(type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": e + 1, "layer_types": None}))
        counts.append(sum(p.numel() for p in plain.parameters()))
    assert every.exits == EXITS and counts == sorted(counts)
    for e, count in enumerate(counts):
        assert tier_exits(config, {"device": count}) == {"device": e}
        if e:
            assert tier_exits(config, {"device": count - 1}) == {"device": e - 1}
    assert tier_exits(config, {"device": counts[0], "edge": counts[1] + 5, "cloud": 10**9}) == {"device": 0, "edge": 1, "cloud": 2}
    with pytest.raises(UserError, match=f"nothing fits device={counts[0] - 1}: the smallest exit, 0, has {counts[0]:,} parameters"):
        tier_exits(config, {"device": counts[0] - 1})


def test_exits_that_cannot_be(base: Path) -> None:
    config = DecoderConfig.read(base)
    assert check_exits(config, [1]) == check_exits(config, [1, 2, 1]) == (1, 2)
    for exits, says in (([3], "no exit 3: this model has 3 layers, so an exit is a number from 0 to 2"), ([-1, 1], "no exit -1"), ([2], "already"), ([], "already")):
        with pytest.raises(UserError, match=says):
            check_exits(config, exits)


def test_models_that_cannot_be_grown(base: Path, grown: tuple[Grower, Any, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a family already, with the exits 0, 1, 2; make a plain model of one first: aiflow family export"):
        grower(grown[2], tmp_path)
    for name, spoil, says in (
        ("lacking", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"), "has no weight 'model.layers.1.mlp.up_proj.weight'"),
        ("bent", lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}), "other shapes than its config.json says"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in base.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        tensors = load_file(base / "model.safetensors")
        spoil(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=says):
            load_base(folder, EXITS)
    (folder / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | {"model_type": "ruyi_qwen3"}))
    with pytest.raises(UserError, match="family export"):
        load_base(folder, EXITS)
