"""Several models speak one answer. The oracle mixes the distributions that `Decoder.logits` gives for whole sequences, without engine, frames or agents."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiflow_agents.errors import UnknownName, UnmetNeed, UserError
from aiflow_agents.models.protocol import Pass, Request, Top, Turn
from aiflow_agents.runtime.hosts import InlineHosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology
from aiflow_agents.training import tokenizer
from aiflow_agents.wire.codecs import codec
from aiflow_agents.wire.frame import FrameError, decode_tokens, encode_tokens
from aiflow_agents.wire.payload import Logits
from tests.conftest import run_in_order

QUESTIONS = ("1+1=", "22+9=", "abc", "sort: hgf", "7", "9999*3=")
VOCAB = len(tokenizer.VOCABULARY)
ROOM = 6


@pytest.fixture
def team(models: list[Path], tmp_path: Path) -> Team:
    members = "\n".join(f"  {m.name}: {{model: {m}, tier: {t}, max_tokens: {ROOM}}}" for m, t in zip(models, ("device", "edge", "cloud"), strict=True))
    (tmp_path / "team.yaml").write_text(f"network: home-wifi\nmembers:\n{members}\n")
    return Team.load(tmp_path / "team.yaml")


def ensemble(**parameters: Any) -> Any:
    return load_topology("logit-ensemble", {"top": VOCAB, "codec": "float32", "gate": 1.0, **parameters})


def run(team: Team, topology: Any, hosts: Any = None, memory: Memory | None = None, questions: Any = QUESTIONS, traced: bool = False) -> list[Any]:
    return run_in_order([Job("x", topology, Task(q, q), team, traced=traced) for q in questions], hosts, memory)


def answers(results: list[Any]) -> list[str]:
    return [result.answer for result in results]


def oracle(models: list[Path], weights: list[float], gate: float, mean: str, k: int = VOCAB) -> list[str]:
    import torch

    from aiflow_agents.models.family.decoder import Decoder

    decoders, said = [Decoder.load(folder) for folder in models], []
    for question in QUESTIONS:
        ids: list[int] = []
        while len(ids) < ROOM and (not ids or ids[-1] != tokenizer.EOS):
            tokens = torch.tensor([[*tokenizer.prompt_ids(question), *ids]])
            p = np.stack([torch.softmax(d.logits(tokens)[0, -1].double(), -1).numpy() for d in decoders])
            if p[0].max() > gate:
                ids.append(int(p[0].argmax()))
                continue
            for row in p:
                rest = np.argsort(-row)[k:]
                row[rest] = row[rest].mean() if len(rest) else row[rest]
            w = np.array(weights)[:, None] / sum(weights)
            ids.append(int((w * (np.log(p) if mean == "logits" else p)).sum(0).argmax()))
        said.append(tokenizer.build().decode(ids, skip_special_tokens=True).strip())
    return said


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
@pytest.mark.parametrize(("gate", "weights", "k"), [(1.0, {}, VOCAB), (0.4, {}, VOCAB), (1.0, {"ant": 1.0, "bee": 3.0, "cat": 0.5}, 5)])
def test_the_mean_of_what_the_models_say_by_themselves(team: Team, models: list[Path], mean: str, gate: float, weights: Any, k: int) -> None:
    found = answers(run(team, ensemble(gate=gate, weights=weights, mean=mean, top=k)))
    assert found == oracle(models, list(weights.values()) or [1.0] * 3, gate, mean, k)
    assert found != answers(run(team, load_topology("single", {"member": "ant"})))


def test_who_is_never_asked_or_says_nothing_changes_nothing(team: Team) -> None:
    alone = run(team, load_topology("single", {"member": "ant"}))
    never = run(team, ensemble(gate=0.0, lead="ant"))
    assert [(r.answer, r.confidence, r.usage) for r in never] == [(r.answer, r.confidence, r.usage) for r in alone]
    for silent in ({"placebo": "uniform"}, {"weights": {"ant": 1.0}}):
        assert answers(run(team, ensemble(lead="ant", **silent))) == answers(alone)
    assert answers(run(team, ensemble(placebo="noise", lead="ant"))) != answers(run(team, ensemble(lead="ant")))
    assert answers(run(team, ensemble(placebo="other", others=QUESTIONS))) != answers(run(team, ensemble()))
    assert [ensemble(**p).control for p in ({}, {"placebo": "noise"}, {"placebo": "uniform"}, {"placebo": "other"})] == [False, True, True, True]
    failed: list[Any] = []
    run_jobs([Job("x", ensemble(placebo="other"), Task("q", "q"), team)], InlineHosts(), Memory(), failed.append)
    assert "takes its other questions from a dev split" in failed[0].error


def test_every_byte_is_on_the_bill(team: Team) -> None:
    """Tokens so far go out, k tokens with two bytes and one byte each come back, and the lead's own distribution goes nowhere."""
    results = run(team, ensemble(lead="ant", top=4, codec="float16"), traced=True)
    frame = len(codec("float16").encode(Logits.top(np.zeros((1, VOCAB), np.float32), 4)))
    assert 4 * 3 < frame <= 4 * 3 + 2 + 9 + 4
    for result in results:
        moves = [span for span in result.spans if span.kind == "move" and span.who != "user"]
        back = [span.nbytes - frame for span in moves if span.to == "phone"]
        out = [span.nbytes for span in moves if span.to != "phone"]
        rounds = len(back) // 2
        assert len(out) == 2 * (rounds - 1)  # before the first token there is nothing to send
        assert all(3 < size < 3 + 1 + 1 + 3 + 8 + 8 for size in back)  # a text frame without a text
        tokens = [len(encode_tokens(range(n))) for n in range(1, rounds) for _ in range(2)]
        assert sorted(size - coded for size, coded in zip(out, tokens, strict=True)) == pytest.approx([14] * len(out), abs=7)
        assert result.usage.wire_bytes >= sum(span.nbytes for span in result.spans if span.kind == "move")
    assert decode_tokens(encode_tokens([0, 5, 70_000])) == (0, 5, 70_000)
    for damaged in (b"", encode_tokens([1])[:-1], codec("float16").encode(Logits.top(np.zeros((1, 4), np.float32), 2))):
        with pytest.raises(FrameError):
            decode_tokens(damaged)


def test_nothing_is_read_twice(team: Team) -> None:
    """In all, every member has read the prompt and each token of the answer once, the last one but for the lead excepted: asked at every token."""
    shape = team["ant"].info.shape
    for question, result in zip(QUESTIONS, run(team, ensemble(), traced=True), strict=True):
        calls = [span for span in result.spans if span.kind == "call"]
        rounds = sum(span.who == "bee" for span in calls)
        prompt = len(tokenizer.prompt_ids(question))
        once = shape.pass_flops(Pass(1.0, prompt + rounds - 1, 0, rounds, rounds))
        assert result.usage.flops == pytest.approx(3 * once)
        assert result.usage.tokens_in == 3 * (prompt + rounds - 1)
        assert result.usage.calls == 3 * rounds


def test_remembered_and_asked_in_other_company_it_is_the_same(team: Team, tmp_path: Path) -> None:
    topology, outcomes = ensemble(gate=0.5), []
    for _ in range(2):
        with closing(Memory(tmp_path / "calls.sqlite")) as memory:
            outcomes.append([(r.answer, r.confidence, r.usage) for r in run(team, topology, memory=memory)])
            executed = memory.executed
    assert executed == 0
    outcomes.append([(r.answer, r.confidence, r.usage) for q in QUESTIONS for r in run(team, topology, questions=[q])])
    assert outcomes[0] == outcomes[1] == outcomes[2]  # to the last bit


@pytest.mark.ray
def test_under_ray_it_is_the_same(team: Team, ray_hosts: Any) -> None:
    inline, over_ray = (run(team, ensemble(gate=0.5), hosts) for hosts in (None, ray_hosts))
    assert [(r.answer, r.confidence, r.usage) for r in over_ray] == [(r.answer, r.confidence, r.usage) for r in inline]


@pytest.mark.ray
def test_under_ray_a_budget_is_kept_alike(team: Team, ray_hosts: Any) -> None:
    used = run(team, ensemble())[0].usage
    tight = ensemble(budget={"tokens": (used.tokens_in + used.tokens_out) // 2})
    inline, ray = (run(team, tight, hosts, traced=True) for hosts in (None, ray_hosts))
    assert [(r.answer, r.usage, r.over, r.spans) for r in inline] == [(r.answer, r.usage, r.over, r.spans) for r in ray] and inline[0].over


def test_it_learns_the_lead_the_gate_and_the_weights(team: Team, trial: Any) -> None:
    right = {"ant": [True] * 5 + [False] * 5, "bee": [True] * 9 + [False], "cat": [False] * 10}

    def judge(topology: Any) -> tuple[float, float]:
        return (0.8 if topology.gate in (0.7, 0.9) else 0.7) + 0.1 * bool(topology.weights), topology.gate

    fitted: Any = load_topology("logit-ensemble").fit(trial(team, correct=right, judge=judge))
    assert (fitted.lead, fitted.gate) == ("bee", 0.7) and fitted.weights == pytest.approx({"ant": 0.01, "bee": np.log(5), "cat": 0.01})
    given = ensemble(lead="cat", weights={})
    seen = trial(team, correct=right, judge=judge)
    assert given.fit(seen) == given and not seen.tried


def test_what_it_needs_is_checked_before_the_run(team: Team, crew: Any) -> None:
    ensemble().check(team)
    odd = replace(team["cat"], info=replace(team["cat"].info, tokenizer_hash="other"))
    with pytest.raises(UnmetNeed, match="members with one tokenizer; see team"):
        ensemble().check(replace(team, agents={**team.agents, "cat": odd}))
    with pytest.raises(UnmetNeed, match="members with logits; ann has logprobs"):
        ensemble().check(crew(ann=("phone", "a", 0.9), tim=("tower", "b", 0.8)))
    for wrong in ({"lead": "cta"}, {"weights": {"cta": 1.0}}):
        with pytest.raises(UnknownName, match="did you mean cat"):
            ensemble(**wrong).check(team)
    with pytest.raises(UserError, match="parameter top"):
        ensemble(top=0)


def test_a_draft_can_only_be_gone_on_from_as_tokens(team: Team) -> None:
    async def as_text(task: Task, people: Team) -> Any:
        return await people["bee"].ask(task.question, begin=await people["ant"].ask(task.question, top=Top(3, 0.5)))

    async def none_kept(task: Task, people: Team) -> Any:
        return (await people["ant"].ask(task.question)).as_("logits")

    for pattern, says in ((as_text, "brings no tokens"), (none_kept, "ask with top=Top")):
        found: list[Any] = []
        topology = type("Pattern", (), {"run": staticmethod(pattern)})()
        run_jobs([Job("x", topology, Task("q", QUESTIONS[0]), team)], InlineHosts(), Memory(), found.append)
        assert says in found[0].error


def test_an_answer_that_has_ended_is_not_gone_on_with(models: list[Path]) -> None:
    from aiflow_agents.models.family.model import FamilyModel

    model = FamilyModel.load(models[0])
    a, b = tokenizer.encode("ab")
    ended = Request((Turn("user", "q"),), begin=(a, b, tokenizer.EOS), top=Top(3))
    full = replace(ended, begin=(a, b), max_tokens=2)
    one, two, three = model.generate([ended, full, replace(full, max_tokens=3)])
    assert [(r.text, r.token_ids, r.finish, r.work, r.next) for r in (one, two)] == [("ab", (), "stop", (), None), ("ab", (), "length", (), None)]
    assert three.finish == "unsure" and three.next and codec("float16").decode(three.next).values.shape == (1, 3)
