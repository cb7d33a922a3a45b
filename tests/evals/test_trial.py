"""The dev split: measured, calibrated, and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm

from aiflow_agents.evals.scorer import exact
from aiflow_agents.evals.trial import DevTrial
from aiflow_agents.models.confidence import calibrate
from aiflow_agents.runtime.run import Job, Result
from aiflow_agents.runtime.task import Task
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology
from aiflow_agents.wire.message import Usage


class Fake:
    """Executes nothing: who is right, and at what cost, is written down by arm."""

    def __init__(self, right: dict[str, float], flops: dict[str, float], confidence: float | None = 0.8):
        self.right, self.flops, self.confidence, self.asked = right, flops, confidence, []

    def __call__(self, jobs: Sequence[Job]) -> list[Result]:
        self.asked.append([job.arm for job in jobs])
        results = []
        for i, job in enumerate(jobs):
            number = int(job.task.id)
            right = number < self.right[job.arm] * 10
            used = Usage(self.flops.get(job.arm, 1.0), 10, 2, 1, 0, 0.1, 0.0)
            failed = self.right[job.arm] < 0
            results.append(Result(job, None if failed else "yes" if right else "no", None if failed else self.confidence, used, "boom" if failed else None))
        return results


def trial(stage: Any, right: dict[str, float], flops: dict[str, float] | None = None, n: int = 10, **options: Any) -> tuple[DevTrial, Fake]:
    fake = Fake(right, flops or {}, **options)
    tasks = [Task(str(i), f"q{i}", "yes") for i in range(n)]
    return DevTrial(stage.team(ann="phone", bob="phone", tim="tower"), tasks, exact, fake), fake


def test_every_member_is_tried_once_on_every_task(stage: Any) -> None:
    made, fake = trial(stage, {"ann": 0.3, "bob": 0.7, "tim": 0.5})
    assert fake.asked == [["ann"] * 10 + ["bob"] * 10 + ["tim"] * 10]
    assert made.scores == {"ann": 0.3, "bob": 0.7, "tim": 0.5} and made.best_member == "bob"
    assert made.correct["ann"] == [True] * 3 + [False] * 7
    assert made.questions[:2] == ["q0", "q1"] and set(made.confidence) == {"ann", "bob", "tim"}


def test_of_equally_good_members_the_cheapest_is_best(stage: Any) -> None:
    assert trial(stage, {"ann": 0.5, "bob": 0.5, "tim": 0.5}, {"ann": 3.0, "bob": 1.0, "tim": 2.0})[0].best_member == "bob"


def test_a_failed_answer_counts_as_wrong(stage: Any) -> None:
    made, _ = trial(stage, {"ann": -1, "bob": 0.1, "tim": 0.1})
    assert made.scores["ann"] == 0.0 and made.confidence["ann"] == [None] * 10 and made.correct["ann"] == [False] * 10


def test_a_topology_is_measured_once_by_the_calibrated_team(stage: Any) -> None:
    made, fake = trial(stage, {"ann": 0.3, "bob": 0.7, "tim": 0.5, "majority": 0.6, "debate": 0.4}, {"majority": 7.0})
    for _ in range(2):
        assert made.accuracy(load_topology("majority")) == (0.6, 7.0)
        assert made.tokens(load_topology("majority")) == (0.6, 12.0)
        assert made.accuracy(load_topology("debate"))[0] == 0.4
        made.accuracy(load_topology("debate", {"rounds": 3}))
    assert len(fake.asked) == 4


class Learner(Topology):
    """Learns how many questions it was shown, and which member was best on them."""

    shown: int = 0
    member: str = ""

    def fit(self, trial: Any) -> Any:
        return self.model_copy(update={"shown": len(trial.questions), "member": trial.best_member})

    async def run(self, task: Any, team: Any) -> Any:
        raise AssertionError


def test_what_is_fitted_is_measured_on_the_other_half_and_no_task_is_run_twice(stage: Any) -> None:
    made, fake = trial(stage, {"ann": 0.3, "bob": 0.7, "tim": 0.5, "learner": 0.6}, {"learner": 4.0})
    fake.asked.clear()
    assert made.unseen(Learner()) == (pytest.approx(0.6), 4.0)
    assert fake.asked == [["learner"] * 5] * 2  # fitted on five questions, asked the other five
    assert made.unseen(Learner())[0] == made.accuracy(Learner(shown=5, member="bob"))[0] == pytest.approx(0.6)
    assert len(fake.asked) == 2  # the whole is its halves
    assert made.accuracy(Learner().fit(made))[0] == 0.6 and fake.asked[2:] == [["learner"] * 10]  # shown all ten, it is another one


class Table(Topology):
    weights: Any = None

    async def run(self, task: Any, team: Any) -> Any:
        raise AssertionError


def test_a_single_dev_task_is_fitted_and_measured_on(stage: Any) -> None:
    made, fake = trial(stage, {"ann": 0.3, "bob": 0.7, "tim": 0.5, "learner": 0.6}, {"learner": 4.0}, n=1)
    assert made.unseen(Learner()) == (1.0, 4.0) and fake.asked[-1] == ["learner"]


def test_two_topologies_that_differ_in_one_number_are_two(stage: Any) -> None:
    made, fake = trial(stage, {"ann": 0.3, "bob": 0.7, "tim": 0.5, "table": 0.6})
    weights = np.zeros(5000)
    made.accuracy(Table(weights=weights))
    weights[2500] = 1e-9
    made.accuracy(Table(weights=weights))
    assert len(fake.asked) == 3
    made.accuracy(Table(weights=weights.copy()))
    assert len(fake.asked) == 3
    for nested in ([np.zeros(5000)], [weights]):
        made.accuracy(Table(weights=nested))
    assert len(fake.asked) == 5


def test_calibration_agrees_with_a_logistic_regression() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(0, 2, 4000)
    p, right = 1 / (1 + np.exp(-z)), rng.random(4000) < 1 / (1 + np.exp(-(0.4 * z - 0.7)))
    found = calibrate(list(p), list(right))
    bias, slope = sm.Logit(right.astype(float), sm.add_constant(z)).fit(disp=0).params
    assert (found.slope, found.bias) == (pytest.approx(slope, abs=0.01), pytest.approx(bias, abs=0.01))
    assert np.mean([found(x) for x in p]) == pytest.approx(right.mean(), abs=0.005)  # says in the mean what comes true


def test_calibration_leaves_alone_what_it_knows_too_little_of() -> None:
    for confidences in ([0.9] * 19, [None] * 50):
        found = calibrate(confidences, [False] * len(confidences))
        assert (found.slope, found.bias) == (1.0, 0.0)


def test_a_confidence_that_points_the_wrong_way_is_ignored_and_not_turned_round() -> None:
    found = calibrate([0.9] * 50 + [0.1] * 50, [False] * 50 + [True] * 50)
    assert found.slope == 0.0 and found(0.9) == found(0.1)
