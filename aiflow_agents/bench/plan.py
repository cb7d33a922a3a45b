"""Does what `aiflow plan` forecasts come true? Plans under the real clock, with messages that cross throttled sockets, beside their forecasts.

    this machine --measured--> a network file's numbers for every node and link --> virtual clock --> forecast latency
    other questions, the real engine, links of the named networks on loopback                     --> real latency
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from aiflow_agents.bench.speed import Calls, InTurns, Seen, Speed, Speeds
from aiflow_agents.errors import UserError
from aiflow_agents.evals.plans import Ground, Plan, plans
from aiflow_agents.evals.runner import Silence, Watcher
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.hosts import LiveHosts
from aiflow_agents.runtime.live import Live
from aiflow_agents.runtime.loopback import Loopback
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, Runs, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team

WITHIN = 0.15  # of the real latency, what a forecast may be off
FAR_S, FAR_BPS = 0.05, 5e6  # of the way to the cloud: 100 ms there and back, 5 Mbit/s


def far(network: Network) -> Network:
    """A network like this one whose cloud is far away, behind a slow link."""
    cloud = set(network.tier("cloud"))
    links = list(network.links)
    for at, link in enumerate(links):
        if {link.a, link.b} & cloud:
            links[at] = replace(link, latency_s=FAR_S, up_bps=FAR_BPS, down_bps=FAR_BPS, jitter_s=0.0)
    return replace(network, name=f"{network.name}-far", links=tuple(links))


def chosen(ground: Ground) -> list[Plan]:
    """Some plans of every kind: alone, drafting over one, two and no links, fixed lengths and on-line, and split."""
    first, last = ground.exits[0], ground.exits[-1]
    middle, home, *others = ground.exits[len(ground.exits) // 2], ground.network.home, *ground.places.values()
    away = [node for node in others if node != home]
    names = [f"{home}: exit {first}", *(f"{node}: exit {last}" for node in (home, *away)), f"{away[-1]}: exit {last}, streamed"]
    names += [f"draft {home} {first} > {away[-1]} {last}, ahead {ahead}" for ahead in (2, 8, "on-line")]
    names += [f"draft {home} {first} > {away[0]} {last}, ahead 4", f"draft {away[0]} {middle} > {away[-1]} {last}, ahead 4"]
    names += [f"draft {away[-1]} {first} > {away[-1]} {last}, ahead 4"]
    names += [f"draft {home} {first} > {away[0]} {middle} > {away[-1]} {last}, ahead on-line"]
    names += [f"split {home} | {node} at {middle}, exit {last}, float16" for node in away]
    found = {plan.name: plan for plan in plans(ground)}
    return [found[name] for name in dict.fromkeys(names) if name in found]


def bench_plan(
    grounds: Sequence[Ground], questions: Sequence[str], hosts: Callable[[], LiveHosts], *, rounds: int = 3, max_tokens: int = 32, seed: int = 0,
    watch: Watcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run the chosen plans of each ground (one family on several networks) under both clocks.

    Half of the questions are asked, one at a time. The other half measure the machine: what every kind of call takes, without a network, and how much
    later messages come than the network file says. All that is in an order drawn anew for each question, so that whatever else the machine does
    slows all of it. Means count, as only they add up. `hosts()` opens those that compute. Returns `networks: [{network, speed, hop_late_s, spearman,
    kendall, error, worst, within, first_agrees, error_filed, plans: [{plan, forecast_s, real_s, error, filed_s}]}]`: `error` is the mean over plans
    of |forecast - real| / real; `filed_s` is the forecast for links that are never late. Raises UserError for too few questions.
    """
    watch, half = watch or Silence(), len(questions) // 2
    if half < 2:
        raise UserError(f"{len(questions)} questions are too few: half of them measure the machine, and half are asked")
    found = []
    for ground in grounds:
        run = _Run(ground, chosen(ground), questions[:half], questions[half : 2 * half], rounds, max_tokens, seed, watch)
        here = hosts()
        try:
            found.append(run.beside(here))
        finally:
            here.close()
    return {"networks": found}


@dataclass(frozen=True)
class _Run:
    """One network under both clocks."""

    ground: Ground
    plans: Sequence[Plan]
    known: Sequence[str]
    asked: Sequence[str]
    rounds: int
    max_tokens: int
    seed: int
    watch: Watcher

    def beside(self, hosts: LiveHosts) -> dict[str, Any]:
        name = self.ground.network.name
        self.watch.stage(f"{name}: under the real clock", self.rounds * len(self.asked) * len(self.plans))
        real, speeds, late_s = asyncio.run(self._real(hosts))
        self.watch.stage(f"{name}: in virtual time", 2 * len(self.plans))
        forecasts, filed = self._forecasts(speeds, hosts, late_s), self._forecasts(speeds, hosts, 0.0)
        rows = []
        for plan, said, then, took in zip(self.plans, forecasts, filed, real, strict=True):
            rows.append({"plan": plan.name, "forecast_s": said, "real_s": took, "error": said / took - 1, "filed_s": then})
        speed = [{"topology": topology, "exit": exit, **_speed(one)} for topology, exit, one in speeds.all()]
        return {"network": name, "speed": speed, "hop_late_s": late_s} | judged(rows)

    async def _real(self, hosts: LiveHosts) -> tuple[list[float], Speeds, float]:
        """Seconds of each plan, on average, how fast the machine was meanwhile, and how late messages came on a hop."""
        teams = [(plan.team(self.ground.network, self.max_tokens), plan.pattern()) for plan in self.plans]
        async with (
            Loopback(self.ground.network) as links,
            Live(teams[0][0], hosts, pace=links, seed=self.seed, hooks=[Calls()]) as live,  # told as much as the other, so that both are as slow
            Live(teams[0][0], hosts, seed=self.seed, hooks=[calls := Calls()]) as still,
        ):
            asks = _Asks(live, still, links)
            await live.warm(*(team for team, _ in teams))
            for turn in range(-1, self.rounds):  # the first is the warm-up, with one question
                pairs = list(zip(self.asked, self.known, strict=True))[: 1 if turn < 0 else None]
                for at, (question, known) in enumerate(pairs):
                    all_of_it = self._all(asks, teams, question, known)
                    random.Random(f"{self.seed}/{turn}/{at}").shuffle(all_of_it)
                    for ask in all_of_it:
                        await ask()
                    self.watch.advance(len(self.plans) if turn >= 0 else 0)
                await asyncio.sleep(0.1)  # hooks are told in threads of their own
                if turn < 0:
                    asks = _Asks(live, still, links)
                    calls.seen.clear()
        real = [statistics.fmean(asks.took[plan]) for plan in range(len(self.plans))]
        return real, Speeds(calls.seen, asks.own_s(calls.seen)), statistics.fmean(asks.late_s)

    def _all(self, asks: _Asks, teams: Sequence[tuple[Team, Runs]], question: str, known: str) -> list[Callable[[], Awaitable[None]]]:
        """A question to every plan; and one that measures the machine: to every kind of call, and over the links to one plan of each topology."""
        across = {plan.topology: team for plan, team in zip(self.plans, teams, strict=True)}
        return [
            *(partial(asks.over_links, plan, *team, question) for plan, team in enumerate(teams)),
            *(partial(asks.late, *team, known) for team in across.values()),
            *(partial(asks.alone, *way, known) for way in self._ways()),
        ]

    def _ways(self) -> list[tuple[Team, Runs]]:
        """Every kind of call of these plans, each when nothing else goes on."""
        found: dict[tuple[object, ...], tuple[Team, Runs]] = {}
        for plan in self.plans:
            team, exits = plan.team(self.ground.network, self.max_tokens), tuple(member["exit"] for member in plan.members.values())
            if plan.topology == "draft-verify":
                tokens = plan.parameters.get("ahead", 4)
                found["draft", exits[0], exits[-1], tokens] = team, InTurns(tokens)
            else:
                found[plan.topology, exits, plan.parameters.get("layer")] = team, plan.pattern()
        return list(found.values())

    def _forecasts(self, speeds: Speeds, hosts: LiveHosts, late_s: float) -> list[float]:
        """As `aiflow plan` does it. Luck on links depends on the seed and is that of the real run, where every question has the same name."""
        memory, found, network = Memory(), [], self.ground.network
        network = replace(network, links=tuple(replace(link, latency_s=link.latency_s + late_s) for link in network.links))
        for plan in self.plans:
            results: list[Result] = []
            team, topology = plan.team(speeds.network(network, plan), self.max_tokens), plan.pattern()
            run_jobs([Job(plan.name, topology, Task("question", text), team) for text in self.asked], hosts, memory, results.append, seed=self.seed)
            found.append(statistics.fmean(result.usage.latency_s for result in results))
            self.watch.advance(1)
        return found


@dataclass(frozen=True)
class _Asks:
    """What was asked, and how many seconds it took: `took` by plan over the links, `beside` by topology without a network, `late_s` of messages."""

    live: Live
    still: Live
    links: Loopback
    took: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    beside: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    late_s: list[float] = field(default_factory=list)

    async def over_links(self, plan: int, team: Team, topology: Runs, question: str) -> None:
        self.took[plan].append(await _seconds(self.live, team, topology, question))

    async def late(self, team: Team, topology: Runs, question: str) -> None:
        self.links.late_s.clear()
        await _seconds(self.live, team, topology, question)
        self.late_s.extend(self.links.late_s)

    async def alone(self, team: Team, topology: Any, question: str) -> None:
        self.beside[topology.name()].append(await _seconds(self.still, team, topology, question))

    def own_s(self, seen: Sequence[Seen]) -> dict[str, float]:
        """What the runtime took for a call beside the call itself, by topology."""
        found = {}
        for topology, took in self.beside.items():
            calls = [one.seconds for one in seen if one.topology == topology]
            found[topology] = max(sum(took) - sum(calls), 0.0) / len(calls)
        return found


async def _seconds(live: Live, team: Team, topology: Runs, question: str) -> float:
    result = await live.ask(topology, question, team=team)
    if result.error is not None:
        raise UserError(f"{type(topology).__name__}, question {question!r}: {result.error}")
    return result.usage.latency_s


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How well the order and the numbers agree."""
    from scipy.stats import kendalltau, spearmanr

    said, took = [row["forecast_s"] for row in rows], [row["real_s"] for row in rows]
    errors = [abs(row["error"]) for row in rows]
    return {
        "spearman": float(spearmanr(said, took).statistic),
        "kendall": float(kendalltau(said, took).statistic),
        "error": statistics.fmean(errors),
        "error_filed": statistics.fmean(abs(row["filed_s"] / row["real_s"] - 1) for row in rows),
        "worst": max(errors),
        "within": sum(error <= WITHIN for error in errors),
        "first_agrees": min(rows, key=lambda row: row["forecast_s"])["plan"] == min(rows, key=lambda row: row["real_s"])["plan"],
        "plans": rows,
    }


def _speed(speed: Speed) -> dict[str, Any]:
    told = asdict(speed)
    kinds = {kind: {"calls": n, "seconds": took, "fitted_s": said} for kind, (n, took, said) in speed.kinds.items()}
    return told | {"kinds": kinds}
