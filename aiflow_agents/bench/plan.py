"""Does what `aiflow plan` forecasts come true? Plans under the real clock, with messages that cross throttled sockets, beside their forecasts.

    this machine --measured--> a network file's numbers for every node --> virtual clock  --> forecast latency
    the same questions, the real engine, links of the named networks on loopback          --> real latency
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from aiflow_agents.bench.speed import Calls, InTurns, Speed, Speeds
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

    Half of the questions are asked, one at a time, all plans by turns; between them the other half measure the machine, without a network, so
    that whatever else it does slows both. Means count, as only they add up. `hosts()` opens those that
    compute. Returns `networks: [{network, speed, hop_late_s, spearman, kendall, error, worst, within, first_agrees, error_links, plans: [{plan,
    forecast_s, real_s, error, links_s}]}]`: `error` is the mean over plans of |forecast - real| / real; `links_s` is the forecast for links that are
    as late as these sockets were, which shows what of an error is theirs. Raises UserError for too few questions.
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
        forecasts, late = self._forecasts(speeds, hosts, 0.0), self._forecasts(speeds, hosts, late_s)
        rows = []
        for plan, said, then, took in zip(self.plans, forecasts, late, real, strict=True):
            rows.append({"plan": plan.name, "forecast_s": said, "real_s": took, "error": said / took - 1, "links_s": then})
        return {"network": name, "speed": {exit: _speed(speeds.of(exit)) for exit in self.ground.exits}, "hop_late_s": late_s} | judged(rows)

    async def _real(self, hosts: LiveHosts) -> tuple[list[float], Speeds, float]:
        """Seconds of each plan, on average, how fast the machine was meanwhile, and how late messages came on a hop."""
        took: list[list[float]] = [[] for _ in self.plans]
        teams = [(plan.team(self.ground.network, self.max_tokens), plan.pattern()) for plan in self.plans]
        calls, beside = Calls(), list[float]()
        async with (
            Loopback(self.ground.network) as links,
            Live(teams[0][0], hosts, pace=links, seed=self.seed) as live,
            Live(teams[0][0], hosts, seed=self.seed, hooks=[calls]) as still,
        ):
            await live.warm(*(team for team, _ in teams))
            for turn in range(-1, self.rounds):  # the first is the warm-up, with one question
                for i, question in enumerate(self.asked if turn >= 0 else self.asked[:1]):
                    for at, (team, topology) in enumerate(teams):
                        result = await live.ask(topology, question, team=team)
                        if result.error is not None:
                            raise UserError(f"plan '{self.plans[at].name}', question {question!r}: {result.error}")
                        if turn >= 0:
                            took[at].append(result.usage.latency_s)
                            self.watch.advance(1)
                    for team, way in self._ways():
                        beside.append((await still.ask(way, self.known[i], team=team)).usage.latency_s)
                await asyncio.sleep(0.1)  # hooks are told in threads of their own
                if turn < 0:
                    calls.seen.clear()
                    beside.clear()
                    links.late_s.clear()
        own_s = max(sum(beside) - sum(one.seconds for one in calls.seen), 0.0) / len(calls.seen)  # what asking takes, beside the call itself
        return list(map(statistics.fmean, took)), Speeds(calls.seen, own_s), statistics.fmean(links.late_s)

    def _ways(self) -> list[tuple[Team, Runs]]:
        """Every kind of call of these plans, each when nothing else goes on."""
        found: dict[tuple[object, ...], tuple[Team, Runs]] = {}
        for plan in self.plans:
            team, exits = plan.team(self.ground.network, self.max_tokens), tuple(member["exit"] for member in plan.members.values())
            if plan.topology == "draft-verify":
                tokens = plan.parameters.get("ahead", 4)
                found["draft", exits[0], exits[-1], tokens] = team, InTurns(tokens)
            elif plan.topology != "stream":
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


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How well the order and the numbers agree."""
    from scipy.stats import kendalltau, spearmanr

    said, took = [row["forecast_s"] for row in rows], [row["real_s"] for row in rows]
    errors = [abs(row["error"]) for row in rows]
    return {
        "spearman": float(spearmanr(said, took).statistic),
        "kendall": float(kendalltau(said, took).statistic),
        "error": statistics.fmean(errors),
        "error_links": statistics.fmean(abs(row["links_s"] / row["real_s"] - 1) for row in rows),
        "worst": max(errors),
        "within": sum(error <= WITHIN for error in errors),
        "first_agrees": min(rows, key=lambda row: row["forecast_s"])["plan"] == min(rows, key=lambda row: row["real_s"])["plan"],
        "plans": rows,
    }


def _speed(speed: Speed) -> dict[str, Any]:
    told = asdict(speed)
    kinds = {kind: {"calls": n, "seconds": took, "fitted_s": said} for kind, (n, took, said) in speed.kinds.items()}
    return told | {"kinds": kinds}
