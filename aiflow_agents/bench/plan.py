"""Does what `aiflow plan` forecasts come true? Plans under the real clock, with messages that cross throttled sockets, beside their forecasts.

    this machine --measured--> a network file's numbers for every node --> virtual clock  --> forecast latency
    the same questions, the real engine, links of the named networks on loopback          --> real latency
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from aiflow_agents.bench.speed import Speed, fit, measure
from aiflow_agents.errors import UserError
from aiflow_agents.evals.plans import Ground, Plan, plans
from aiflow_agents.evals.runner import Silence, Watcher
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.hosts import LiveHosts
from aiflow_agents.runtime.live import Live
from aiflow_agents.runtime.loopback import Loopback
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.topology.load import load_topology

WITHIN = 0.15  # of the real latency, what a forecast may be off
FAR = {"latency_s": 0.05, "up_bps": 5e6, "down_bps": 5e6, "jitter_s": 0.0}  # of the way to the cloud: 100 ms there and back, 5 Mbit/s


def far(network: Network) -> Network:
    """A network like this one whose cloud is far away, behind a slow link."""
    cloud = {node for name in network.tier("cloud") for node in (name,)}
    return replace(network, name=f"{network.name}-far", links=tuple(replace(li, **FAR) if {li.a, li.b} & cloud else li for li in network.links))


def chosen(ground: Ground) -> list[Plan]:
    """Some plans of every kind: alone, drafting over one, two and no links, fixed lengths and on-line, and split."""
    first, last = ground.exits[0], ground.exits[-1]
    middle, home, *others = ground.exits[len(ground.exits) // 2], ground.network.home, *ground.places.values()
    away = [node for node in others if node != home]
    names = [f"{home}: exit {first}", *(f"{node}: exit {last}" for node in (home, *away)), f"{away[-1]}: exit {last}, streamed"]
    names += [f"draft {home} {first} > {away[-1]} {last}, ahead {ahead}" for ahead in (2, 8, "on-line")]
    names += [f"draft {home} {first} > {away[0]} {last}, ahead 4", f"draft {away[0]} {middle} > {away[-1]} {last}, ahead 4"]
    names += [f"draft {away[-1]} {first} > {away[-1]} {last}, ahead 4", f"draft {home} {first} > {away[0]} {middle} > {away[-1]} {last}, ahead on-line"]
    names += [f"split {home} | {node} at {middle}, exit {last}, float16" for node in away]
    found = {plan.name: plan for plan in plans(ground)}
    return [found[name] for name in dict.fromkeys(names) if name in found]


def bench_plan(
    grounds: Sequence[Ground], questions: Sequence[str], hosts: Callable[[], LiveHosts], *, rounds: int = 3, max_tokens: int = 32, seed: int = 0,
    watch: Watcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run the chosen plans of each ground (one family on several networks) under both clocks.

    Half of the questions measure the machine, right before and after each network; the other half are asked, one at a time, all plans by turns,
    and of `rounds` the median counts. `hosts()` opens those that compute. Returns `networks: [{network, speed, spearman, kendall, error, worst, within,
    plans: [{plan, forecast_s, real_s, error}]}]`: `error` is the mean over plans of |forecast - real| / real. Raises UserError for too few questions.
    """
    watch, half = watch or Silence(), len(questions) // 2
    if half < 2:
        raise UserError(f"{len(questions)} questions are too few: half of them measure the machine, and half are asked")
    return {"networks": [_beside(ground, questions[:half], questions[half:], hosts, rounds, max_tokens, seed, watch) for ground in grounds]}


def _beside(
    ground: Ground, known: Sequence[str], asked: Sequence[str], hosts: Callable[[], LiveHosts], rounds: int, max_tokens: int, seed: int, watch: Watcher
) -> dict[str, Any]:
    some, here = chosen(ground), hosts()
    try:
        watch.stage(f"{ground.network.name}: how fast this machine is", 0)
        seen = _measured(ground, some, known, here, max_tokens, seed)
        watch.stage(f"{ground.network.name}: under the real clock", rounds * len(asked) * len(some))
        real = asyncio.run(_real(ground, some, asked, here, rounds, max_tokens, seed, watch))
        speed = _measured(ground, some, known, here, max_tokens, seed)
        both = fit([*seen.seen, *speed.seen])
        watch.stage(f"{ground.network.name}: in virtual time", len(some))
        forecasts = _forecast(replace(ground, network=both.network(ground.network)), some, asked, here, max_tokens, seed, watch)
    finally:
        here.close()
    rows = [
        {"plan": plan.name, "forecast_s": said, "real_s": took, "error": said / took - 1} for plan, said, took in zip(some, forecasts, real, strict=True)
    ]
    return {"network": ground.network.name, "drift": _drift(seen, speed), "speed": _speed(both)} | _judged(rows)


def _measured(ground: Ground, some: Sequence[Plan], known: Sequence[str], hosts: LiveHosts, max_tokens: int, seed: int) -> Speed:
    """Every kind of call of these plans, alone: drafts wait for their checks."""
    ways = []
    for plan in {(plan.topology, str(plan.parameters), plan.whole, len(plan.members)): plan for plan in some if plan.topology != "stream"}.values():
        alone = {"pipelined": False} if plan.topology == "draft-verify" else {}
        ways.append((plan.team(ground.network, max_tokens), load_topology(plan.topology, {**plan.parameters, **alone})))
    return measure(ways, known, hosts, seed)


async def _real(
    ground: Ground, some: Sequence[Plan], asked: Sequence[str], hosts: LiveHosts, rounds: int, max_tokens: int, seed: int, watch: Watcher
) -> list[float]:
    """Seconds of each plan: the mean over questions of the median over rounds."""
    took: dict[tuple[int, int], list[float]] = {}
    teams = [(plan.team(ground.network, max_tokens), plan.pattern()) for plan in some]
    async with Loopback(ground.network) as links, Live(teams[0][0], hosts, pace=links, seed=seed) as live:
        await live.warm(*(team for team, _ in teams))
        for turn in range(-1, rounds):  # the first is the warm-up, with one question
            for i, question in enumerate(asked if turn >= 0 else asked[:1]):
                for at, (team, topology) in enumerate(teams):
                    result = await live.ask(topology, question, team=team, whole_bill=True)
                    if result.error is not None:
                        raise UserError(f"plan '{some[at].name}', question {question!r}: {result.error}")
                    if turn >= 0:
                        took.setdefault((at, i), []).append(result.usage.latency_s)
                        watch.advance(1)
    return [statistics.fmean(statistics.median(took[at, i]) for i in range(len(asked))) for at in range(len(some))]


def _forecast(
    ground: Ground, some: Sequence[Plan], asked: Sequence[str], hosts: LiveHosts, max_tokens: int, seed: int, watch: Watcher
) -> list[float]:
    """As `aiflow plan` does it. Luck on links depends on the seed and is that of the real run, where every question has the same name."""
    memory, found = Memory(), []
    for plan in some:
        results: list[Result] = []
        jobs = [Job(plan.name, plan.pattern(), Task("question", text), plan.team(ground.network, max_tokens)) for text in asked]
        run_jobs(jobs, hosts, memory, results.append, seed=seed)
        found.append(statistics.fmean(result.usage.latency_s for result in results))
        watch.advance(1)
    return found


def _judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How well the order and the numbers agree."""
    from scipy.stats import kendalltau, spearmanr

    said, took = [row["forecast_s"] for row in rows], [row["real_s"] for row in rows]
    errors = [abs(row["error"]) for row in rows]
    return {
        "spearman": float(spearmanr(said, took).statistic),
        "kendall": float(kendalltau(said, took).statistic),
        "error": statistics.fmean(errors),
        "worst": max(errors),
        "within": sum(error <= WITHIN for error in errors),
        "first_agrees": min(rows, key=lambda row: row["forecast_s"])["plan"] == min(rows, key=lambda row: row["real_s"])["plan"],
        "plans": rows,
    }


def _drift(before: Speed, after: Speed) -> float:
    """By how much calls took longer after the run than before it: the median over their kinds."""
    shared = before.kinds.keys() & after.kinds.keys()
    return statistics.median(after.kinds[kind][1] / before.kinds[kind][1] for kind in shared) - 1


def _speed(speed: Speed) -> dict[str, Any]:
    told = asdict(replace(speed, seen=()))
    told.pop("seen")
    kinds = {kind: {"calls": n, "seconds": took, "fitted_s": said} for kind, (n, took, said) in speed.kinds.items()}
    return told | {"kinds": kinds}
