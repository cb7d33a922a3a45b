"""Time, bytes, joules and FLOPs of whole tasks, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aiflow_agents.topology.load import load_topology

# The test's model: 2 tokens a turn; 2 * 10 FLOPs a token in the blocks, 2 * 5 in the head, 4 * 5 for each pair of positions; 60 bytes of weights, which
# never count beside the FLOPs. The phone makes 1000 FLOP/s after 0.5 s a step, the tower 4000 after 0.25 s.
READ_2, READ_4 = 2 * 20 + 20 * 3 + 10, 4 * 20 + 20 * 10 + 10  # a prompt of one turn, of two
THEN_1_OF_2, THEN_2_OF_2, THEN_1_OF_4 = 30 + 20 * 3, 2 * 30 + 20 * (3 + 4), 30 + 20 * 5  # so many more tokens after a prompt of so many


def test_a_debate_by_hand(stage: Any) -> None:
    def ann(request: Any) -> str:
        return "aa" if len(request.messages) == 1 else "b"

    team = stage.team(ann=("phone", ann), tim=("tower", lambda request: "b"))
    (result,) = stage.run_jobs(stage.jobs(load_topology("debate", {"decide": "majority"}), team, ["q?"], traced=True))
    assert result.answer == "b"

    # frames: a byte, author (1 + n), id (1 where it counts the author's messages, else 1 + n), confidence (4, if any), then the text
    question, ann_1, tim_1, tim_2 = 1 + 5 + 3 + 2, 1 + 4 + 1 + 4 + 2, 1 + 4 + 1 + 4 + 1, 1 + 4 + 1 + 4 + 1
    up, down = (lambda nbytes: nbytes * 8 / 800 + 0.125), (lambda nbytes: nbytes * 8 / 1600 + 0.125)

    phone_1 = 0.5 + READ_2 / 1000 + 2 * 0.5 + THEN_2_OF_2 / 1000  # "aa" and the end: three tokens, two steps after the prompt
    tower_1 = 0.25 + READ_2 / 4000 + 0.25 + THEN_1_OF_2 / 4000
    phone_2 = 0.5 + READ_4 / 1000 + 0.5 + THEN_1_OF_4 / 1000
    tower_2 = 0.25 + READ_4 / 4000 + 0.25 + THEN_1_OF_4 / 4000
    both = phone_1  # the tower has read the question long before: up(11) + 0.55 s
    assert up(question) + tower_1 < both
    revised = both + down(tim_1) + phone_2
    assert both + up(ann_1) + tower_2 < revised
    expected = [
        ("move", "user", "phone", 0.0, up(question), "tower", question),
        ("call", "tim", "tower", up(question), up(question) + tower_1, "", 0),
        ("call", "ann", "phone", 0.0, phone_1, "", 0),
        ("move", "tim", "tower", both, both + down(tim_1), "phone", tim_1),
        ("move", "ann", "phone", both, both + up(ann_1), "tower", ann_1),
        ("call", "tim", "tower", both + up(ann_1), both + up(ann_1) + tower_2, "", 0),
        ("call", "ann", "phone", both + down(tim_1), revised, "", 0),
        ("move", "tim", "tower", revised, revised + down(tim_2), "phone", tim_2),
    ]
    for span, (kind, who, node, start_s, end_s, to, nbytes) in zip(result.spans, expected, strict=True):
        assert (span.kind, span.who, span.node, span.to, span.nbytes) == (kind, who, node, to, nbytes)
        assert (span.start_s, span.end_s) == (pytest.approx(start_s), pytest.approx(end_s))

    usage = result.usage
    assert usage.latency_s == pytest.approx(revised + down(tim_2)) == pytest.approx(3.59)
    assert usage.wire_bytes == question + ann_1 + tim_1 + tim_2 == 45
    assert usage.flops == pytest.approx(READ_2 * 2 + THEN_2_OF_2 + THEN_1_OF_2 + 2 * (READ_4 + THEN_1_OF_4)) == pytest.approx(1350)
    assert (usage.calls, usage.tokens_in, usage.tokens_out) == (4, 2 + 2 + 4 + 4, 3 + 2 + 2 + 2)
    radio = 1.0 * (question + ann_1) * 8 / 800 + 0.01 * (question + ann_1) + 0.5 * (tim_1 + tim_2) * 8 / 1600
    assert usage.energy_j == pytest.approx(2 * (phone_1 + phone_2) + 10 * (tower_1 + tower_2) + radio) == pytest.approx(18.525)


def test_samples_wait_for_the_slot_and_share_the_prompt(stage: Any) -> None:
    team = stage.team(tim=("tower", lambda request: "b"))
    (result,) = stage.run(load_topology("self-consistency", {"samples": 3}), team, ["q?"])
    first, further = 0.25 + READ_2 / 4000 + 0.25 + THEN_1_OF_2 / 4000, 0.25 + 0.25 + THEN_1_OF_2 / 4000
    assert result.usage.flops == READ_2 + 3 * THEN_1_OF_2
    assert (result.usage.calls, result.usage.tokens_in, result.usage.tokens_out) == (3, 2, 6)
    # decided at the tower, and only the winner travels
    assert result.usage.wire_bytes == 11 + 11
    assert result.usage.latency_s == pytest.approx(11 * 8 / 800 + 0.125 + first + 2 * further + 11 * 8 / 1600 + 0.125)


@pytest.mark.parametrize("noise", [{}, {"jitter_s": 0.3, "loss": 0.2}])
def test_a_task_takes_as_long_alone_as_among_thousands(stage: Any, noise: dict[str, float]) -> None:
    network = replace(stage.network, links=tuple(replace(link, **noise) for link in stage.network.links))
    team = stage.team(network=network, ann="phone", tim="tower", tom="tower")
    topology = load_topology("debate")
    jobs = stage.jobs(topology, team, [f"{'x' * (i % 37)}{i}" for i in range(1000)])
    together = stage.run_jobs(jobs)
    for job in jobs[::111]:
        (alone,) = stage.run_jobs([job])
        assert (alone.answer, alone.usage) == (together[jobs.index(job)].answer, together[jobs.index(job)].usage)
    assert len({result.usage.latency_s for result in together}) > 30


def test_thousands_are_one_batch_a_round(stage: Any) -> None:
    """Tasks of different lengths go on at different times, but are asked together."""

    def say(request: Any) -> str:
        return f"{len(request.messages)}{request.messages[-1].content[:9]}{request.messages[0].content}"

    team = stage.team(ann=("phone", say), bob=("phone", say), tim=("tower", say))
    stage.run(load_topology("debate", {"rounds": 2}), team, [f"{'x' * (i % 50)}{i}" for i in range(300)])
    assert [(name, len(requests)) for name, requests in stage.batches] == [(name, 300) for _ in range(3) for name in ("ann", "bob", "tim")]
