"""Hosts and raylets killed at random in one evaluation on a cluster: does it end as one that nobody disturbed?

    alone    eval, in one process ----------------------------------------> samples.jsonl, trace.jsonl, summary.json
    cluster  eval --place spread --X host--------X raylet (comes back)----> the same, line for line (sorted)

The cluster is one of raylets on this machine, one for each tier. What one process did is counted in batches, and the moments are drawn from that: a
batch, and so many milliseconds after the hosts were given it.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple

from aiflow_agents.bench.resume import same
from aiflow_agents.errors import AIFlowError
from aiflow_agents.evals.evaluate import evaluate
from aiflow_agents.evals.runner import Silence, Watcher
from aiflow_agents.models.protocol import Reply, Request
from aiflow_agents.runtime.hosts import Answers, Batches, Hosts, InlineHosts
from aiflow_agents.runtime.placement import TIER

TIERS = "device", "edge", "cloud"
LATE_S = 1.0  # at most so long after the hosts were given a batch
AWAY_S = 5.0  # at most so long a raylet stays away
STORE = 100_000_000  # bytes of each raylet's object store


class Kill(NamedTuple):
    """When and what: so many seconds into batch `number`, a host, or a raylet that comes back after `away_s`."""

    number: int
    late_s: float
    raylet: bool
    luck: float  # draws which one
    away_s: float


def bench_kills(
    suite: str = "specialists",
    *,
    topologies: Sequence[str] = (),
    limit: int | None = None,
    kills: int = 20,
    seed: int = 0,
    kill_seed: int = 0,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """Evaluate `suite` in this process, and on a cluster of three raylets with `kills` kills, and compare.

    Returns `suite, limit, seed, kill_seed, samples, batches, seconds: {alone, cluster}, equal: {file: bool}, passed, restarts, moved: [said],
    kills: [{batch, what, tier}]`. Among these is no kill that found nobody (all were starting, another raylet was away, the run was over).
    Raises AIFlowError where Ray is running in this process already.
    """
    watch = watch or Silence()
    how: dict[str, Any] = {"topologies": list(topologies) or None, "limit": limit, "seed": seed}
    with tempfile.TemporaryDirectory(prefix="aiflow-kills-") as scratch, _cluster() as cluster:
        alone, spread = Path(scratch, "alone"), Path(scratch, "cluster")
        watch.stage("alone", 0)
        counting, began = Disturbed(InlineHosts(), {}), monotonic()
        with closing(counting):
            evaluate(suite, hosts=counting, path=alone, **how)
        seconds = {"alone": monotonic() - began}
        watch.stage("kills", kills)
        with closing(cluster.hosts()) as hosts:
            killer = Killer(cluster, hosts, watch)
            began = monotonic()
            disturbed = Disturbed(hosts, {kill.number: kill for kill in moments(counting.batches, kills, Random(kill_seed))}, killer)
            evaluate(suite, hosts=disturbed, runtime="ray", place="spread", path=spread, **how)
            killer.settle()
        seconds["cluster"] = monotonic() - began
        equal, samples = same(alone, spread), len((alone / "samples.jsonl").read_bytes().splitlines())
    about: dict[str, Any] = {"suite": suite, "limit": limit, "seed": seed, "kill_seed": kill_seed, "samples": samples}
    about |= {"batches": counting.batches, "seconds": seconds, "restarts": hosts.restarts, "moved": killer.moved}
    return about | {"equal": equal, "passed": all(equal.values()), "kills": killer.done}


def moments(batches: int, kills: int, random: Random) -> list[Kill]:
    """Different batches, in their order; hosts and raylets in turn."""
    numbers = sorted(random.sample(range(batches), k=min(kills, batches)))
    return [Kill(n, random.random() * LATE_S, i % 2 == 1, random.random(), random.random() * AWAY_S) for i, n in enumerate(numbers)]


class Disturbed:
    """Hosts that count the batches they are given, and are killed at some of them."""

    def __init__(self, hosts: Hosts, kills: dict[int, Kill], killer: Killer | None = None):
        self.hosts, self.kills, self.killer, self.batches = hosts, kills, killer, 0

    def generate(self, batches: Batches) -> dict[str, Answers]:
        kill, self.batches = self.kills.get(self.batches), self.batches + 1
        if self.killer is not None:
            self.killer.cluster.back()
            if kill is not None:
                self.killer.later(kill)
        return self.hosts.generate(batches)

    def know(self, model: str, request: Request, reply: Reply) -> None:
        self.hosts.know(model, request, reply)

    def close(self) -> None:
        self.hosts.close()


class Killer:
    """Kills in threads of their own, one at a time; what was killed is in `done`, what the hosts said of it in `moved`."""

    def __init__(self, cluster: Raylets, hosts: Any, watch: Watcher):
        self.cluster, self.hosts, self.watch = cluster, hosts, watch
        self.done: list[dict[str, Any]] = []
        self.moved: list[str] = []
        self._turn, self._timers = threading.Lock(), list[threading.Timer]()
        hosts._note = self.moved.append

    def later(self, kill: Kill) -> None:
        self._timers.append(threading.Timer(kill.late_s, self._kill, [kill]))
        self._timers[-1].start()

    def settle(self) -> None:
        """Forget what has not come yet, and wait for what has begun."""
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join()

    def _kill(self, kill: Kill) -> None:
        with self._turn:
            tier = self._raylet(kill) if kill.raylet else self._host(kill)
            if tier is not None:
                what = "raylet" if kill.raylet else "host"
                self.done.append({"batch": kill.number, "what": what, "tier": tier})
                self.watch.note(f"kill {len(self.done)}: {what} of {tier}, in batch {kill.number}")
                self.watch.advance(1)

    def _raylet(self, kill: Kill) -> str | None:
        tier = TIERS[int(kill.luck * len(TIERS))]
        return tier if self.cluster.away(tier, kill.away_s) else None

    def _host(self, kill: Kill) -> str | None:
        running = [host for host in self.hosts._hosts() if host.pid]
        if not running:
            return None
        host = running[int(kill.luck * len(running))]
        try:
            os.kill(host.pid, signal.SIGKILL)
        except ProcessLookupError:  # it went with its raylet, and nobody has noticed yet
            return None
        return host.room.ground.name


class Raylets:
    """A cluster on this machine: a head without cores, and a raylet of one core for each tier."""

    def __init__(self, cluster: Any):
        self._cluster = cluster
        self._of = {tier: self._raylet(tier) for tier in TIERS}
        self._away: tuple[str, float] | None = None

    def hosts(self) -> Any:
        from aiflow_agents.runtime.ray_hosts import RayHosts

        return RayHosts(address=self._cluster.address)

    def away(self, tier: str, seconds: float) -> bool:
        """Kill a tier's raylet, which may come back so much later; not when another one is away."""
        if self._away is not None:
            return False
        self._cluster.remove_node(self._of[tier], allow_graceful=False)
        self._away = tier, monotonic() + seconds
        return True

    def back(self) -> None:
        """Start another raylet where the time has come. To be called in the main thread, as Ray sets signals."""
        if self._away is not None and monotonic() >= self._away[1]:
            tier, self._away = self._away[0], None
            self._of[tier] = self._raylet(tier)

    def _raylet(self, tier: str) -> Any:
        return self._cluster.add_node(num_cpus=1, labels={TIER: tier}, object_store_memory=STORE, wait=False)


@contextmanager
def _cluster() -> Iterator[Raylets]:
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        raise AIFlowError("Ray is running in this process already; the bench starts one of its own")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE})
    try:
        made = Raylets(cluster)
        cluster.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        cluster.shutdown()
