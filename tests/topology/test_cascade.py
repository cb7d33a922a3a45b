from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UnknownName, UnmetNeed
from aiflow_agents.evals.scorer import exact
from aiflow_agents.evals.trial import DevTrial
from aiflow_agents.models.protocol import Reply
from aiflow_agents.runtime.task import Task
from aiflow_agents.topology.load import load_topology

NAMES = ("ann", "bob", "tim")


def crew_of(crew: Any, *sure: float | None) -> Any:
    return crew(**{name: (node, name, p) for name, node, p in zip(NAMES, ("phone", "phone", "tower"), sure, strict=True)})


@given(st.lists(st.integers(1, 63).map(lambda n: n / 64), min_size=3, max_size=3, unique=True), st.floats(0.05, 0.95), st.permutations(NAMES))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_members_are_asked_one_after_another_until_one_is_sure_enough(crew: Any, watch: Any, sure: list[float], threshold: float, order: list[str]) -> None:
    trust = dict(zip(NAMES, sure, strict=True))
    seen = watch(load_topology("cascade", {"threshold": threshold, "order": order}), crew_of(crew, *sure))
    asked = [name for name, _ in seen.calls]
    sure_enough = [i for i, name in enumerate(order) if trust[name] >= threshold]
    if sure_enough:
        assert asked == list(order[: sure_enough[0] + 1]) and seen.result.answer == order[sure_enough[0]]
    else:
        assert asked == list(order) and seen.result.answer == max(order, key=trust.__getitem__)
    assert all(heard == () for _, heard in seen.calls)


def test_by_default_the_teams_order_and_four_fifths(crew: Any, watch: Any) -> None:
    seen = watch(load_topology("cascade"), crew_of(crew, 0.79, 0.81, 0.99))
    assert [name for name, _ in seen.calls] == ["ann", "bob"] and seen.result.answer == "bob"


def test_who_says_no_confidence_is_not_sure(crew: Any, watch: Any) -> None:
    seen = watch(load_topology("cascade", {"threshold": 0.1}), crew_of(crew, None, 0.5, 0.9))
    assert [name for name, _ in seen.calls] == ["ann", "bob"]


def test_what_was_unsure_has_cost_its_time_and_its_bytes(crew: Any, watch: Any) -> None:
    team = crew_of(crew, 0.1, 0.1, 0.1)
    alone = [watch(load_topology("single", {"member": name}), team).result.usage for name in NAMES]
    used = watch(load_topology("cascade"), team).result.usage
    assert used.latency_s == pytest.approx(sum(each.latency_s for each in alone)) and used.flops == pytest.approx(sum(each.flops for each in alone))
    assert used.wire_bytes == sum(each.wire_bytes for each in alone)


dev_split = st.lists(st.tuples(*[st.tuples(st.integers(1, 63).map(lambda n: n / 64), st.booleans())] * 3), min_size=1, max_size=12)


@given(dev_split, st.sampled_from([None, ("tim", "ann"), ("bob", "ann", "tim")]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_is_that_of_cost_and_the_threshold_the_best_on_dev_and_of_equals_the_cheapest(stage: Any, split: Any, order: Any) -> None:
    """The oracle runs every threshold on the dev split."""
    said = {name: {str(i): row[place] for i, row in enumerate(split)} for place, name in enumerate(NAMES)}

    def member(name: str, cost: int) -> Any:
        def say(request: Any) -> Any:
            sure, right = said[name][request.messages[0].content]
            text = "yes" if right else "no"
            return Reply(text, (0,) * cost, (math.log(sure),), 2, cost)

        return say

    team = stage.team(ann=("phone", member("ann", 9)), bob=("phone", member("bob", 3)), tim=("phone", member("tim", 6)))
    made = DevTrial(team, [Task(str(i), str(i), "yes") for i in range(len(split))], exact, lambda jobs: stage.run_jobs(jobs))
    fitted: Any = load_topology("cascade", {"order": order} if order else {}).fit(made)
    assert fitted.order == (order or ("bob", "tim", "ann"))
    outcomes = {t / 20: made.accuracy(fitted.model_copy(update={"threshold": t / 20})) for t in range(4, 20)}
    best = max(accuracy for accuracy, _ in outcomes.values())
    assert outcomes[fitted.threshold] == (best, min(flops for accuracy, flops in outcomes.values() if accuracy == best))
    given_one: Any = load_topology("cascade", {"threshold": 0.7}).fit(made)
    assert (given_one.threshold, given_one.order) == (0.7, ("bob", "tim", "ann"))


def test_a_member_that_fails_on_dev_ends_its_cascade_there(crew: Any, trial: Any) -> None:
    """Passing over the failure, 0.9 would look better than it is: the run would fail on the first question."""
    made = trial(
        crew_of(crew, 0.5, 0.5, 0.5),
        flops={"ann": 1.0, "bob": 2.0},
        marks={"ann": [0.0, 0.4], "bob": [1.0, 0.5]},
        confidence={"ann": [None, 0.85], "bob": [0.9, 0.95]},
    )
    fitted: Any = load_topology("cascade").fit(made)
    assert fitted.threshold == 0.9 and not made.tried  # marks (0 + 0.5) / 2, against (0 + 0.4) / 2 at 0.85 and below
    made.marks["ann"][1] = 0.6
    assert load_topology("cascade").fit(made).threshold == 0.2  # type: ignore[attr-defined]


def test_what_it_needs_is_checked_before_the_run(crew: Any, dumb: Any) -> None:
    team = crew_of(crew, 0.5, 0.5, 0.5)
    with pytest.raises(UnknownName, match="named 'tom'; did you mean tim"):
        load_topology("cascade", {"order": ["ann", "tom"]}).check(team)
    with pytest.raises(UnmetNeed, match="'cascade' needs members with logprobs; tim has none"):
        load_topology("cascade").check(dumb(team, "tim"))
    with pytest.raises(UnmetNeed, match="'cascade' needs at least 2 members"):
        load_topology("cascade").check(team.only("ann"))
