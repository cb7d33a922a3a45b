"""An evaluation on a cluster whose hosts and raylets are killed ends as one in one process."""

from __future__ import annotations

import json
from random import Random

import pytest

from aiflow_agents.bench.kills import AWAY_S, LATE_S, moments
from aiflow_agents.cli.main import main


@pytest.mark.ray
@pytest.mark.slow
def test_kills_leave_no_mark(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["bench", "kills", "exits", "--limit", "10", "--topology", "exit-cascade", "--kills", "4", "--display", "none", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["passed"] and found["equal"] == {"samples.jsonl": True, "trace.jsonl": True, "summary.json": True}
    assert {kill["what"] for kill in found["kills"]} == {"host", "raylet"} and found["restarts"] >= 1


def test_moments_are_different_batches_and_follow_from_the_seed() -> None:
    drawn = [moments(1000, 20, Random(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for kills in drawn:
        numbers = [kill.number for kill in kills]
        assert numbers == sorted(set(numbers)) and len(numbers) == 20 and numbers[-1] > 700 and numbers[0] < 300
        assert [kill.raylet for kill in kills] == [False, True] * 10
        assert all(0 <= kill.late_s < LATE_S and 0 <= kill.away_s < AWAY_S for kill in kills)
    assert len(moments(3, 20, Random(0))) == 3
