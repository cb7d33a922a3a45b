"""Which plan answers best with a family on a network? The virtual clock itself says what each costs, and the exit that speaks last how right it is.

    every plan x a few dev questions, in virtual time --> latency, first token, bytes, joules, FLOPs in the cloud
    every exit and rank x many dev questions          --> accuracy: of a plan without loss, that of its last exit
    plans with loss                                   --> no better than without; measured, by what they say, where they would matter
    accuracy, and what is to be small                 --> the frontier; the least of those that reach the floor wins

One memory of answers serves all plans: each call is computed once, whoever makes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from aiflow_agents.errors import UserError
from aiflow_agents.evals.plans import Ground, Plan, plans
from aiflow_agents.evals.runner import Silence, Watcher
from aiflow_agents.evals.scorer import Scorer
from aiflow_agents.evals.statistics import wilson
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.extraction import Extract
from aiflow_agents.runtime.hosts import Hosts, InlineHosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, run_jobs
from aiflow_agents.runtime.task import Task

Quantity = Literal["latency", "bytes", "energy", "cloud-flops"]
QUANTITIES: dict[str, tuple[str, str, str]] = {  # name -> (field of a forecast, unit, in words)
    "latency": ("latency_s", "s", "latency"),
    "bytes": ("wire_bytes", "B", "bytes on links"),
    "energy": ("energy_j", "J", "energy"),
    "cloud-flops": ("cloud_flops", "FLOP", "FLOPs in the cloud"),
}


@dataclass(frozen=True)
class Questions:
    """What is asked: `sample` to see what plans cost, `exam` to see how right they are; the first questions of both are the same."""

    sample: Sequence[Task]
    exam: Sequence[Task]
    scorer: Scorer
    extract: Extract = str.strip
    max_tokens: int = 32


@dataclass(frozen=True)
class Accuracy:
    """Of so many questions. `at_most`: not measured, and no better than this."""

    value: float
    ci95: tuple[float, float]
    n: int
    at_most: bool = False


@dataclass(frozen=True)
class Forecast:
    """What a plan costs for one question, as means over the sample. `first_token_s`: until the first token is at home. `acceptance`: the share of
    checked tokens that was kept; `others`: answers of the sample that are not those of its last exit alone."""

    plan: Plan
    latency_s: float
    latency_p95_s: float
    first_token_s: float
    ms_per_token: float | None
    wire_bytes: float
    energy_j: float
    flops: float
    cloud_flops: float
    cloud_busy_s: float
    tokens: float
    acceptance: float | None
    others: int = 0
    accuracy: Accuracy = field(default=Accuracy(math.nan, (math.nan, math.nan), 0))

    def value(self, quantity: str) -> float:
        return float(getattr(self, QUANTITIES[quantity][0]))

    def order(self, quantity: str) -> tuple[float, ...]:
        """Less is better; what is equal is told apart by what else there is to save."""
        return (self.value(quantity), self.latency_s, self.wire_bytes, self.energy_j)


@dataclass(frozen=True)
class Planned:
    """All plans with what they cost, the frontier, and who wins: None where nobody reaches the floor. `relief`: what the winner would save if one
    part of the network were twice as good, the most first. `left_out`: why some were not looked at."""

    network: str
    quantity: Quantity
    floor: float
    forecasts: tuple[Forecast, ...]
    frontier: tuple[Forecast, ...]
    winner: Forecast | None
    relief: tuple[tuple[str, float], ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def next_best(self) -> Forecast | None:
        """The best that reaches the floor in another way: another topology, or other places."""
        if self.winner is None:
            return None
        own = _way(self.winner.plan)
        others = [one for one in self.forecasts if _way(one.plan) != own and one.accuracy.value >= self.floor]
        return min(others, key=lambda one: one.order(self.quantity), default=None)

    @property
    def below(self) -> Forecast | None:
        """The best of all, where the floor forbids it."""
        best = min(self.forecasts, key=lambda one: one.order(self.quantity))
        return None if self.winner is None or best.order(self.quantity) >= self.winner.order(self.quantity) else best


def find_plan(
    ground: Ground, questions: Questions, *, quantity: Quantity = "latency", floor: float = 0.0, seed: int = 0, hosts: Hosts | None = None,
    watch: Watcher | None = None,
) -> Planned:  # fmt: skip
    """Search all plans. Raises UserError where none can be used at all."""
    return _Search(ground, questions, quantity, floor, seed, hosts or InlineHosts(), watch or Silence()).find()


def frontier(found: Iterable[Forecast], quantity: str) -> list[Forecast]:
    """Those to which no other is at least as right and at least as cheap, the cheapest first."""
    kept: list[Forecast] = []
    for one in sorted(found, key=lambda one: (one.order(quantity)[0], -one.accuracy.value, one.order(quantity))):
        if not kept or one.accuracy.value > kept[-1].accuracy.value:
            kept.append(one)
    return kept


class _Search:
    def __init__(self, ground: Ground, questions: Questions, quantity: Quantity, floor: float, seed: int, hosts: Hosts, watch: Watcher):
        self.ground, self.questions, self.quantity, self.floor, self.seed, self.watch = ground, questions, quantity, floor, seed, watch
        self.hosts, self.memory = hosts, Memory()
        self.exams: dict[tuple[object, ...], Accuracy] = {}

    def find(self) -> Planned:
        every = plans(self.ground)
        usable = [plan for plan in every if self.ground.fits(plan)]
        left_out = [f"{len(every) - len(usable)} plans whose weights no node of theirs can hold"] if len(usable) < len(every) else []
        if self.ground.costs:
            left_out.append("plans in which hidden states travel, as nobody knows what those of other sizes weigh")
        if not usable:
            raise UserError(f"no node of network '{self.ground.network.name}' holds an exit of {self.ground.folder.name}")
        wholes = {plan.whole: plan for plan in usable if plan.topology == "single"}
        self.watch.stage("how right each exit is", len(wholes))
        for whole, plan in wholes.items():
            self._examine(whole, plan)
        spoken = {whole: [one.answer for one in self._run(plan, self.questions.sample)] for whole, plan in wholes.items()}
        self.watch.stage("what each plan costs", len(usable))
        found = []
        for plan in usable:
            found.append(self._forecast(plan, spoken[plan.whole]))
            self.watch.advance(1)
        found, best = self._settled(found)
        winner = next((one for one in best if one.accuracy.value >= self.floor), None)
        relief = () if winner is None else tuple(self._relief(winner))
        ranked = tuple(sorted(found, key=lambda one: one.order(self.quantity)))
        return Planned(self.ground.network.name, self.quantity, self.floor, ranked, tuple(best), winner, relief, tuple(left_out))

    def _settled(self, found: list[Forecast]) -> tuple[list[Forecast], list[Forecast]]:
        """Accuracies, measured for all that stand on the frontier, and that frontier. What is measured falls back, and others come up."""
        while True:
            found = [replace(one, accuracy=self._accuracy(one.plan)) for one in found]
            best = frontier(found, self.quantity)
            unsure = next((one for one in best if one.accuracy.at_most), None)
            if unsure is None:
                return found, best
            self.watch.stage(f"how right it is: {unsure.plan.name}", 0)
            self._examine(unsure.plan.says, unsure.plan)

    def _accuracy(self, plan: Plan) -> Accuracy:
        """With loss it is never more than without: that would be luck."""
        whole, own = self.exams[plan.whole], self.exams.get(plan.says)
        if own is None:
            return replace(whole, at_most=True)
        return own if own.value <= whole.value else whole

    def _examine(self, says: tuple[object, ...], plan: Plan) -> None:
        results = self._run(plan, self.questions.exam)
        right = sum(one.answer is not None and self.questions.scorer(one.answer, one.job.task) > 0.5 for one in results)
        self.exams[says] = Accuracy(right / len(results), wilson(right, len(results)), len(results))
        self.watch.advance(1)

    def _run(self, plan: Plan, tasks: Sequence[Task], network: Network | None = None) -> list[Result]:
        """In the order of the tasks. Raises UserError where a task fails: no forecast is made of what does not work."""
        team = plan.team(network or self.ground.network, self.questions.max_tokens).extracting(self.questions.extract)
        topology = plan.pattern()
        topology.check(team)
        results: dict[str, Result] = {}
        done: Callable[[Result], None] = lambda result: results.update({result.job.task.id: result})  # noqa: E731
        run_jobs([Job(plan.name, topology, task, team) for task in tasks], self.hosts, self.memory, done, seed=self.seed)
        for result in results.values():
            if result.error is not None:
                raise UserError(f"plan '{plan.name}', question {result.job.task.question!r}: {result.error}")
        return [results[task.id] for task in tasks]

    def _forecast(self, plan: Plan, alone: Sequence[str | None]) -> Forecast:
        results = self._run(plan, self.questions.sample)
        return forecast(plan, results, self.ground, sum(one.answer != other for one, other in zip(results, alone, strict=True)))

    def _relief(self, winner: Forecast) -> list[tuple[str, float]]:
        """What the quantity would lose by each of these, where it is more than a hundredth of it."""
        saved = []
        now = winner.value(self.quantity)
        for what, network in easier(self.ground, winner.plan):
            then = forecast(winner.plan, self._run(winner.plan, self.questions.sample, network), self.ground, 0).value(self.quantity)
            if now - then > 0.01 * now:
                saved.append((what, now - then))
        return sorted(saved, key=lambda one: -one[1])


def forecast(plan: Plan, results: Sequence[Result], ground: Ground, others: int) -> Forecast:
    """Means over these results of one plan."""
    cloud = {name for name, member in plan.members.items() if member["tier"] == "cloud"}
    spent = [(name, one) for result in results for name, one in result.members.items()]
    checked, kept = sum(one.checked for _, one in spent), sum(one.kept for _, one in spent)
    latency = np.array([result.usage.latency_s for result in results])
    told = [result.delivery for result in results if result.delivery is not None]
    paces = [pace for one in told if (pace := one.ms_per_token) is not None]

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(results)

    return Forecast(
        plan,
        float(latency.mean()),
        float(np.percentile(latency, 95)),
        float(np.mean([one.first_token_s for one in told])) if told else float(latency.mean()),
        float(np.mean(paces)) if paces else None,
        mean(result.usage.wire_bytes for result in results),
        mean(result.usage.energy_j for result in results),
        mean(result.usage.flops for result in results),
        mean(one.flops for name, one in spent if name in cloud),
        mean(one.busy_s for name, one in spent if name in cloud),
        mean(one.tokens for one in told),
        kept / checked if checked else None,
        others,
    )


def easier(ground: Ground, plan: Plan) -> list[tuple[str, Network]]:
    """The network with one part twice as good: half the latency or twice the rate of a link that this plan uses, or a node of its twice as fast."""
    net, found = ground.network, []
    nodes = list(dict.fromkeys(member["node"] for member in plan.members.values()))
    stops = [net.home, *nodes, net.home]
    used = {hop.link for here, there in zip(stops, stops[1:], strict=False) for hop in net.route(here, there)}
    for at, link in enumerate(net.links):
        if (link.a, link.b) in used:
            near = replace(link, latency_s=link.latency_s / 2, jitter_s=link.jitter_s / 2)
            fast = replace(link, up_bps=2 * link.up_bps, down_bps=2 * link.down_bps)
            for what, better in (("half the latency", near), ("twice the rate", fast)):
                found.append((f"{what} of {link.a}-{link.b}", replace(net, links=(*net.links[:at], better, *net.links[at + 1 :]))))
    for name in nodes:
        node = net.node(name)
        quick = replace(node, flops_rate=2 * node.flops_rate, bandwidth_Bps=2 * node.bandwidth_Bps, overhead_s=node.overhead_s / 2)
        found.append((f"{name} twice as fast", replace(net, nodes={**net.nodes, name: quick})))
    return found


def _way(plan: Plan) -> tuple[Any, ...]:
    """What makes a plan another one than its variants: who sits where, whatever the length, the codec and whether it is streamed."""
    kind = "alone" if plan.topology in ("single", "stream") else plan.topology
    return kind, tuple((member["node"], member["exit"]) for member in plan.members.values())
