"""How fast this machine is, as a node of a network file would say it: fitted to calls that were really made.

    a call takes   call + passes * overhead + max(bytes of weights / bandwidth, FLOPs / rate), as in `net.cost`
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from aiflow_agents.evals.plans import Plan
from aiflow_agents.models.protocol import Reply
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.hooks import Asked, Called, Hook
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.runtime.work import needed
from aiflow_agents.wire.message import Message, standing_at


class Seen(NamedTuple):
    """A call that a topology made: its first pass read `share` of the `weights` (bytes) for `prefill_flops`, `steps` further ones all of them for
    `decode_flops`."""

    topology: str
    exit: int
    kind: str
    seconds: float
    steps: int
    prefill_flops: float
    decode_flops: float
    weights: float
    share: float


@dataclass(frozen=True)
class Speed:
    """Seconds a call and a pass beyond its work, bytes and FLOPs a second. `kinds`: by kind of call how many, mean seconds, and what the fit says."""

    call_s: float
    overhead_s: float
    bandwidth_Bps: float
    flops_rate: float
    kinds: dict[str, tuple[int, float, float]]


class Speeds:
    """How fast this machine is, from calls that were `seen`; `own_s` is what the runtime itself takes for a call, by topology."""

    def __init__(self, seen: Sequence[Seen], own_s: Mapping[str, float]):
        self.seen, self.own_s = seen, own_s
        self._known: dict[tuple[object, ...], Speed] = {}

    def of(self, topology: str, *exits: int) -> Speed:
        """For a node that has these exits and does what this topology asks for: to speak, to draft and to check each have a speed of their own."""
        if (topology, exits) not in self._known:
            found = fit([one for one in self.seen if one.exit in exits and one.topology == topology])
            self._known[topology, exits] = replace(found, call_s=found.call_s + self.own_s[topology])
        return self._known[topology, exits]

    def all(self) -> Iterator[tuple[str, int, Speed]]:
        """(topology, exit, its speed) of all that was seen."""
        for topology, exit in sorted({(one.topology, one.exit) for one in self.seen}):
            yield topology, exit, self.of(topology, exit)

    def network(self, network: Network, plan: Plan) -> Network:
        """The same links between nodes that all are this machine, which computes one call at a time and to its end, as fast as what this plan puts
        there."""
        nodes = dict(network.nodes)
        for name in {member["node"] for member in plan.members.values()}:
            speed = self.of(plan.topology, *sorted({member["exit"] for member in plan.members.values() if member["node"] == name}))
            how: dict[str, Any] = {"flops_rate": speed.flops_rate, "bandwidth_Bps": speed.bandwidth_Bps, "overhead_s": speed.overhead_s}
            nodes[name] = replace(nodes[name], slots=1, machine="here", cancels=False, call_s=speed.call_s, **how)
        return replace(network, nodes=nodes)


class Calls(Hook):
    """Keeps what was called."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def on_call(self, task: Asked, call: Called) -> None:
        if isinstance(call.reply, Reply) and call.usage is not None and call.reply.work != ():
            self.seen.append(_seen(task.job.topology, call))


def _seen(topology: Any, call: Called) -> Seen:
    request, reply, shape = call.request, call.reply, call.agent.shape or call.agent.info.shape
    assert isinstance(reply, Reply) and call.usage is not None
    work, share, what = needed(shape, request, reply, None), 1.0, "answer"  # only what is read first depends on what the member has read before
    if request.check is not None:
        share, what = (reply.work or ())[0].share, f"check of {len(request.check)}"
        what += ", states" if request.parcel is not None else ""
    elif request.want is not None and request.max_tokens <= len(request.begin):
        share, what = request.want.layer / shape.layers, f"states of layer {request.want.layer}"
    elif request.begin:
        what = "draft"
    fresh = "" if request.begin else ", prompt"
    exit = call.agent.info.shape.layers - 1 if call.agent.exit is None else call.agent.exit
    took, prefill_flops = call.end_s - call.start_s, max(call.usage.flops - work.decode_flops, 0.0)
    return Seen(topology.name(), exit, what + fresh, took, work.steps, prefill_flops, work.decode_flops, shape.weight_bytes, share)


class InTurns:
    """Drafting and checking where nothing goes on meanwhile, so that each call takes what it takes. The first member drafts, the last checks."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def name(self) -> str:
        return "draft-verify"

    async def run(self, task: Task, team: Team) -> Message:
        drafter, *_, checker = team
        settled: Message | None = None
        while True:
            drafted = await drafter.draft(task.question, self.tokens, after=settled)
            settled = await checker.check(task.question, drafted, after=settled)
            with standing_at(checker.node):
                if settled.ended:
                    return checker.read(settled)


def fit(seen: Sequence[Seen]) -> Speed:
    """The four numbers that are least wrong, by the logarithm of what calls of one kind and as many passes took on average."""
    from scipy.optimize import least_squares

    groups: dict[tuple[int, str, int], list[Seen]] = {}
    for one in seen:
        groups.setdefault((one.exit, one.kind, one.steps), []).append(one)
    many = np.sqrt([len(some) for some in groups.values()])

    def mean(name: str) -> np.ndarray:
        return np.array([statistics.fmean(getattr(one, name) for one in some) for some in groups.values()])

    took, steps, prefill, decode, weights, share = map(mean, ("seconds", "steps", "prefill_flops", "decode_flops", "weights", "share"))

    def says(logs: np.ndarray) -> np.ndarray:
        call, overhead, per_byte, per_flop = np.exp(logs)
        first, further = (np.maximum(read * weights * per_byte, flops * per_flop) for read, flops in ((share, prefill), (steps, decode)))
        return call + (1 + steps) * overhead + first + further

    least = took.min()
    shares = [(a, b, c, d) for a in (0.1, 0.5) for b in (0.1, 0.5) for c in (0.5, 2.0) for d in (0.1, 1.0)]
    starts = [np.log([a * least, b * least, c * least / weights.max(), d * least / (prefill + decode).max()]) for a, b, c, d in shares]

    def off(logs: np.ndarray) -> np.ndarray:
        return many * np.log(says(logs) / took)

    tries = [least_squares(off, start, loss="soft_l1") for start in starts]
    best = min(tries, key=lambda one: one.cost).x
    fitted = dict(zip(groups, says(best).tolist(), strict=True))
    call, overhead, per_byte, per_flop = np.exp(best).tolist()
    kinds = {}
    for kind in sorted({one.kind for one in seen}):
        own = [one for one in seen if one.kind == kind]
        said = statistics.fmean(fitted[one.exit, kind, one.steps] for one in own)
        kinds[kind] = len(own), statistics.fmean(one.seconds for one in own), said
    return Speed(call, overhead, 1 / per_byte, 1 / per_flop, kinds)
