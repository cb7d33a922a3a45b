"""What is timed beside an evaluation must be just what the evaluation asked, on both sides of the same hosts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from aiflow_agents.bench.overhead import bench_overhead
from aiflow_agents.errors import AIFlowError, UserError


class Noted:
    """Hosts that note what they are asked, as values: a request's own equality is not relied upon."""

    def __init__(self, hosts: Any):
        self.hosts, self.asked = hosts, []

    def generate(self, batches: Any) -> Any:
        self.asked.append({model: [repr(request) for request in requests] for model, requests in batches.items()})
        return self.hosts.generate(batches)

    def close(self) -> None:
        raise AssertionError("they are their owner's")


@pytest.fixture
def noted(room: Any) -> Noted:
    room.suite("quiz", dev=36, test=45, topologies="[majority, debate]")
    return Noted(room.hosts())


def test_what_is_asked_alone_is_what_the_evaluation_asked_in_the_same_order(noted: Noted) -> None:
    found = bench_overhead("quiz", hosts=noted, limit=6, seed=4, repeats=3)
    loading, asked = noted.asked[:3], noted.asked[3:]
    assert [sum(map(len, batches.values())) for batches in loading] == [32] * 3 and len({*loading[0], *loading[1], *loading[2]}) == 3
    a_side = asked[: found["handovers"]]
    assert asked == 7 * a_side and len(a_side) > 1  # an evaluation to know them, and three rounds of two sides
    assert found["calls"] == sum(len(requests) for batches in a_side for requests in batches.values())
    assert found["batches"] == sum(map(len, a_side)) > found["handovers"]
    assert (found["suite"], found["team"], found["n_test"], found["hosts"], found["limit"], found["seed"]) == ("quiz", "trio", 6, 1, 6, 4)


def test_the_sides_take_turns_and_the_median_of_their_ratios_counts(noted: Noted) -> None:
    found = bench_overhead("quiz", hosts=noted, limit=6, repeats=3)
    rounds = found["rounds"]
    assert [row["first"] for row in rounds] == ["evaluation", "alone", "evaluation"]
    for clock in ("wall", "cpu"):
        for row in rounds:
            assert row[f"{clock}_ratio"] == row["evaluation"][f"{clock}_s"] / max(row["alone"][f"{clock}_s"], 1e-9)
            assert row[f"{clock}_ratio"] > 1  # an evaluation does everything that its batches take, and more
        assert found[f"{clock}_ratio"] == statistics.median(row[f"{clock}_ratio"] for row in rounds)
    assert json.loads(json.dumps(found)) == found


def test_hosts_in_other_processes_are_on_the_bill_of_both_sides(noted: Noted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts that are said to use 100 CPU seconds between any two looks at them."""
    import os

    from aiflow_agents.bench import overhead

    used: dict[int, Iterator[float]] = {1: count(0.0, 100.0), 2: count(5.0, 100.0)}
    monkeypatch.setattr(overhead, "cpu_seconds", lambda pid: next(used[pid]))
    noted.processes = lambda: [1, 2, os.getpid()]  # type: ignore[attr-defined]
    (row,) = bench_overhead("quiz", hosts=noted, limit=3, repeats=1)["rounds"]
    for side in ("evaluation", "alone"):
        assert 200 < row[side]["cpu_s"] < 300


def test_an_evaluation_that_asks_something_else_each_time_cannot_be_measured(room: Any, noted: Noted) -> None:
    answers = count()
    room.say["ant"] = lambda request: (str(next(answers)), 0.5)  # what the others hear in a debate
    with pytest.raises(AIFlowError, match="something else"):
        bench_overhead("quiz", hosts=noted, limit=3, repeats=1)
    with pytest.raises(UserError, match="is a group of suites"):
        bench_overhead("controls")
