"""No topology spends more than its budget, one that is never reached changes nothing, and more budget makes more calls, never other ones."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents import catalog
from aiflow_agents.models.protocol import ModelInfo, Parcel, Pass, Reply, Request, Shape
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.inputs import at_cameras
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, run_jobs
from aiflow_agents.runtime.scene import stable_hash
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.skills.scenes import exam
from aiflow_agents.topology.load import load_topology
from aiflow_agents.topology.selector import fit

SHAPE = Shape(layers=4, width=8, heads=2, kv_heads=1, head_dim=4, block_params=4000, head_params=900, vocab=10)
CAN = frozenset({"logprobs", "logits", "hidden", "resume", "score", "vision"})
MEMBERS = {"ann": ("phone", "coordinator", 1), "bob": ("tablet", "camera", 2), "tim": ("laptop", "server", 3), "kim": ("edge", "edge", None)}
PARAMETERS: dict[str, dict[str, Any]] = {
    "debate": {"rounds": 2}, "debate, rating": {"reply": "ratings", "decide": "pooled"}, "logit-ensemble": {"gate": 0.6},
    "exit-cascade": {"thresholds": (0.9, 0.9, 0.9)},
}  # fmt: skip
TOKENWISE = {"draft-verify", "split"}  # one answer of several members, whose tokens must fit each other: see their own tests
NAMES = sorted({entry.name for entry in catalog.entries("topology")} - TOKENWISE | PARAMETERS.keys())


class Pretenders:
    """Hosts without models: what they say, how much of it, and how sure they are depends on what they are asked alone."""

    def generate(self, batches: Any) -> dict[str, Any]:
        return {model: [self._reply(model, request) for request in requests] for model, requests in batches.items()}

    def _reply(self, model: str, request: Request) -> Reply:
        luck = stable_hash(model, request.messages, request.seed, request.begin, request.want, request.score)
        turns, room = len(request.messages), request.max_tokens
        text = str(luck % 7) * (1 + luck % 9)
        if model == "ann" and 1 + luck % 5 > turns:  # a coordinator, whom to ask
            text = f"{('bob', 'tim', 'kim')[luck % 3]}?{luck % 4}"
        made = min(len(text) + 1, room)
        work, coded, finish = None, None, "stop"
        if request.parcel is not None:
            work = (Pass(0.5, 6, 0, 6), *(Pass(1.0, 1, 6 + i, 1) for i in range(made - 1)))
        if request.top is not None and len(request.begin) < 3:
            made, coded, finish = 1, _frame(luck % 10, request.top.codec), "unsure"
        if request.want is not None and not room:
            work = (Pass(1.0, 5, 0, 0), *(Pass(1.0, 1, 5 + t, 0) for t in range(request.want.steps)))
        parcel = Parcel(f"{luck:x}", 40 + luck % 50, "0a" * 32, request.want, 5, tuple(range(made))) if request.want else None
        logprobs = (math.log(0.05 + luck % 90 / 100),) if made else ()
        tokens_in = 0 if request.parcel else sum(len(turn.content) for turn in request.messages) + 3 * turns
        if request.score:
            return Reply(request.score, tuple(range(len(request.score) + 1)), (math.log(0.05 + luck % 90 / 100),), tokens_in + len(request.score), 0)
        return Reply(text if room else "", tuple(range(made)), logprobs, tokens_in, made, finish, work, parcel, coded)

    def know(self, model: str, request: Request, reply: Reply) -> None: ...

    def close(self) -> None: ...


@cache
def _frame(token: int, form: str) -> bytes:
    import numpy as np

    from aiflow_agents.wire.codecs import codec
    from aiflow_agents.wire.payload import Logits

    values = np.full((1, 10), -4.0, np.float32)
    values[0, token] = -0.1
    return codec(form).encode(Logits.top(values, 8))


@cache
def networks() -> tuple[Network, ...]:
    """One with jitter, and one that also loses frames, so that nobody knows before what a message will weigh."""
    net = Network.load(catalog.find("network", "home-wifi").path)
    return net, replace(net, links=tuple(replace(link, loss=0.2) for link in net.links))


@cache
def crew(network: int) -> Team:
    net, agents = networks()[network], {}
    for name, (node, role, exit) in MEMBERS.items():
        info = ModelInfo(name, "0a" * 32, "0b" * 32, "pretended", "float32", SHAPE, CAN)
        agents[name] = Agent(name, name, info, node, net.home, role=role, exit=exit)
    return Team("crew", agents, net)


@cache
def tasks() -> list[Task]:
    asked, views = exam(["colour", "at"], "dev", 3, 1)
    places, open_ = ("tablet", "laptop", "pi", "jetson"), ("answer", "features", "picture")
    return [Task(f"t{i}", q.text, q.answer, inputs=at_cameras(views[q.scene], places, open_)) for i, q in enumerate(asked)]


@cache
def pattern(name: str) -> Any:
    import numpy as np

    topology = load_topology(name.partition(",")[0], PARAMETERS.get(name, {}))
    if name == "router":
        weights = fit(["1", "a", "b?"], np.eye(3, len(MEMBERS)))
        topology = topology.model_copy(update={"members": tuple(MEMBERS), "weights": weights})
    return topology


@cache
def run(name: str, network: int, task: int, budget: Budget | None = None) -> Any:
    topology, team = pattern(name), crew(network)
    topology.check(team)
    results: list[Any] = []
    asked = tasks()[task] if name in ("joint-view", "pictures") else replace(tasks()[task], inputs={})
    job = Job(name, topology, asked, team, traced=True)
    run_jobs([job], Pretenders(), Memory(), results.append, seed=5, budget=budget)
    assert results[0].error is None
    return results[0]


def spent(result: Any) -> dict[str, float]:
    used = result.usage
    return {"tokens": used.tokens_in + used.tokens_out, "flops": used.flops, "bytes": used.wire_bytes, "seconds": used.latency_s}


def calls(result: Any) -> Counter[Any]:
    """Who was asked and what was said, having heard whom: names of messages, which count what was made before, aside."""
    return Counter((span.who, span.node, span.text, len(span.heard)) for span in result.spans if span.kind == "call")


def limit(kind: str, value: float) -> Budget:
    return Budget(**{kind: value if kind in ("flops", "seconds") else int(value)})


kinds = st.sampled_from(["tokens", "flops", "bytes", "seconds"])
shares = st.floats(0, 1.1)
anything = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", NAMES)
@anything
@given(kind=kinds, low=shares, more=shares, network=st.integers(0, 1), task=st.integers(0, 2))
def test_no_topology_spends_more_than_its_budget_and_a_larger_one_makes_what_a_smaller_one_made(
    name: str, kind: str, low: float, more: float, network: int, task: int
) -> None:
    free = run(name, network, task)
    whole = spent(free)[kind]
    small, large = limit(kind, whole * low), limit(kind, whole * max(low, more))
    results = [run(name, network, task, budget) for budget in (small, large)]
    for budget, result in zip((small, large), results, strict=True):
        most = getattr(budget, kind)
        assert spent(result)[kind] <= most * (1 + 1e-9)
        assert (result.over is not None) == (most < whole)  # one that is reached is said, and never another one
        assert any(result.answer in span.text for span in result.spans) or result.answer == ""  # somebody has said it
        if most >= whole:
            assert (result.answer, result.text, result.confidence, result.usage, result.spans, result.over) == (
                free.answer, free.text, free.confidence, free.usage, free.spans, None)  # fmt: skip
    assert calls(results[0]) <= calls(results[1]) <= calls(free)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_enough_is_enough_and_a_little_less_is_not(name: str) -> None:
    free = run(name, 0, 0)
    for kind, value in spent(free).items():
        if value:
            assert run(name, 0, 0, limit(kind, value)).usage == free.usage
            less = limit(kind, value - 1 if kind != "seconds" else value * (1 - 1e-9))
            assert run(name, 0, 0, less).over and spent(run(name, 0, 0, less))[kind] <= value


def test_all_limits_hold_at_once() -> None:
    free = spent(run("debate", 0, 0))
    tight = Budget(tokens=int(free["tokens"]), flops=free["flops"], bytes=int(free["bytes"]), seconds=free["seconds"])
    assert spent(run("debate", 0, 0, tight)) == free
    for kind in free:
        both = tight & limit(kind, free[kind] / 2)
        assert all(value <= getattr(both, name) for name, value in spent(run("debate", 0, 0, both)).items())
