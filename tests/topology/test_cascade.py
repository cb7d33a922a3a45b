from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.errors import UnknownName, UnmetNeed
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


def test_the_order_is_that_of_cost_and_the_threshold_the_best_on_dev_and_of_equals_the_cheapest(crew: Any, trial: Any) -> None:
    made = trial(crew_of(crew, 0.5, 0.5, 0.5), flops={"ann": 30.0, "bob": 10.0, "tim": 20.0})
    made.judge = lambda topology: (0.9 if 0.38 < topology.threshold < 0.62 else 0.5, topology.threshold)
    fitted: Any = load_topology("cascade").fit(made)
    assert (fitted.order, fitted.threshold) == (("bob", "tim", "ann"), 0.4)
    assert all(tried.order == fitted.order for tried in made.tried)
    given: Any = load_topology("cascade", {"order": ["tim", "ann"]}).fit(made)
    assert (given.order, given.threshold) == (("tim", "ann"), 0.4)
    tried = len(made.tried)
    fixed: Any = load_topology("cascade", {"threshold": 0.7}).fit(made)
    assert (fixed.threshold, fixed.order, len(made.tried)) == (0.7, ("bob", "tim", "ann"), tried)


def test_what_it_needs_is_checked_before_the_run(crew: Any, dumb: Any) -> None:
    team = crew_of(crew, 0.5, 0.5, 0.5)
    with pytest.raises(UnknownName, match="named 'tom'; did you mean tim"):
        load_topology("cascade", {"order": ["ann", "tom"]}).check(team)
    with pytest.raises(UnmetNeed, match="'cascade' needs members with logprobs; tim has none"):
        load_topology("cascade").check(dumb(team, "tim"))
    with pytest.raises(UnmetNeed, match="'cascade' needs at least 2 members"):
        load_topology("cascade").check(team.only("ann"))
