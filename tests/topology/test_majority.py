from __future__ import annotations

from typing import Any

import pytest

from aiflow_agents.errors import UnmetNeed
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.frame import encode_text


def test_all_are_asked_once_and_at_once_and_hear_nobody(hearers: Any, watch: Any) -> None:
    team = hearers(ann="phone", tim="tower")
    seen, alone = watch(load_topology("majority"), team), watch(load_topology("single"), team)
    assert seen.calls == [("ann", ()), ("tim", ())]
    sent_s = (seen.result.usage.wire_bytes - len(encode_text("q0", "user", "q", None))) * 8 / 1600 + 0.125  # tim has long answered when the phone has; then the answer comes home
    assert seen.result.usage.latency_s == pytest.approx(alone.result.usage.latency_s + sent_s)


def test_the_answer_of_most_wins_at_home(crew: Any, watch: Any) -> None:
    seen = watch(load_topology("majority"), crew(ann=("phone", "a", 0.99), bob=("phone", "b", 0.1), tim=("tower", "b", 0.1)))
    assert seen.result.answer == "b"
    assert [move[1:] for move in seen.moves] == [("phone", "tower"), ("tower", "phone")]


def test_of_equally_many_the_surer_ones(crew: Any, watch: Any) -> None:
    team = crew(ann=("phone", "a", 0.4), bob=("phone", "b", 0.9), cid=("phone", "a", 0.4), tim=("tower", "b", 0.1))
    assert watch(load_topology("majority"), team).result.answer == "b"


def test_one_member_is_no_majority(crew: Any) -> None:
    with pytest.raises(UnmetNeed, match="topology 'majority' needs at least 2 members; team 'test' has 1"):
        load_topology("majority").check(crew(ann=("phone", "a", 0.4)))
