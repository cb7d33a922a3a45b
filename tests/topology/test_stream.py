from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aiflow_agents.errors import UnknownName
from aiflow_agents.topology.load import load_topology


def test_the_deepest_exit_of_the_highest_tier_streams_unless_another_is_named(crew: Any, watch: Any) -> None:
    team = crew(ann=("phone", "a", 0.9), tim=("tower", "b", 0.5), tom=("tower", "c", 0.5))
    team = replace(team, agents={**team.agents, "tom": replace(team["tom"], exit=1)})
    for member, who in ((None, "tim"), ("tom", "tom"), ("device", "ann"), ("edge", "tim"), ("ann", "ann")):
        seen = watch(load_topology("stream", {"member": member} if member else {}), team)
        assert [name for name, _ in seen.calls] == [who] and seen.result.answer == {"ann": "a", "tim": "b", "tom": "c"}[who]
        assert seen.result.delivery.ms_per_token is not None
        assert seen.moves == ([] if who == "ann" else [("q0", "phone", "tower"), (f"{who}.1", "tower", "phone")])


def test_a_member_or_tier_that_is_not_there_is_refused_before_the_run(crew: Any) -> None:
    team = crew(ann=("phone", "a", 0.9))
    for member in ("anna", "cloud"):
        with pytest.raises(UnknownName, match=f"no member of team 'test' named '{member}'"):
            load_topology("stream", {"member": member}).check(team)
