from __future__ import annotations

import json

import pytest

from aiflow_agents import catalog
from aiflow_agents.bench.plan import bench_plan, chosen, far, judged
from aiflow_agents.bench.speed import Seen, Speeds, fit
from aiflow_agents.errors import UserError
from aiflow_agents.evals.plans import Ground
from aiflow_agents.net.cost import price_call
from aiflow_agents.net.network import Link, Network, Node
from aiflow_agents.runtime.hosts import InlineHosts


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    from tests.conftest import make_family

    return make_family(tmp_path_factory.mktemp("models") / "fern", seed=3, layers=3, exits=(0, 1, 2))


def near() -> Network:
    nodes = {name: Node(name, tier, 1e12, 1e11) for name, tier in (("phone", "device"), ("edge", "edge"), ("cloud", "cloud"))}
    return Network("near", nodes, (Link("phone", "edge", 1e8, 1e8, 0.002), Link("edge", "cloud", 1e8, 1e8, 0.004)), "phone")


def test_the_fit_finds_the_node_that_made_the_calls():
    """Calls priced by a node whose numbers are known, as the cost model prices them."""
    node = Node("n", "edge", flops_rate=2e10, bandwidth_Bps=1.5e9, overhead_s=0.0004, call_s=0.0011)
    seen = []
    for weights, flops in ((8e5, 8e5), (1.6e6, 1.6e6), (6e6, 6e6)):
        for positions in (1, 4, 30, 200):
            for steps in (0, 1, 5, 20):
                prefill, decode = positions * flops, steps * flops
                cost = price_call(node, prefill_flops=prefill, decode_flops=decode, weight_bytes=weights, steps=steps)
                seen.append(Seen("single", 7, f"{weights} {positions}", cost.seconds, steps, prefill, decode, weights, 1.0))
    found = fit(seen)
    assert found.call_s + found.overhead_s == pytest.approx(0.0015, rel=0.05)
    assert (found.overhead_s, found.bandwidth_Bps, found.flops_rate) == (pytest.approx(0.0004, rel=0.1), pytest.approx(1.5e9, rel=0.05), pytest.approx(2e10, rel=0.05))
    assert all(said == pytest.approx(took, rel=0.05) for _, took, said in found.kinds.values())


def test_what_the_runtime_takes_counts_for_each_call():
    seen = [Seen("single", 1, "answer", 0.01 * (1 + steps), steps, 1e6, steps * 1e6, 1e6, 1.0) for steps in range(5)]
    assert Speeds(seen, {"single": 0.002}).of("single", 1).call_s == pytest.approx(fit(seen).call_s + 0.002)


def test_agreement_by_hand():
    rows = [{"plan": name, "forecast_s": f, "real_s": r, "error": f / r - 1, "filed_s": r} for name, f, r in (("a", 1.0, 1.1), ("b", 3.0, 2.0), ("c", 2.0, 4.0))]
    found = judged(rows)
    assert (found["spearman"], found["kendall"], found["within"], found["first_agrees"]) == (pytest.approx(0.5), pytest.approx(1 / 3), 1, True)
    assert (found["worst"], found["error"], found["error_filed"]) == (0.5, pytest.approx((1 / 11 + 0.5 + 0.5) / 3), 0.0)


def test_the_plans_are_of_every_kind_and_the_cloud_can_be_far():
    home = Network.load(catalog.find("network", "home-wifi").path)
    some = chosen(Ground.of(catalog.find("model", "willow").path, home))
    assert {plan.topology for plan in some} == {"single", "stream", "draft-verify", "split"} and len(some) >= 12
    assert {len(plan.members) for plan in some} == {1, 2, 3}
    distant = far(home)
    assert distant.latency_s("edge", "cloud") == 0.05 and distant.latency_s("phone", "edge") == home.latency_s("phone", "edge")


def test_plans_run_under_both_clocks(family):
    ground = Ground.of(family, near())
    (found,) = bench_plan([ground], ["12+34=", "abc>", "7*8=", "5-2="], InlineHosts, rounds=1, max_tokens=4)["networks"]
    json.dumps(found)
    assert [row["plan"] for row in found["plans"]] == [plan.name for plan in chosen(ground)]
    least = {"phone: exit 0": 0.0, "edge: exit 2": 0.004, "cloud: exit 2": 0.012}  # there and back
    for row in found["plans"]:
        assert row["forecast_s"] > least.get(row["plan"], 0.0) and row["real_s"] > least.get(row["plan"], 0.0)
        assert row["error"] == pytest.approx(row["forecast_s"] / row["real_s"] - 1)
    seen = {(one["topology"], one["exit"]) for one in found["speed"]}
    assert seen == {("single", 0), ("single", 2), ("stream", 2), ("draft-verify", 0), ("draft-verify", 1), ("draft-verify", 2), ("split", 2)} | (
        {("split", one["exit"]) for one in found["speed"] if one["topology"] == "split"}
    )
    assert all(one["kinds"] for one in found["speed"]) and found["hop_late_s"] != 0


def test_too_few_questions(family):
    with pytest.raises(UserError, match="too few"):
        bench_plan([Ground.of(family, near())], ["1+1=", "2+2="], InlineHosts)
