"""Where does drafting beat streaming? Both over a range of ways to the cloud, and of drafts that are more or less often kept.

The way is that of the run's network, of whose last link the rate and the latency are others. Drafts are those that the drafter really makes; at a
temperature (`heat`) it draws them, so fewer are kept. What is asked twice is remembered, so most cells cost no model time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.evals.evaluate import plan
from aiflow_agents.evals.report import write_report
from aiflow_agents.evals.run_folder import SWEEP, RunFolder, read_config, read_summary, write_whole
from aiflow_agents.evals.runner import Silence, Watcher
from aiflow_agents.evals.start import start_hosts
from aiflow_agents.net.network import TIERS, Link, Network
from aiflow_agents.runtime.decoding import per_token
from aiflow_agents.runtime.hosts import Hosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, run_jobs
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology

RTT_MS = (2.0, 10.0, 30.0, 60.0, 120.0, 250.0)
MBPS = (0.05, 20.0)
HEATS = (0.0, 1.5, 2.5, 3.5, 5.0)


def sweep(
    path: Path,
    *,
    arm: str | None = None,
    against: str = "stream",
    rtt_ms: Sequence[float] = RTT_MS,
    mbps: Sequence[float] = MBPS,
    heats: Sequence[float] = HEATS,
    questions: int = 45,
    runtime: str = "inline",
    hosts: Hosts | None = None,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """Run one way of drafting (by default the run's quickest) and the streaming arm `against` in every cell, over the run's first test questions.

    Written to `sweep.json` in the run's folder and drawn in its report: `arm, against, team, network, n_questions, cells`, each with `rtt_ms, mbps,
    heat, acceptance_rate, ms_per_token, stream_ms_per_token, speedup, busy_ratio, different`. `ms_per_token` is the mean of the time
    from the question to the whole answer over all tokens, `speedup` the streaming arm's by the drafting one's; `busy_ratio` the time per token that
    the cloud was busy, `different` the answers that are not those of the streaming arm.
    Raises UserError for what is no finished run, or has no such arms.
    """
    summary, config = read_summary(path), read_config(path)
    watch = watch or Silence()
    asked = {key: getattr(config, key) for key in ("network", "seed", "limit", "repeats", "data", "budget", "faults")}
    evaluation = plan(config.suite, config.team, config.topologies, **asked)
    arms = evaluation.prepare()
    drafting = _arm(arms, summary, arm)
    if against not in arms:
        raise UserError(str(UnknownName("arm of this run", against, arms)))
    if "heat" not in type(arms[drafting]).model_fields:
        raise UserError(f"arm '{drafting}' does not draft at a temperature; a topology that does has the parameter `heat`")
    tasks = evaluation.test[:questions]
    with RunFolder(path, evaluation.config, resume=True) as folder, closing(Memory(path / "calls.sqlite")) as memory:
        used = hosts or start_hosts(runtime)
        try:
            cells = _cells(evaluation.team, arms[drafting], arms[against], tasks, used, memory, evaluation.seed, (rtt_ms, mbps, heats), watch)
        finally:
            if hosts is None:
                used.close()
        team = evaluation.team
        found = {"arm": drafting, "against": against, "team": team.name, "network": team.network.name, "n_questions": len(tasks), "cells": cells}
        write_whole(path / SWEEP, json.dumps(found, indent=2) + "\n")
        folder.log(f"sweep of {drafting} against {against}: {len(cells)} cells")
    write_report(path)
    return found


def _arm(arms: Mapping[str, Topology], summary: Mapping[str, Any], name: str | None) -> str:
    """The arm that drafts: this one, or the one with the shortest time per answer."""
    drafts = {one: row for one, row in summary["arms"].items() if one in arms and (row.get("decoding") or {}).get("acceptance_rate") is not None}
    if name is not None and name not in arms:
        raise UserError(str(UnknownName("arm of this run", name, arms)))
    if name is None and not drafts:
        raise UserError("no arm of this run drafts: evaluate `draft-verify` and `stream` first")
    return name or min(drafts, key=lambda one: drafts[one]["latency_s"]["p50"])


def _cells(
    team: Team, drafting: Topology, streaming: Topology, tasks: Sequence[Task], hosts: Hosts, memory: Memory, seed: int,
    axes: tuple[Sequence[float], Sequence[float], Sequence[float]], watch: Watcher,
) -> list[dict[str, Any]]:  # fmt: skip
    def run(topology: Topology, network: Network) -> list[Result]:
        found: list[Result] = []
        there = replace(team, network=network)
        run_jobs([Job("sweep", topology, task, there) for task in tasks], hosts, memory, found.append, seed=seed)
        if failed := next((result.error for result in found if result.error), None):
            raise UserError(f"a question failed: {failed}")
        return sorted(found, key=lambda result: result.job.task.id)

    rtts, rates, heats = axes
    watch.stage("cells", len(rtts) * len(rates) * len(heats))
    cells = []
    for rtt, rate in product(rtts, rates):
        network = distant(team.network, rtt / 1000, rate * 1e6)
        base = run(streaming, network)
        for heat in heats:
            drafted = run(drafting.model_copy(update={"heat": heat}), network)
            cells.append({"rtt_ms": rtt, "mbps": rate, "heat": heat} | _cell(drafted, base))
            watch.advance(1)
    return cells


def _cell(drafted: Sequence[Result], base: Sequence[Result]) -> dict[str, Any]:
    own, other = _per_token(drafted), _per_token(base)
    return {
        "acceptance_rate": own["acceptance_rate"],
        "ms_per_token": own["ms"],
        "stream_ms_per_token": other["ms"],
        "speedup": other["ms"] / own["ms"],
        "busy_ratio": own["cloud_busy_ms_per_token"] / other["cloud_busy_ms_per_token"] if other["cloud_busy_ms_per_token"] else None,
        "different": sum(a.answer != b.answer for a, b in zip(drafted, base, strict=True)),
    }


def _per_token(results: Sequence[Result]) -> dict[str, Any]:
    """What decoding took, and as `ms` the whole time from question to answer, over all tokens."""
    decodings = [result.decoding.as_json() for result in results if result.decoding]
    tokens = max(sum(one["tokens"] for one in decodings), 1)
    whole_ms = 1000 * sum(result.usage.latency_s for result in results)
    return {"ms": whole_ms / tokens, **per_token(decodings, [asdict(result.usage) for result in results])}


def distant(network: Network, rtt_s: float, bps: float) -> Network:
    """This network with another way to its highest tier: there and back it takes `rtt_s`, or what its first links take at least; `bps` both ways on
    the link that ends there."""
    highest = max((node.tier for node in network.nodes.values()), key=TIERS.index)
    ends = {name for name, node in network.nodes.items() if node.tier == highest}

    def other(link: Link) -> Link:
        end = next((one for one in (link.a, link.b) if one in ends), None)
        if end is None:
            return link
        before = network.latency_s(network.home, end) - link.latency_s
        return replace(link, up_bps=bps, down_bps=bps, latency_s=max(rtt_s / 2 - before, 0.0))

    return replace(network, name=f"{network.name}, {1000 * rtt_s:g} ms, {bps / 1e6:g} Mbit/s", links=tuple(map(other, network.links)))
