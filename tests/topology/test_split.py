"""One model on two nodes says what it says on one, and states travel for new positions only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import UnmetNeed, UserError
from aiflow_agents.models.protocol import Sampling
from aiflow_agents.runtime.run import Job
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.load import load_topology
from tests.conftest import exits_team, make_family, run_in_order

QUESTIONS = ["11+12=", "35+7=", "sort: hgfab"]
WIDTH, ROOM = 32, 7


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("agents") / "models" / "bud", layers=6, exits=(1, 3, 5))


@pytest.fixture
def team(family: Path, tmp_path: Path) -> Team:
    return exits_team(family, tmp_path, max_tokens=ROOM)


def run(team: Team, name: str, questions: Any = QUESTIONS, repeats: int = 1, **parameters: Any) -> list[Any]:
    jobs = [Job("x", load_topology(name, parameters), Task(q, q), team, repeat=i, traced=True) for q in questions for i in range(repeats)]
    return run_in_order(jobs)


@pytest.mark.parametrize("style", [{}, {"layer": 1}, {"lower": "bough"}, {"lower": "bough", "layer": 2}, {"upper": "bough"}], ids=str)
def test_in_float32_the_text_is_that_of_the_upper_one_alone(team: Team, style: dict[str, Any]) -> None:
    expected = run(team, "single", member=style.get("upper", "trunk"))
    found = run(team, "split", codec="float32", **style)
    assert [result.text for result in found] == [result.text for result in expected]
    assert [result.confidence for result in found] == pytest.approx([result.confidence for result in expected], rel=1e-3)
    assert [result.text for result in found] != [result.text for result in run(team, "single", member="leaf")]


def test_states_travel_once_for_every_position_and_the_question_never(team: Team) -> None:
    from aiflow_agents.training import tokenizer

    for result in run(team, "split", codec="float32"):
        moves = [span for span in result.spans if span.kind == "move"]
        assert all(span.who != "user" for span in moves)
        up = [span.nbytes for span in moves if span.who == "leaf"]
        down = [span.nbytes for span in moves if span.who == "trunk"]
        prompt = len(tokenizer.prompt_ids(result.job.task.question))
        assert len(up) == len(down) and 4 * WIDTH * prompt < up[0] < 4 * WIDTH * prompt + 60
        assert all(4 * WIDTH < size < 4 * WIDTH + 60 for size in up[1:])  # then one position a token
        assert all(size < 40 for size in down)
        flops = {name: sum(span.who == name for span in result.spans if span.kind == "call") for name in ("leaf", "trunk")}
        assert flops["leaf"] == flops["trunk"] == len(up)


def test_both_together_compute_what_one_does(team: Team) -> None:
    """The layers below and those above, each once for every position: no layer is run twice, nothing is read again."""
    shape = team["trunk"].info.shape
    for split, alone in zip(run(team, "split", codec="float32"), run(team, "single", member="trunk"), strict=True):
        tokens = alone.usage.tokens_out
        heads = 2.0 * shape.head_params * (split.usage.calls // 2 - 1)
        assert split.usage.calls == 2 * tokens and abs(split.usage.flops - alone.usage.flops) < 0.15 * alone.usage.flops + heads


def test_a_coarser_codec_sends_less_and_may_say_something_else(team: Team) -> None:
    fine, coarse = run(team, "split", codec="float32"), run(team, "split", codec="float16")
    assert all(one.usage.wire_bytes > 1.5 * other.usage.wire_bytes for one, other in zip(fine, coarse, strict=True))


def test_at_a_temperature_it_draws_as_the_upper_one_does(team: Team) -> None:
    warm = replace(team, agents={agent.name: replace(agent, sampling=Sampling(2.0), max_tokens=2) for agent in team})
    drawn = [result.text for result in run(warm, "split", ["1+1="], repeats=12, codec="float32")]
    assert len(set(drawn)) > 4
    only = replace(team, agents=team.agents | {"leaf": replace(team["leaf"], sampling=Sampling(2.0))})
    assert [r.text for r in run(only, "split", codec="float32")] == [r.text for r in run(team, "single", member="trunk")]


def test_where_it_cannot_cut_is_said(team: Team) -> None:
    for wrong, why in (({"layer": 2}, "from 1 to 1 of leaf and trunk; found 2"), ({"lower": "bough", "layer": 4}, "to 3"), ({"lower": "trunk"}, "two members")):
        with pytest.raises(UnmetNeed, match=why):
            load_topology("split", wrong).check(team)
    with pytest.raises(UserError, match="layer: expected greater than 0"):
        load_topology("split", {"layer": 0})
    other = replace(team, agents=team.agents | {"leaf": replace(team["leaf"], info=replace(team["leaf"].info, weights_hash="other"))})
    with pytest.raises(UnmetNeed, match="one family"):
        load_topology("split").check(other)
