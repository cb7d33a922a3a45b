"""The judge in worlds of clustered questions, and judges that do not see the clusters."""

from __future__ import annotations

import numpy as np

from aiflow_agents.bench.clustered import SIZE, draw, try_clustered, worlds
from aiflow_agents.bench.judge import weigh
from aiflow_agents.bench.worlds import World
from aiflow_agents.evals import clusters, statistics

FAR = World("far, clustered", 210, 0.4, (0.6, 0.4), (0.0, 0.0, 0.0), rivals=0, dev=70)


def missed(found):
    return [one.name for one in weigh([found], [], {"scipy": 0.0}) if not one.passed]


def test_answers_are_as_often_right_as_the_world_says_and_alike_within_a_cluster():
    world = World("x", 700, 0.3, (0.6, 0.45), (0.1, 0.0), rivals=0)
    found = draw(world, 700, 200, np.random.default_rng(0))
    assert found.members.shape == (200, 2, 100, SIZE) and np.allclose(found.members.mean((0, 2, 3)), world.members, atol=0.01)
    assert np.allclose(found.topologies.mean((0, 2, 3)), world.accuracies, atol=0.01)
    gain = found.topologies[:, 0].astype(float) - found.members[:, 0]
    assert np.isclose((gain != 0).mean(), 0.3, atol=0.01)
    assert gain.mean(axis=2).var() > 2 * gain.var() / SIZE  # were they independent, it would be once that


def test_an_honest_judge_passes():
    found = try_clustered(FAR, 500, seed=0)
    assert found["same"] and found["false_beats"] < 0.05 and not missed(found)
    assert all(0.93 < share < 0.975 for share in found["covered"].values())
    assert {world.name.partition(",")[0] for world in worlds()} == {"level", "far", "one works"}


def test_a_judge_that_takes_every_question_for_evidence_is_caught(monkeypatch):
    def naive(sums):
        return statistics.mcnemar_exact(np.maximum(sums, 0).sum(axis=-1), np.maximum(-sums, 0).sum(axis=-1))

    monkeypatch.setattr(clusters, "flips", naive)
    assert "false `beats`, any topology" in missed(try_clustered(FAR, 500, seed=0))


def test_intervals_as_for_independent_questions_are_caught(monkeypatch):
    honest = clusters.interval
    monkeypatch.setattr(clusters, "interval", lambda sums, sizes: honest(sums, sizes, 0.8))
    assert "95 % interval of the clustered difference" in missed(try_clustered(FAR, 500, seed=0))
