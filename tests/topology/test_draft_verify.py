"""Drafts that others check: the text is that of the last tier alone, however it is drafted, and whoever fails on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from aiflow_agents.errors import UnmetNeed, UserError
from aiflow_agents.models.protocol import CallError, Sampling, Turn
from aiflow_agents.runtime.hosts import InlineHosts, load_model
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology
from aiflow_agents.topology.pipeline import common
from tests.conftest import exits_team, make_model, make_shrub, run_in_order

QUESTIONS = [f"{a}+{b}=" for a, b in ((11, 12), (35, 7), (8, 90))] + ["sort: hgfab", "x"]
TWO = ("leaf", "trunk")


class Hosts(InlineHosts):
    """As inline ones; `refuse(request)` may say why a call fails."""

    def __init__(self) -> None:
        super().__init__(self.load)
        self.refuse: Any = lambda request: ""

    def load(self, folder: str) -> Any:
        model = load_model(folder)
        answer = model.exchange  # type: ignore[attr-defined]

        def exchange(requests: Any, parcels: Any) -> Any:
            replies, packed = answer(requests, parcels)
            return [CallError("failed", why) if (why := self.refuse(q)) else r for q, r in zip(requests, replies, strict=True)], packed

        model.exchange = exchange  # type: ignore[attr-defined]
        return model

    @contextmanager
    def refusing(self, refuse: Any) -> Iterator[None]:
        self.refuse = refuse
        try:
            yield
        finally:
            self.refuse = lambda request: ""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its exits often agree, so that drafts are kept for a while."""
    return make_shrub(tmp_path_factory.mktemp("agents") / "models" / "shrub", ends=range(2, 12), later=0.35)


@pytest.fixture
def team(family: Path, tmp_path: Path) -> Team:
    return exits_team(family, tmp_path, max_tokens=14)


@pytest.fixture(scope="module")
def hosts() -> Hosts:
    return Hosts()


def run(team: Team, hosts: Any, name: str, questions: Any = QUESTIONS, before: Any = (), seed: int = 0, fails: bool = False, **parameters: Any) -> list[Any]:
    jobs = [Job("x", load_topology(name, parameters), Task(f"t{i}", q, before=before), team, traced=True) for i, q in enumerate(questions)]
    return run_in_order(jobs, hosts, fails=fails, seed=seed)


def alone(team: Team, hosts: Any, member: str = "trunk", **more: Any) -> list[Any]:
    return run(team, hosts, "single", member=member, **more)


def texts(results: list[Any]) -> list[str]:
    return [result.text for result in results]


def on_the_way(result: Any) -> list[Any]:
    return [span for span in result.spans if span.kind == "move"]


STYLES = [{}, {"members": TWO}, {"pipelined": False, "codec": "float32"}, {"window": 1}, {"gate": 0.4, "codec": "float32"}, {"ahead": 1, "members": TWO},
          {"ahead": 16, "members": TWO, "codec": "float32"}, {"ahead": 3, "window": 3, "pipelined": False, "codec": "float32", "members": TWO}]  # fmt: skip


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_the_text_is_that_of_the_last_tier_alone(team: Team, hosts: Hosts, style: dict[str, Any]) -> None:
    expected, found = alone(team, hosts), run(team, hosts, "draft-verify", **style)
    assert texts(found) == texts(expected) != texts(alone(team, hosts, "leaf"))
    assert [result.confidence for result in found] == pytest.approx([result.confidence for result in expected], rel=1e-3)
    assert len({len(text) for text in texts(expected)}) > 2
    for result in found:
        moves = on_the_way(result)
        assert len({(span.message, span.node, span.to, span.start_s) for span in moves}) == len(moves)
        asked = {span.to for span in moves if span.who == "user"}  # whoever has the states has no need of the question
        assert asked == ({"cloud"} if "members" in style else {"edge", "cloud"}) - ({"cloud" if "members" in style else "edge"} if "codec" in style else set())


def test_an_answer_may_end_at_once(team: Team, hosts: Hosts) -> None:
    questions = [str(i) for i in range(80)]
    empty = [q for q, text in zip(questions, texts(alone(team, hosts, questions=questions)), strict=True) if not text]
    assert empty
    for style in ({}, {"members": TWO, "codec": "float32"}):
        assert texts(run(team, hosts, "draft-verify", empty, **style)) == [""] * len(empty)


def test_drafting_costs_the_last_tier_fewer_passes(team: Team, hosts: Hosts) -> None:
    """One pass over several tokens instead of one for each; and the tokens that were kept are on the ledger."""
    long = [q for q, text in zip(QUESTIONS, texts(alone(team, hosts)), strict=True) if len(text) > 8]
    assert long
    kept = []
    for result in run(team, hosts, "draft-verify", long, members=TWO, ahead=6):
        calls = [span for span in result.spans if span.kind == "call" and span.who == "trunk"]
        kept.append(len(result.text) / len(calls))
    assert max(kept) > 1.5


def test_who_drafts_need_not_stop_where_the_last_one_goes_on(team: Team, hosts: Hosts, family: Path) -> None:
    """max_tokens, stop strings and extraction of the last one count."""
    ends = {"leaf": {"max_tokens": 3}, "bough": {"max_tokens": 50, "stop": ("1",)}, "trunk": {"stop": ("zz",)}}
    uneven = replace(team, agents={agent.name: replace(agent, **ends[agent.name]) for agent in team})
    for members in ((), TWO, ("bough", "trunk"), ("trunk", "leaf")):
        assert texts(run(uneven, hosts, "draft-verify", members=members)) == texts(alone(uneven, hosts, members[-1] if members else "trunk"))
    spoken = next(text for text in texts(alone(team, hosts)) if len(text) > 8)
    stopping = replace(team, agents={a.name: replace(a, stop=(spoken[3:5],) if a.name == "trunk" else ()) for a in team})
    assert texts(run(stopping, hosts, "draft-verify")) == texts(alone(stopping, hosts)) != texts(alone(team, hosts))


def test_a_conversation_leads_to_the_question_and_is_paid_for(team: Team, hosts: Hosts) -> None:
    before = (Turn("user", "7+7="), Turn("assistant", "14"))
    expected = alone(team, hosts, before=before)
    assert texts(expected) != texts(alone(team, hosts))
    for members in ((), TWO):
        found = run(team, hosts, "draft-verify", before=before, members=members)
        assert texts(found) == texts(expected)
        assert all("before" in {span.message for span in on_the_way(result)} for result in found)


def test_a_context_that_is_full_ends_the_answer_or_leaves_a_drafter_out(team: Team, hosts: Hosts, tmp_path: Path) -> None:
    small, large = (make_model(tmp_path / name, seed=seed, max_length=length) for name, seed, length in (("small", 1, 24), ("large", 2, 96)))
    (tmp_path / "two.yaml").write_text(
        f"network: home-wifi\nmembers:\n  ant: {{model: {small}, tier: device, max_tokens: 60}}\n  bee: {{model: {large}, tier: cloud, max_tokens: 60}}\n"
    )
    pair = Team.load(tmp_path / "two.yaml")
    questions = ["1+1=", "12+9=", "1234567890123+4567890123="]  # the last does not fit into the drafter's context at all
    expected = texts(alone(pair, hosts, "bee", questions=questions))
    assert max(map(len, expected)) > 30
    for pipelined in (True, False):
        assert texts(run(pair, hosts, "draft-verify", questions, pipelined=pipelined)) == expected
        drawn = replace(pair, agents={agent.name: replace(agent, sampling=Sampling(0.7)) for agent in pair})
        assert len(set(texts(run(drawn, hosts, "draft-verify", questions * 4, pipelined=pipelined)))) > 6


# --- who fails ---


@pytest.mark.parametrize(("who", "after"), [({1}, 0), ({3}, 0), ({1}, 3), ({3}, 3), ({1, 3}, 1)], ids=str)
@pytest.mark.parametrize("style", [{}, {"codec": "float32", "ahead": 2}], ids=str)
def test_a_tier_that_fails_leaves_the_others_exact(team: Team, hosts: Hosts, who: set[int], after: int, style: dict[str, Any]) -> None:
    """The exits in `who` refuse every call once `after` tokens are there."""
    expected = texts(alone(team, hosts))
    with hosts.refusing(lambda request: "it is gone" if request.exit in who and len(request.begin) >= after else ""):
        found = run(team, hosts, "draft-verify", **style)
    assert texts(found) == expected
    asked = {span.who for result in found for span in result.spans if span.kind == "call"}
    assert "trunk" in asked and (after == 0) == (asked.isdisjoint({{1: "leaf", 3: "bough"}[exit] for exit in who}))


def test_the_last_tier_is_needed_unless_the_deadline_says_otherwise(team: Team, hosts: Hosts) -> None:
    with hosts.refusing(lambda request: "it is gone" if request.exit == 5 and len(request.begin) >= 6 else ""):
        failed = run(team, hosts, "draft-verify", fails=True)
        found = run(team, hosts, "draft-verify", deadline=60.0)
    exact = texts(alone(team, hosts))
    assert 0 < sum(result.error is not None for result in failed) < len(failed)
    for result, other, whole in zip(failed, found, exact, strict=True):
        if result.error is None:  # the answer was over before
            assert result.text == other.text == whole
        else:
            assert "trunk" in result.error and "it is gone" in result.error
            assert other.text[:1] == whole[:1] and other.usage.latency_s < 60


def test_at_the_deadline_the_drafter_ends_the_answer_by_itself(team: Team, hosts: Hosts) -> None:
    """From what it knows to be settled: so the later the deadline, the more of it is the last one's."""
    seen: dict[str, Any] = {}

    class Watched:
        def __init__(self, topology: Any):
            self.topology = topology

        async def run(self, task: Task, team: Team) -> Any:
            seen[task.id] = await self.topology.run(task, team)
            return seen[task.id]

    def at(deadline: float | None, members: tuple[str, ...]) -> list[tuple[str, str]]:
        jobs = [Job("x", Watched(load_topology("draft-verify", {"deadline": deadline, "members": members})), Task(q, q), team) for q in QUESTIONS]
        found: dict[str, Any] = {}
        run_jobs(jobs, hosts, Memory(), lambda result: found.update({result.job.task.id: result}))
        assert not any(result.error for result in found.values())
        return [(found[q].text, seen[q].mark) for q in QUESTIONS]

    exact = [(text, "") for text in texts(alone(team, hosts))]
    for members, drafter in (((), "leaf"), (TWO, "leaf"), (("bough", "trunk"), "bough")):
        assert at(1e-6, members) == [(text, "unverified") for text in texts(alone(team, hosts, drafter))]
        assert at(None, members) == exact == at(1e6, members)
        seconds = sorted(result.usage.latency_s for result in run(team, hosts, "draft-verify", members=members))
        own, partly = texts(alone(team, hosts, drafter)), at(0.9 * seconds[-1], members)
        assert {mark for _, mark in partly} == {"", "unverified"}
        assert all(one == other for one, other in zip(partly, exact, strict=True) if one[1] == "")
        rest = [(one[0], whole[0], text) for one, whole, text in zip(partly, exact, own, strict=True) if one[1]]
        assert all(common(one, whole) >= common(text, whole) for one, whole, text in rest)
        assert members == ("bough", "trunk") or any(common(one, whole) > common(text, whole) for one, whole, text in rest)


# --- at a temperature ---


def heated(team: Team, temperature: float = 1.3) -> Team:
    return replace(team, agents={agent.name: replace(agent, sampling=Sampling(temperature)) for agent in team})


SAMPLED = [{"members": TWO, "codec": "float32"}, {"gate": 0.05}]


@pytest.mark.parametrize("style", SAMPLED, ids=str)
def test_what_is_drawn_has_the_distribution_of_the_last_tier(team: Team, hosts: Hosts, family: Path, style: dict[str, Any]) -> None:
    """The second token behind the likeliest first one, by chi-square over seeds; what three tiers draw is what the last one draws, too."""
    import torch

    from aiflow_agents.models.family.decoder import Decoder
    from aiflow_agents.training import tokenizer

    warm, n = heated(replace(team, agents={agent.name: replace(agent, max_tokens=2) for agent in team})), 200
    found: list[Any] = []
    topology = load_topology("draft-verify", style)
    run_jobs([Job("x", topology, Task("t", "35+7="), warm, repeat=i) for i in range(n)], hosts, Memory(), found.append)
    assert not any(result.error for result in found)
    decoder, ids = Decoder.load(family), tokenizer.prompt_ids("35+7=")
    logits = decoder.logits(torch.tensor([ids]), exit=5)[0, -1].double() / 1.3
    p = torch.softmax(logits, -1).numpy()
    names = [tokenizer.build().decode([i], skip_special_tokens=True) for i in range(len(p))]
    first = [result.text[:1] for result in found]
    groups: dict[str, float] = {}
    for name, share in zip(names, p, strict=True):
        groups[name[:1]] = groups.get(name[:1], 0.0) + share
    often = [name for name, share in groups.items() if share * n >= 5 and name]
    seen = np.array([first.count(name) for name in often] + [sum(name not in often for name in first)])
    expected = np.array([groups[name] * n for name in often] + [n - sum(groups[name] * n for name in often)])
    assert stats.chisquare(seen, expected).pvalue > 0.001 and len(often) > 3


def test_the_last_one_says_how_it_is_drawn(team: Team, hosts: Hosts) -> None:
    cold = replace(heated(team), agents=heated(team).agents | {"trunk": replace(team["trunk"], sampling=Sampling())})
    assert texts(run(cold, hosts, "draft-verify")) == texts(alone(team, hosts))
    only = replace(team, agents=team.agents | {"trunk": replace(team["trunk"], sampling=Sampling(1.3))})
    assert len(set(texts(run(only, hosts, "draft-verify", ["1+1="] * 6)))) > 1
    for fails in ({1}, {3}):
        with hosts.refusing(lambda request, fails=fails: "it is gone" if request.exit in fails and len(request.begin) >= 2 else ""):
            run(heated(team), hosts, "draft-verify")


# --- what is refused ---


def test_what_it_cannot_do_is_refused_by_name(team: Team, family: Path, tmp_path: Path) -> None:
    def check(team: Team, **parameters: Any) -> None:
        load_topology("draft-verify", parameters).check(team)

    check(team)
    check(team, codec="float32", members=("leaf", "bough"))
    with pytest.raises(UnmetNeed, match="two or three different members: `members` names 1"):
        check(team, members=("leaf",))
    with pytest.raises(UnmetNeed, match="different members"):
        check(team, members=("leaf", "leaf"))
    blind = replace(team, agents={a.name: replace(a, info=replace(a.info, capabilities=frozenset({"logprobs"}))) for a in team})
    with pytest.raises(UnmetNeed, match="verify"):
        check(blind)
    other = replace(team, agents=team.agents | {"trunk": replace(team["trunk"], info=replace(team["trunk"].info, tokenizer_hash="other"))})
    check(other)  # through text
    with pytest.raises(UnmetNeed, match="one tokenizer"):
        check(other, codec="float32", members=TWO)
    with pytest.raises(UnmetNeed, match="two exits of one family"):
        check(replace(team, agents=team.agents | {"leaf": replace(team["leaf"], exit=None)}), codec="float16", members=("leaf", "bough"))
    for wrong in ({"ahead": 0}, {"gate": 1.0}, {"window": 0}, {"deadline": 0}):
        with pytest.raises(UserError):
            check(team, **wrong)
