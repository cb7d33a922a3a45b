from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UserError
from aiflow_agents.evals import plan_words
from aiflow_agents.evals.plan import Accuracy, Forecast, Planned, Questions, easier, find_plan, frontier
from aiflow_agents.evals.plans import Ground, Plan, plans
from aiflow_agents.evals.scorer import exact
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Request, Turn
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.run import ask
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology

ASKED = ("12+34=", "abc>", "7*8=", "5-2=")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    from tests.conftest import make_family

    return make_family(tmp_path_factory.mktemp("models") / "fern", seed=3, layers=4, exits=(1, 3))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    from tests.conftest import TWO_NODES

    file = tmp_path_factory.mktemp("networks") / "two.yaml"
    file.write_text(TWO_NODES.replace("1000, band", "1.0e+6, band").replace("4000, band", "4.0e+6, band"))
    return Network.load(file)


@pytest.fixture(scope="module")
def questions(family):
    """What the deepest exit says is right, so exit 3 has everything and exit 1 what it says alike."""
    said = FamilyModel.load(family).generate([Request((Turn("user", text),), 6, exit=3) for text in ASKED])
    tasks = [Task(str(i), text, reply.text.strip()) for i, (text, reply) in enumerate(zip(ASKED, said, strict=True))]
    return Questions(tasks[:2], tasks, exact, max_tokens=6)


@pytest.fixture(scope="module")
def found(family, network, questions):
    return find_plan(Ground.of(family, network), questions, floor=0.9)


def test_every_exit_place_and_way_is_a_plan(family, network):
    every = plans(Ground.of(family, network))
    assert len({plan.name for plan in every}) == len(every)
    alone = {(m["node"], m["exit"]) for plan in every if plan.topology == "single" for m in plan.members.values()}
    assert alone == set(product(("phone", "tower"), (1, 3)))
    assert {plan.parameters["layer"] for plan in every if plan.topology == "split" and plan.whole == (3, None)} == {1, 2, 3}
    assert {plan.parameters.get("ahead") for plan in every if plan.topology == "draft-verify"} == {2, 4, 8, None}
    assert {plan.mark for plan in every if plan.parameters.get("codec") == "float16"} == {"lossy"}
    assert {plan.mark for plan in every if plan.parameters.get("codec") == "float32"} == {"exact"}
    for plan in every:  # as the topology itself says, where it does
        assert plan.pattern().fidelity(plan.team(network)) in ("", plan.mark), plan.name


def test_a_forecast_is_what_a_run_of_its_topology_costs(found, network, questions):
    """Against each question asked by itself, with nothing remembered. Where states travel, only the first question pays for the handshake."""
    for name in ("tower: exit 3", "tower: exit 1, streamed", "draft phone 1 > tower 3, ahead 2"):
        one = next(one for one in found.forecasts if one.plan.name == name)
        team = Team.of(one.plan.members, network=network, max_tokens=6)
        runs = [ask(team, load_topology(one.plan.topology, one.plan.parameters), task.question) for task in questions.sample]
        assert one.latency_s == pytest.approx(sum(run.usage.latency_s for run in runs) / 2)
        assert one.wire_bytes == pytest.approx(sum(run.usage.wire_bytes for run in runs) / 2)
        assert one.flops == pytest.approx(sum(run.usage.flops for run in runs) / 2)


def test_exact_plans_say_what_their_last_exit_says_and_share_its_accuracy(found):
    deep = [one for one in found.forecasts if one.plan.whole == (3, None) and one.plan.mark == "exact"]
    assert len({one.plan.topology for one in deep}) == 4
    assert all(one.others == 0 and one.accuracy == Accuracy(1.0, deep[0].accuracy.ci95, 4) for one in deep)
    shallow = next(one for one in found.forecasts if one.plan.name == "phone: exit 1")
    assert shallow.accuracy.value < 1


def test_the_winner_is_the_least_that_reaches_the_floor(found, family, network, questions):
    allowed = [one for one in found.forecasts if one.accuracy.value >= 0.9]
    assert found.winner is not None and found.winner.latency_s == min(one.latency_s for one in allowed)
    assert not any(one.accuracy.at_most for one in found.frontier)
    least = find_plan(Ground.of(family, network), questions, quantity="bytes", floor=0.9)
    assert least.winner is not None and least.winner.wire_bytes == 0 and least.winner.plan.name == "phone: exit 3"
    nobody = find_plan(Ground.of(family, network), replace(questions, scorer=lambda answer, task: 0.0), floor=0.9)
    assert nobody.winner is None and "No plan reaches the floor of 90.0 %" in plan_words.why(nobody)[0]


def test_relief_names_what_binds(found, family, network):
    """Twice as good by itself costs what the winner is said to save."""
    what, saved = found.relief[0]
    better = dict(easier(Ground.of(family, network), found.winner.plan))[what]
    team = Team.of(found.winner.plan.members, network=better, max_tokens=6)
    runs = [ask(team, found.winner.plan.pattern(), text) for text in ASKED[:2]]
    assert found.winner.latency_s - sum(run.usage.latency_s for run in runs) / 2 == pytest.approx(saved)


def test_who_does_not_fit_is_left_out(family, network, questions):
    ground = Ground.of(family, network, {"device": "qwen3-1.7b", "cloud": "qwen3-8b"})
    small = replace(network, nodes={**network.nodes, "phone": replace(network.node("phone"), memory_bytes=5e9)})
    usable = [plan for plan in plans(ground) if replace(ground, network=small).fits(plan)]
    assert any(plan.name == "phone: exit 1" for plan in usable) and not any(plan.name == "phone: exit 3" for plan in usable)
    assert not any(plan.topology == "split" or "codec" in plan.parameters for plan in plans(ground))


def test_the_file_is_a_team_that_runs_as_the_command_says(found, network, questions, tmp_path):
    file = tmp_path / "plan.yaml"
    commands = plan_words.write(found, network.file, file, questions.max_tokens)
    assert all(str(file) in command and f"--topology {found.winner.plan.topology}" in command for command in commands)
    run = ask(Team.load(file), load_topology(found.winner.plan.topology, found.winner.plan.parameters), ASKED[0])
    assert run.answer == questions.sample[0].expected
    told = json.loads(json.dumps(plan_words.as_json(found)))
    assert sum(row["wins"] for row in told["plans"]) == 1 and len(told["plans"]) == len(found.forecasts)


def test_a_model_with_one_exit_is_no_family(network, tmp_path):
    from tests.conftest import make_model

    with pytest.raises(UserError, match="one exit"):
        Ground.of(make_model(tmp_path / "plain"), network)


def _forecast(name: str, value: float, right: float) -> Forecast:
    plan = Plan(name, "single", {}, {"alone": {"node": "phone", "exit": 1, "tier": "device"}}, "exact", (1, None))
    return Forecast(plan, value, value, value, None, 0, 0, 0, 0, 0, 0, None, accuracy=Accuracy(right, (0, 1), 10))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_the_frontier_is_what_nothing_dominates(pairs):
    every = [_forecast(str(i), value, right / 6) for i, (value, right) in enumerate(pairs)]
    kept = {(one.latency_s, one.accuracy.value) for one in frontier(every, "latency")}
    points = {(one.latency_s, one.accuracy.value) for one in every}
    best = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
    assert kept == best


def test_words_say_what_the_floor_forbids():
    cheap, won = _forecast("cheap", 1.0, 0.5), _forecast("dear", 2.0, 0.9)
    told = " ".join(plan_words.why(Planned("here", "latency", 0.8, (cheap, won), (cheap, won), won)))
    assert "dear wins: 2 s of latency" in told and "The floor binds: cheap would cost 1 s (0.50x), but is right on 50.0 %" in told
