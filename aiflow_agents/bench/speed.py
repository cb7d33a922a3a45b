"""How fast this machine is, as a node of a network file would say it: fitted to calls that were really made.

    a call takes   call + passes * overhead + max(bytes of weights / bandwidth, FLOPs / rate), pass by pass as in `net.cost`
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from aiflow_agents.models.protocol import Reply
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.hooks import Asked, Called, Hook
from aiflow_agents.runtime.hosts import LiveHosts
from aiflow_agents.runtime.live import Live
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology


class Seen(NamedTuple):
    """One call that was made. `first` FLOPs are those of what it read, `later` those of the `steps` passes behind; `share` of the weights was read first."""

    kind: str
    seconds: float
    steps: int
    flops: float
    weights: float  # bytes of a whole pass
    share: float


@dataclass(frozen=True)
class Speed:
    """Seconds a call and a pass beyond its work, bytes and FLOPs a second. `kinds`: by kind of call how many, median seconds, and what the fit says."""

    call_s: float
    overhead_s: float
    bandwidth_Bps: float
    flops_rate: float
    kinds: dict[str, tuple[int, float, float]]
    seen: tuple[Seen, ...] = ()

    def network(self, network: Network) -> Network:
        """The same links between nodes that all are this machine, which computes one call at a time."""
        how: dict[str, Any] = {"flops_rate": self.flops_rate, "bandwidth_Bps": self.bandwidth_Bps, "overhead_s": self.overhead_s, "call_s": self.call_s}
        return replace(network, nodes={name: replace(node, slots=1, machine="here", **how) for name, node in network.nodes.items()})


class Calls(Hook):
    """Keeps what was called."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def on_call(self, task: Asked, call: Called) -> None:
        if isinstance(call.reply, Reply) and call.usage is not None and call.reply.work != ():
            self.seen.append(_seen(call))


def _seen(call: Called) -> Seen:
    request, reply, shape = call.request, call.reply, call.agent.shape or call.agent.info.shape
    assert isinstance(reply, Reply) and call.usage is not None
    steps, share, what = max(reply.tokens_out - 1, 0), 1.0, "answer"
    if request.check is not None:
        steps, share, what = 0, (reply.work or ())[0].share, f"check of {len(request.check)}"
    elif request.want is not None and request.max_tokens <= len(request.begin):
        steps, share, what = 0, request.want.layer / shape.layers, f"states of layer {request.want.layer}"
    elif request.begin:
        steps, what = reply.tokens_out - (reply.finish != "unsure"), "draft"
    return Seen(f"exit {call.agent.exit}: {what}", call.end_s - call.start_s, steps, call.usage.flops, shape.weight_bytes, share)


def measure(ways: Iterable[tuple[Team, Topology]], questions: Sequence[str], hosts: LiveHosts, seed: int = 0) -> Speed:
    """Ask these questions in each of these ways, one at a time under the real clock, with messages that take no time, and fit what calls took."""
    calls, ways = Calls(), list(ways)

    async def run() -> None:
        async with Live(ways[0][0], hosts, seed=seed, hooks=[calls]) as live:
            await live.warm(*(team for team, _ in ways))
            for turn in range(2):
                for question in questions:
                    for team, topology in ways:
                        await live.answer(topology, question, team=team)
                if not turn:  # the first round is the warm-up
                    await asyncio.sleep(0.1)
                    calls.seen.clear()

    asyncio.run(run())
    return fit(calls.seen)


def fit(seen: Sequence[Seen]) -> Speed:
    """The four numbers that are least wrong, by relative errors of which single large ones (something else ran) count little."""
    from scipy.optimize import least_squares

    took = np.array([one.seconds for one in seen])
    steps, flops, weights, share = (np.array([getattr(one, name) for one in seen], float) for name in ("steps", "flops", "weights", "share"))

    def says(logs: np.ndarray) -> np.ndarray:
        call, overhead, per_byte, per_flop = np.exp(logs)
        return call + (1 + steps) * overhead + np.maximum((share + steps) * weights * per_byte, flops * per_flop)

    start = np.log([0.3 * took.min(), 0.3 * took.min(), 1e-10, 1e-11])
    found = least_squares(lambda logs: says(logs) / took - 1, start, loss="soft_l1", f_scale=0.1)
    call, overhead, per_byte, per_flop = np.exp(found.x)
    fitted = says(found.x)
    kinds = {}
    for kind in sorted({one.kind for one in seen}):
        own = [i for i, one in enumerate(seen) if one.kind == kind]
        kinds[kind] = len(own), statistics.median(took[own].tolist()), statistics.median(fitted[own].tolist())
    return Speed(float(call), float(overhead), float(1 / per_byte), float(1 / per_flop), kinds, tuple(seen))
