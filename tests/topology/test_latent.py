"""Thoughts as hidden states. The oracle feeds each whole sequence of inputs through all layers anew, without caches, batches, frames or agents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aiflow_agents.errors import UnknownName, UnmetNeed
from aiflow_agents.models.family.decoder import Decoder
from aiflow_agents.models.family.engine import Engine
from aiflow_agents.models.family.resume import hidden_states, think
from aiflow_agents.models.protocol import CallError, Pass, Request, Turn, Want
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology
from aiflow_agents.training import tokenizer
from tests.conftest import exits_team, make_family, run_in_order

QUESTIONS = ("1+1=", "22+9=", "sort: hgfedcba", "7", "9999*3=" * 3)
PROMPTS = [tokenizer.prompt_ids(question) for question in QUESTIONS]
LAYERS, EXITS, ROOM = 6, (1, 3, 5), 5


@pytest.fixture(scope="module")
def shrub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("agents") / "models" / "shrub", seed=4, layers=LAYERS, exits=EXITS)


@pytest.fixture
def team(shrub: Path, tmp_path: Path) -> Team:
    return exits_team(shrub, tmp_path, max_tokens=ROOM)


def latent(**parameters: Any) -> Any:
    return load_topology("latent", {"codec": "float32", **parameters})


def run(team: Team, topology: Any, questions: Any = QUESTIONS, sessions: Any = None, hosts: Any = None) -> list[Any]:
    return run_in_order([Job("x", topology, Task(q, q), team) for q in questions], hosts, sessions=sessions)


def seen(results: list[Any]) -> list[Any]:
    return [(result.answer, result.confidence, result.usage) for result in results]


def inputs(decoder: Decoder, prompt: list[int], steps: int, exit: int) -> Any:
    """Embedded prompt and thoughts, [1, positions, width]."""
    hidden = decoder.embed(torch.tensor([prompt]))
    for _ in range(steps):
        out = decoder.over(hidden, decoder.config.path(exit))[:, -1]
        gain, head = decoder.ends[exit]
        normed = out / (out.pow(2).mean(-1, keepdim=True) + decoder.config.norm_eps).sqrt() * gain / decoder.config.width**0.5
        mapped = torch.linalg.lstsq(head.double(), decoder.embedding.double(), driver="gelsd").solution.T @ normed[0].double()
        mapped *= decoder.embedding.norm(dim=-1).mean() / mapped.norm()
        hidden = torch.cat((hidden, mapped.float()[None, None]), 1)
    return hidden


def oracle(decoder: Decoder, prompt: list[int], steps: int, thinking: int, speaking: int) -> str:
    hidden, said = inputs(decoder, prompt, steps, thinking), []
    while len(said) < ROOM and tokenizer.EOS not in said:
        out = decoder.head(decoder.over(hidden, decoder.config.path(speaking)), speaking)
        said.append(int(out[0, -1].argmax()))
        hidden = torch.cat((hidden, decoder.embed(torch.tensor([said[-1:]]))), 1)
    return tokenizer.build().decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize(("thinker", "speaker", "layer", "steps"), [("leaf", "trunk", None, 3), ("bough", "trunk", 2, 17), ("bough", "bough", 3, 1), ("leaf", "bough", 0, 2)])
@torch.inference_mode()
def test_the_speaker_goes_on_from_question_and_thoughts(team: Team, shrub: Path, thinker: str, speaker: str, layer: int | None, steps: int) -> None:
    decoder, exits = Decoder.load(shrub), dict(zip(("leaf", "bough", "trunk"), EXITS, strict=True))
    results = run(team, latent(thinker=thinker, speaker=speaker, layer=layer, steps=steps))
    assert [result.answer for result in results] == [oracle(decoder, prompt, steps, exits[thinker], exits[speaker]) for prompt in PROMPTS]
    assert seen(results) != seen(run(team, latent(thinker=thinker, speaker=speaker, layer=layer, steps=0)))


@torch.inference_mode()
def test_states_are_those_of_the_oracle(shrub: Path) -> None:
    decoder = Decoder.load(shrub)
    for (states, lower), prompt in zip(think(Engine(decoder, [tokenizer.EOS]), PROMPTS, 2, 5, 3), PROMPTS, strict=True):
        hidden = inputs(decoder, prompt, 5, 3)
        torch.testing.assert_close(states, decoder.over(hidden, range(2))[0], rtol=1e-3, atol=1e-3)
        assert lower is not None and lower.keys.shape == (2, 1, len(prompt) + 5, decoder.config.kv_heads, decoder.config.head_dim)
    ((plain, kv),) = hidden_states(decoder, PROMPTS[:1], 2, lower=True)
    ((states, lower),) = think(Engine(decoder, [tokenizer.EOS]), PROMPTS[:1], 2, 1, 3)
    torch.testing.assert_close(states[:-1], plain, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(lower or (), kv or (), strict=True):
        torch.testing.assert_close(mine[:, :, :-1], theirs, rtol=1e-4, atol=1e-5)


def test_no_steps_are_a_relay(team: Team) -> None:
    for more in ({}, {"placebo": "zeros"}, {"placebo": "noise"}):
        assert seen(run(team, latent(steps=0, **more))) == seen(run(team, load_topology("feature-relay", {"codec": "float32", **more})))
    whole = run(team, load_topology("single", {"member": "trunk"}))
    assert [result.answer for result in run(team, latent(steps=0))] == [result.answer for result in whole]


def test_thoughts_do_not_depend_on_the_batch(team: Team, shrub: Path) -> None:
    """To the last bit: padding stands between a short prompt and its thoughts, and is never read."""
    engine = Engine(Decoder.load(shrub), [tokenizer.EOS])
    together = think(engine, PROMPTS * 5, 3, 4, 3)
    for i, prompt in enumerate(PROMPTS):
        for (hidden, lower) in (together[i], together[i + 10]):
            ((own, kv),) = think(engine, [prompt], 3, 4, 3)
            assert torch.equal(hidden, own) and torch.equal(lower.keys, kv.keys) and torch.equal(lower.values, kv.values)  # type: ignore[union-attr]
    results, sessions = run(team, latent(steps=4)), {}
    assert seen(results) == [one for question in QUESTIONS for one in seen(run(team, latent(steps=4), [question], sessions))]


def test_placebos_carry_as_much_and_say_nothing(team: Team) -> None:
    results = run(team, latent(steps=2, speaker="bough"))
    for placebo in ("zeros", "noise"):
        control = run(team, latent(steps=2, speaker="bough", placebo=placebo))
        assert [r.answer for r in control] != [r.answer for r in results]
        assert [r.usage.wire_bytes for r in control] == pytest.approx([r.usage.wire_bytes for r in results], abs=12)  # but for the answer's length
    other = run(team, latent(steps=2, speaker="bough", placebo="other", others=(QUESTIONS[1], QUESTIONS[0])))
    assert other[2].answer in {results[0].answer, results[1].answer} and other[0].answer == results[1].answer
    assert latent(placebo="noise").control and not latent().control


def test_thinking_is_billed_and_what_it_leaves_is_sent(team: Team) -> None:
    none, some = (run(team, latent(steps=steps)) for steps in (0, 8))
    shape, speaks = team["leaf"].info.shape, team["trunk"].info.shape
    for prompt, a, b in zip(PROMPTS, none, some, strict=True):
        assert b.usage.wire_bytes - a.usage.wire_bytes >= 8 * 4 * 32 * 3 - 12  # a state, a key and a value of 32 numbers a step
        thinking = sum(shape.pass_flops(Pass(1.0, 1, len(prompt) + t, 0)) for t in range(8))
        assert b.usage.flops - a.usage.flops > thinking + 8 * speaks.block_params
        assert b.usage.tokens_in == a.usage.tokens_in


def test_what_cannot_be_is_said(team: Team, shrub: Path) -> None:
    from aiflow_agents.models.family.model import FamilyModel

    latent().check(team)
    with pytest.raises(UnknownName, match="did you mean leaf"):
        latent(thinker="laef").check(team)
    odd = replace(team["leaf"], info=replace(team["leaf"].info, weights_hash="other"))
    with pytest.raises(UnmetNeed, match="members of one family"):
        latent().check(replace(team, agents={**team.agents, "leaf": odd}))
    with pytest.raises(UnmetNeed, match="layer 2"):
        latent(layer=2).check(team)
    failed: list[Any] = []
    run_jobs([Job("x", latent(placebo="other"), Task("q", "q"), team)], InlineHosts(), Memory(), failed.append)
    assert "takes its other questions from a dev split" in failed[0].error
    request = Request((Turn("user", "q"),), 0, exit=3, want=Want(2, lower=True, steps=300))
    some = Want(2, lower=True, steps=3)
    changes: list[dict[str, Any]] = [{}, {"want": some._replace(lower=False)}, {"want": some, "max_tokens": 4}, {"want": some._replace(layer=4)}]
    replies = FamilyModel.load(shrub).generate([replace(request, **change) for change in changes])
    for reply, says in zip(replies, ("300 latent steps", "want lower=True", "max_tokens=0", "exit 3 has no input of layer 4"), strict=True):
        assert isinstance(reply, CallError) and says in reply.message


@pytest.mark.ray
def test_under_ray_it_is_the_same(team: Team, ray_hosts: Any) -> None:
    topology = latent(thinker="bough", speaker="trunk", layer=2, steps=3)
    assert seen(run(team, topology, hosts=ray_hosts)) == seen(run(team, topology))
    assert len(ray_hosts._bundles) == len(QUESTIONS)  # thoughts that went from host to host
