"""A stage seen through a topology: who was asked, in which order, having heard whom; and a dev split whose outcome is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest


@dataclass
class Trial:
    """`accuracy` is a function of the topology: (accuracy, FLOPs)."""

    team: Any
    marks: dict[str, list[float]] = field(default_factory=dict)
    correct: dict[str, list[bool]] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)
    answers: dict[str, list[str | None]] = field(default_factory=dict)
    confidence: dict[str, list[float | None]] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    judge: Callable[[Any], tuple[float, float]] = lambda topology: (0.5, 1.0)
    tried: list[Any] = field(default_factory=list)

    @property
    def best_member(self) -> str:
        return max(self.correct, key=lambda name: sum(self.correct[name]))

    def accuracy(self, topology: Any) -> tuple[float, float]:
        self.tried.append(topology)
        return self.judge(topology)


@dataclass
class Seen:
    """One task as it went."""

    result: Any
    calls: list[tuple[str, tuple[str, ...]]]  # (member, what it heard), in the order in which they were made
    moves: list[tuple[str, str, str]]  # (message, from, to)
    requests: list[Any]


@pytest.fixture
def watch(stage: Any) -> Callable[..., Seen]:
    """Runs one task through a topology."""

    def run(topology: Any, team: Any, question: str = "q", **options: Any) -> Seen:
        spans: list[Any] = []
        stage.batches.clear()
        (result,) = stage.run(topology, team, [question], listener=spans.append, **options)
        calls = [(name, tuple(f"{t.name}:{t.content}" for t in r.messages[1:])) for name, requests in stage.batches for r in requests]
        moves = [(span.message, span.node, span.to) for span in spans if span.kind == "move"]
        return Seen(result, calls, moves, stage.asked)

    return run


@pytest.fixture
def trial(stage: Any) -> Callable[..., Trial]:
    return lambda team, **facts: Trial(team, **facts)


@pytest.fixture
def roles() -> Callable[..., Any]:
    """The same team with other roles: roles(team, tim="server")."""

    def give(team: Any, **given: str) -> Any:
        return replace(team, agents={agent.name: replace(agent, role=given.get(agent.name, agent.role)) for agent in team})

    return give


@pytest.fixture
def dumb() -> Callable[..., Any]:
    """The same team, in which these members have no log-probabilities."""

    def take(team: Any, *names: str) -> Any:
        agents = {a.name: replace(a, info=replace(a.info, capabilities=frozenset())) if a.name in names else a for a in team}
        return replace(team, agents=agents)

    return take


@pytest.fixture
def crew(stage: Any) -> Callable[..., Any]:
    """Members who always say the same: crew(ann=("phone", "yes", 0.9), tim=("tower", "no", None))."""

    def gather(**members: tuple[str, str, float | None]) -> Any:
        return stage.team(**{name: (node, lambda request, said=(text, sure): said) for name, (node, text, sure) in members.items()})

    return gather


@pytest.fixture
def hearers(stage: Any) -> Callable[..., Any]:
    """Members who say their name and how much they have heard: hearers(ann="phone", tim="tower")."""

    def gather(**nodes: str) -> Any:
        return stage.team(**{name: (node, lambda request, name=name: f"{name}{len(request.messages) - 1}") for name, node in nodes.items()})

    return gather
