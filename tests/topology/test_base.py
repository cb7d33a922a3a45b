"""What a topology needs, and what every shipped one promises."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents import catalog
from aiflow_agents.errors import UnmetNeed
from aiflow_agents.models.protocol import CallError
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Needs, Topology
from aiflow_agents.topology.load import load_topology

ROOT = catalog.library()
SHIPPED = sorted(path.stem for path in (ROOT / "topologies").glob("*.py")) if ROOT else []
FAMILIAL = ["exit-cascade", "feature-relay", "latent", "split"]  # they hand over hidden states, for which members must be of one family
NUMERIC = ["draft-verify", "logit-ensemble"]  # their members say more than words, which those of this stage cannot
ASKING = ["inquiry"]  # one of its members asks the others
SEEING = ["joint-view", "pictures"]  # its members see
FAMILIES = ("willow", "cedar", "cedar-large")
ANYONES = [name for name in SHIPPED if name not in FAMILIAL + NUMERIC + ASKING + SEEING]


@pytest.fixture
def team(stage: Any, roles: Any) -> Any:
    return roles(stage.team(ann="phone", bob="phone", cid="tower", tim="tower"), tim="server")


def ready(name: str, trial: Any, team: Any) -> Topology:
    """The topology, fitted where it must be."""
    if name == "stream":
        return load_topology(name, {"member": "ann"})
    if name != "router":
        return load_topology(name)
    return load_topology(name).fit(trial(team, questions=["q", "r"], correct={"ann": [True, True], "tim": [False, True]}))


# --- needs ---


@pytest.mark.parametrize(
    ("needs", "missing"),
    [
        (Needs(), None),
        (Needs(members=4, roles=("server", "member"), capabilities=frozenset({"logprobs"})), None),
        (Needs(members=5), "at least 5 members; team 'test' has 4"),
        (Needs(roles=("server", "judge")), "a member with role 'judge'; the roles in team 'test' are member, server"),
        (Needs(capabilities=frozenset({"logprobs", "kv", "hidden"})), "members with hidden, kv; ann has logprobs"),
    ],
)
def test_what_a_team_lacks_is_said_in_words(team: Any, needs: Needs, missing: str | None) -> None:
    assert needs.missing(team) == missing


def test_a_need_is_checked_before_the_run_and_is_no_parameter(team: Any) -> None:
    class LikesCrowds(Topology):
        needs = Needs(members=9)
        rounds: int = 1

    with pytest.raises(UnmetNeed, match="^topology 'likes-crowds' needs at least 9 members; team 'test' has 4$"):
        LikesCrowds().check(team)
    assert LikesCrowds().learned() == {"rounds": 1}
    with pytest.raises(ValueError, match="needs"):
        LikesCrowds(needs=Needs())  # type: ignore[call-arg]


# --- the shipped ones ---


def test_which_there_are() -> None:
    assert ANYONES == ["cascade", "debate", "majority", "mixture", "router", "self-consistency", "single", "star", "stream", "weighted"]
    assert set(FAMILIAL + NUMERIC + ASKING + SEEING) <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_is_short_says_what_it_does_and_draws_it(name: str) -> None:
    assert ROOT is not None
    text = Path(ROOT / "topologies" / f"{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(text), clean=False) or ""
    assert load_topology(name).name() == name
    assert len(text.splitlines()) <= 80 and "\n\n    " in docstring and docstring.splitlines()[0].endswith((".", ":", ")"))


@pytest.mark.parametrize("name", ANYONES)
def test_it_answers_with_what_a_member_said_at_home(name: str, team: Any, trial: Any, stage: Any) -> None:
    topology = ready(name, trial, team)
    topology.check(team)
    (result,) = stage.run(topology, team, ["q"])
    assert result.error is None and result.answer in {f"{member}:q" for member in ("ann", "bob", "cid", "tim")}
    assert 0 < result.confidence <= 1 and result.usage.calls >= 1 and result.usage.latency_s > 0


@pytest.mark.parametrize("name", ANYONES)
def test_its_answer_is_the_same_every_time_and_on_every_network(name: str, team: Any, trial: Any, stage: Any) -> None:
    from dataclasses import replace

    slow = replace(stage.network, links=tuple(replace(link, up_bps=link.up_bps / 50, jitter_s=1.0) for link in stage.network.links))
    topology, questions = ready(name, trial, team), [f"q{i}" for i in range(5)]
    outcomes = [[r.answer for r in stage.run(topology, replace(team, network=network), questions)] for network in (stage.network, stage.network, slow)]
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("name", ANYONES)
def test_a_member_that_fails_fails_the_task_by_name(name: str, team: Any, trial: Any, stage: Any) -> None:
    stage.say["ann"] = lambda request: CallError("failed", "out of luck")
    (result,) = stage.run(ready(name, trial, team), team, ["q"])
    assert result.error == "MemberFailed: ann: out of luck" and result.answer is None


@pytest.mark.parametrize("name", ANYONES)
def test_its_parameters_are_plain_data_that_give_it_back(name: str, team: Any, trial: Any) -> None:
    topology = ready(name, trial, team)
    learned = json.loads(json.dumps(topology.learned()))
    if name != "router":
        assert load_topology(name, learned) == topology


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("people", [entry.name for entry in catalog.entries("team") if entry.origin == "library" or entry.origin == "here"])
def test_it_can_be_run_by_the_shipped_teams(name: str, people: str) -> None:
    team = Team.load(people)
    needs = load_topology(name).needs
    if (people == "partial-views") != (name in SEEING) and name not in ANYONES:
        with pytest.raises(UnmetNeed, match="needs (members with|a member with role)"):
            load_topology(name).check(team)
        return
    if any(team.role(role) is None for role in needs.roles) or needs.members > len(team):
        pytest.skip("lacks a role, or is too small")
    if name == "draft-verify" and len(team) > 3:
        with pytest.raises(UnmetNeed, match="needs two or three different members"):
            load_topology(name).check(team)
        return
    one_model = len({agent.info.weights_hash for agent in team}) == 1  # in `copies` too, where all have the same exit
    if name in FAMILIAL and not (people in FAMILIES or one_model and name != "exit-cascade"):
        with pytest.raises(UnmetNeed, match=r"of one family.*; team '.+' has others$"):
            load_topology(name).check(team)
        return
    load_topology(name).check(team)
