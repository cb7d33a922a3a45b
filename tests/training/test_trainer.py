from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aiflow_agents.errors import UserError
from aiflow_agents.models.family import Family
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Request, Turn
from aiflow_agents.skills.splits import Question, stream
from aiflow_agents.training import corpus
from aiflow_agents.training import loop as module
from aiflow_agents.training.branches import exit_states, travel_noise
from aiflow_agents.training.corpus import Heard
from aiflow_agents.training.loop import Progress
from aiflow_agents.training.recipe import Recipe
from aiflow_agents.training.tokenizer import prompt_ids
from aiflow_agents.training.trainer import Trainer
from tests.training.conftest import same


class Killed(BaseException):
    """What nothing catches, as a kill would be."""


def pool() -> list[Heard]:
    questions: Iterator[Question] = stream({"add": 1, "sort": 1}, "train", 9)
    return [Heard(question, {"ada": question.answer, "bob": "7"}) for question, _ in zip(questions, range(20), strict=False)]


@pytest.fixture(autouse=True)
def _small(small: None) -> None:
    """Small chunks everywhere in this file."""


@pytest.fixture(scope="module")
def straight(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Trained without a stop."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(corpus, "CHUNK", 64)
        trainer = Trainer(tiny, tmp_path_factory.mktemp("straight"))
        trainer.pool = pool()
        trainer.run()
    return trainer


def test_a_phase_with_a_horizon_is_the_beginning_of_a_longer_one(tiny: Recipe, tmp_path: Path) -> None:
    """Weight by weight the same as the longer one at that chunk; and shorter without it is something else."""
    first = tiny.phases[0]
    ends: list[dict[str, torch.Tensor]] = []
    for tokens, horizon in ((4800, None), (1500, 4800), (1500, None)):
        phase = first.model_copy(update={"tokens": tokens, "horizon": horizon})
        trainer = Trainer(tiny, tmp_path / f"{tokens}-{horizon}", phases=[phase])
        weights: list[dict[str, torch.Tensor]] = []
        trainer.run(lambda at, trainer=trainer, weights=weights: weights.append({k: v.clone() for k, v in trainer.model.state_dict().items()}))  # type: ignore[misc]
        ends.append(weights[1])
        assert tokens == 4800 or len(weights) == 2
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def killing(at: int, seen: list[Progress]) -> Any:
    def progress(now: Progress) -> None:
        seen.append(now)
        if len(seen) % at == 0:
            raise Killed

    return progress


def test_killed_again_and_again_it_ends_where_it_would_have(straight: Trainer, tiny: Recipe, tmp_path: Path) -> None:
    seen: list[Progress] = []
    starts = []
    while True:
        trainer = Trainer(tiny, tmp_path / "killed")
        trainer.resume()
        starts.append((trainer.state["phase"], trainer.state["chunk"], len(trainer._tensors())))
        try:
            trainer.pool = pool()
            trainer.run(killing(3, seen), checkpoint_s=-1)
            break
        except Killed:
            continue
    assert len({start[:2] for start in starts if start[1]}) >= 3  # it did resume in the middle of both phases
    assert {start[0] for start in starts if start[1]} == {0, 1}
    assert all(count > 20 for _, at, count in starts if at)  # with its optimizers
    assert same(trainer, straight)


def test_the_optimizers_are_resumed_too(tiny: Recipe, tmp_path: Path) -> None:
    a = Trainer(tiny, tmp_path)
    with pytest.raises(Killed):
        a.run(progress=killing(3, []), checkpoint_s=-1)  # killed after chunk 3, saved after chunk 2
    b, c = Trainer(tiny, tmp_path), Trainer(tiny, tmp_path)
    assert b.resume() and c.resume()
    assert b.state["chunk"] == 2
    for trainer in (b, c):
        if trainer is c:  # the same without what the optimizers hold ends elsewhere, so the comparison sees them
            for optimizer in c.optimizers.values():
                optimizer.state.clear()
        with pytest.raises(Killed):
            trainer.run(progress=killing(1, []))
    assert same(a, b)
    assert not same(b, c)


@pytest.mark.parametrize("step", range(6))
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(
    straight: Trainer, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed before and after each thing that saving does, in its second checkpoint and when it saves the same state again."""
    torn = Trainer(tiny, tmp_path / "torn")
    with pytest.raises(Killed):
        torn.run(progress=killing(2, []), checkpoint_s=-1)  # one checkpoint is there
    count = 0

    def dying(real: Any, leaves_half: bool = False) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count > step:
                if leaves_half:
                    Path(args[1]).write_bytes(b"half")
                raise Killed
            return real(*args, **more)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(module, "save_file", dying(save_file, leaves_half=True))
        patched.setattr(Path, "replace", dying(Path.replace))
        patched.setattr(Path, "write_text", dying(Path.write_text))
        patched.setattr(Path, "unlink", dying(Path.unlink))
        try:
            torn.save_checkpoint()
            torn.save_checkpoint()
        except Killed:
            pass
    again = Trainer(tiny, tmp_path / "torn")
    assert again.resume()
    again.pool = pool()
    again.run()
    assert same(again, straight)
    assert sorted(file.name for file in again.checkpoint.iterdir()) == ["state.json", "tensors-2-0.safetensors"]


def test_ctrl_c_goes_back_to_a_whole_chunk(straight: Trainer, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, real = 0, Trainer._step

    def pressed(self: Trainer, *args: Any) -> None:
        nonlocal steps
        real(self, *args)
        steps += 1
        if steps == 4:  # the last of chunk 2
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_step", pressed)
    trainer = Trainer(tiny, tmp_path / "pressed")
    with pytest.raises(KeyboardInterrupt):
        trainer.pool = pool()
        trainer.run()
    again = Trainer(tiny, tmp_path / "pressed")
    assert again.resume() and again.state["chunk"] == 1
    assert same(trainer, again)
    trainer.pool = pool()
    trainer.run()  # also without leaving the process
    assert same(trainer, straight)


def test_until_stops_between_phases(straight: Trainer, tiny: Recipe, tmp_path: Path) -> None:
    trainer = Trainer(tiny, tmp_path / "two")
    trainer.run(until=1)
    assert trainer.state["phase"] == 1
    with pytest.raises(UserError, match="needs the answers of ada, bob"):
        trainer.run()
    trainer = Trainer(tiny, tmp_path / "two")
    assert trainer.resume()
    trainer.pool = pool()
    trainer.run()
    assert same(trainer, straight)


def test_a_checkpoint_of_another_recipe_is_refused_by_what_differs(tiny: Recipe, tmp_path: Path) -> None:
    Trainer(tiny, tmp_path).run(until=1)
    for change, says in (
        ({"seed": 6}, "differs in seed"),
        ({"size": tiny.size.model_copy(update={"width": 48}), "seed": 6}, "seed, size"),
        ({"phases": (tiny.phases[0].model_copy(update={"lr": 0.5}), tiny.phases[1])}, "differs in phases"),
        ({"phases": tiny.scaled(100).phases}, "differs in phases"),
    ):
        with pytest.raises(UserError, match=says):
            Trainer(tiny.model_copy(update=change), tmp_path).resume()
    later = (tiny.phases[0], tiny.phases[1].model_copy(update={"tokens": 99}))
    for fine in ({"description": "Other words."}, {"phases": later}):  # what is yet to come may change
        assert Trainer(tiny.model_copy(update=fine), tmp_path).resume()


def test_a_checkpoint_that_does_not_name_its_phases_is_taken(tiny: Recipe, tmp_path: Path) -> None:
    Trainer(tiny, tmp_path).run(until=1)
    file = tmp_path / "checkpoint" / "tensors-1-0.safetensors"
    save_file(load_file(file), file)
    assert Trainer(tiny, tmp_path).resume()


@pytest.mark.parametrize("name", ["state.json", "tensors-1-0.safetensors"])
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_broken_checkpoint_is_one_line(tiny: Recipe, tmp_path: Path, name: str, harm: str) -> None:
    Trainer(tiny, tmp_path).run(until=1)
    file = tmp_path / "checkpoint" / name
    whole = file.read_bytes()
    file.unlink()
    if harm == "cut":
        file.write_bytes(whole[:20])
    if (name, harm) == ("state.json", "gone"):
        assert not Trainer(tiny, tmp_path).resume()
        return
    with pytest.raises(UserError, match="cannot be read .*--no-resume"):
        Trainer(tiny, tmp_path).resume()


def test_training_learns(tiny: Recipe, tmp_path: Path) -> None:
    phase = tiny.phases[0].model_copy(update={"tokens": 25_000, "lr": 0.03})
    trainer = Trainer(tiny.model_copy(update={"skills": {"sort": 1.0}, "phases": (phase,)}), tmp_path)
    losses: list[float] = []
    trainer.run(progress=lambda now: losses.append(now.loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_what_is_exported_loads_unmodified_and_our_engine_agrees(tiny: Recipe, tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = Trainer(tiny.model_copy(update={"architecture": architecture}), tmp_path)
    with torch.no_grad():  # far from the start, so that answers are decided and differ
        for name, parameter in trainer.model.named_parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 or "embed" in name else 0.0, 0.5)
    folder = tmp_path / "model"
    trainer.export(folder)
    assert not [file for file in folder.iterdir() if not stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH]
    assert not list(folder.glob(".export-*"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert theirs.config.model_type == architecture
    for (name, a), b in zip(trainer.model.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.bfloat16().float(), b), name

    ours = FamilyModel.load(folder)
    turns = [(Turn("user", f"{i}+{3 * i}="), *(Turn("user", str(k), name) for name, k in (("bob", i), ("eve", 4 * i))[: i % 3])) for i in range(12)]
    replies = ours.generate([Request(turn, max_tokens=8) for turn in turns])
    for turn, reply in zip(turns, replies, strict=True):
        chat = [{"role": t.role, "content": t.content, **({"name": t.name} if t.name else {})} for t in turn]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert prompt["input_ids"][0].tolist() == prompt_ids(turn[0].content, tuple((str(t.name), t.content) for t in turn[1:]))
        made = theirs.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(made, skip_special_tokens=True) == reply.text  # type: ignore[union-attr]
    assert len({reply.text for reply in replies}) > 3  # type: ignore[union-attr]


def test_state_is_plain_json(straight: Trainer) -> None:
    state = json.loads((straight.checkpoint / "state.json").read_text())
    assert state["total_tokens"] == straight.state["total_tokens"] > 9600
    assert "phases" not in state["recipe"]


def test_noise_of_travel_leaves_half_of_the_rows_and_stays_below_its_most() -> None:
    states = 7 * torch.randn(4000, 3, 16, generator=torch.Generator().manual_seed(1))
    noisy = travel_noise(states, 0.25, torch.Generator().manual_seed(2))
    deviations = (noisy - states).flatten(1).std(1) / states.std()
    assert 0.45 < float((deviations == 0).float().mean()) < 0.55
    assert 0.22 < float(deviations.max()) < 0.25 * 1.4  # 48 numbers a row: its deviation is known to some 10 %
    assert torch.equal(noisy, travel_noise(states, 0.25, torch.Generator().manual_seed(2)))


def test_what_is_disturbed_is_what_deeper_exits_read(tiny: Recipe, tmp_path: Path) -> None:
    """The exit's own block reads the states as they are; those behind it read them disturbed."""
    model = Trainer(Recipe.model_validate(tiny.model_dump() | {"size": tiny.size.model_dump() | {"layers": 3}, "exits": {1: 1, 2: 1}}), tmp_path).model
    ids = torch.arange(12).reshape(2, 6)
    plain, disturbed = exit_states(model, ids, (1, 2)), exit_states(model, ids, (1, 2), lambda hidden: 0 * hidden)
    assert torch.equal(plain[1], disturbed[1])
    assert not torch.allclose(plain[2], disturbed[2])


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_family_is_trained_at_every_exit_resumed_and_exported(noise: float, tiny: Recipe, tmp_path: Path) -> None:
    """Every exit's loss falls, a kill changes nothing, and the exported family computes what was trained."""
    phase = {"kind": "answer", "tokens": 24_000, "lr": 0.02, "batch": 32}
    shape = {"name": "fam", "size": tiny.size.model_dump() | {"layers": 3}, "exits": {0: 0.5, 2: 1.0}, "travel_noise": noise, "phases": [phase]}
    recipe = Recipe.model_validate(tiny.model_dump() | shape)
    batch = next(corpus.chunk(recipe.skills, 99, 0, 64))

    def losses(trainer: Trainer) -> list[float]:
        where, states = batch.targets >= 0, exit_states(trainer.model, batch.ids, (0, 2))
        with torch.no_grad():
            return [float(torch.nn.functional.cross_entropy(trainer.model.lm_head(states[e][where]), batch.targets[where])) for e in (0, 2)]

    fresh = losses(Trainer(recipe, tmp_path / "fresh"))
    whole, killed = Trainer(recipe, tmp_path / "whole"), Trainer(recipe, tmp_path / "killed")
    whole.run()
    with pytest.raises(Killed):
        killed.run(progress=killing(3, []), checkpoint_s=-1)
    killed = Trainer(recipe, tmp_path / "killed")
    assert killed.resume() and killed.state["chunk"] > 0
    killed.run()
    assert same(whole, killed)
    assert all(after < 0.8 * before for after, before in zip(losses(whole), fresh, strict=True))

    whole.export(tmp_path / "out")
    family, ids = Family.load(tmp_path / "out"), batch.ids[:4]
    states = exit_states(whole.model, ids, (0, 2))
    assert family.exits == (0, 2)
    for e in family.exits:
        ours, trained = family.logits(ids, exit=e), whole.model.lm_head(states[e]).detach()
        assert (ours - trained).abs().max() < 0.05 * trained.abs().max()  # weights were rounded to bfloat16 once
