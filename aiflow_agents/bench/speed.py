"""How fast this machine is, as a node of a network file would say it: fitted to calls that were really made.

    a call takes   call + passes * overhead + max(bytes of weights / bandwidth, FLOPs / rate), pass by pass as in `net.cost`
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from aiflow_agents.evals.plans import Plan
from aiflow_agents.models.protocol import Reply
from aiflow_agents.net.network import Network
from aiflow_agents.runtime.hooks import Asked, Called, Hook
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.wire.message import Message, standing_at


class Seen(NamedTuple):
    """One call that was made: its first pass read `share` of the `weights` (bytes), `steps` further ones all of them; `flops` as it was billed."""

    exit: int
    kind: str
    seconds: float
    steps: int
    flops: float
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
    """How fast this machine is at each exit, from calls that were `seen`; `own_s` is what the runtime itself takes for a call."""

    def __init__(self, seen: Sequence[Seen], own_s: float):
        self.seen, self.own_s = seen, own_s
        self._known: dict[tuple[int, ...], Speed] = {}

    def of(self, *exits: int) -> Speed:
        """For a node with these exits."""
        if exits not in self._known:
            found = fit([one for one in self.seen if one.exit in exits])
            self._known[exits] = replace(found, call_s=found.call_s + self.own_s)
        return self._known[exits]

    def network(self, network: Network, plan: Plan) -> Network:
        """The same links between nodes that all are this machine, which computes one call at a time, each as fast as at what this plan puts there."""
        nodes = dict(network.nodes)
        for name in {member["node"] for member in plan.members.values()}:
            speed = self.of(*sorted({member["exit"] for member in plan.members.values() if member["node"] == name}))
            how: dict[str, Any] = {"flops_rate": speed.flops_rate, "bandwidth_Bps": speed.bandwidth_Bps, "overhead_s": speed.overhead_s}
            nodes[name] = replace(nodes[name], slots=1, machine="here", call_s=speed.call_s, **how)
        return replace(network, nodes=nodes)


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
        what += ", states" if request.parcel is not None else ""
    elif request.want is not None and request.max_tokens <= len(request.begin):
        steps, share, what = 0, request.want.layer / shape.layers, f"states of layer {request.want.layer}"
    elif request.begin:
        steps, what = reply.tokens_out - (reply.finish != "unsure"), "draft"
    fresh = "" if request.begin else ", prompt"
    exit = call.agent.info.shape.layers - 1 if call.agent.exit is None else call.agent.exit
    return Seen(exit, what + fresh, call.end_s - call.start_s, steps, call.usage.flops, shape.weight_bytes, share)


class InTurns:
    """Drafting and checking where nothing goes on meanwhile, so that each call takes what it takes. The first member drafts, the last checks."""

    def __init__(self, tokens: int):
        self.tokens = tokens

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

    groups: dict[tuple[str, int], list[Seen]] = {}
    for one in seen:
        groups.setdefault((one.kind, one.steps), []).append(one)
    many = np.sqrt([len(some) for some in groups.values()])

    def mean(name: str) -> np.ndarray:
        return np.array([statistics.fmean(getattr(one, name) for one in some) for some in groups.values()])

    took, steps, flops, weights, share = map(mean, ("seconds", "steps", "flops", "weights", "share"))

    def says(logs: np.ndarray) -> np.ndarray:
        call, overhead, per_byte, per_flop = np.exp(logs)
        return call + (1 + steps) * overhead + np.maximum((share + steps) * weights * per_byte, flops * per_flop)

    least = took.min()
    shares = [(a, b, c, d) for a in (0.1, 0.5) for b in (0.1, 0.5) for c in (0.5, 2.0) for d in (0.1, 1.0)]
    starts = [np.log([a * least, b * least, c * least / weights.max(), d * least / flops.max()]) for a, b, c, d in shares]

    def off(logs: np.ndarray) -> np.ndarray:
        return many * np.log(says(logs) / took)

    tries = [least_squares(off, start, loss="soft_l1") for start in starts]
    best = min(tries, key=lambda one: one.cost).x
    fitted = dict(zip(groups, says(best).tolist(), strict=True))
    call, overhead, per_byte, per_flop = np.exp(best).tolist()
    kinds = {}
    for kind in sorted({one.kind for one in seen}):
        own = [one for one in seen if one.kind == kind]
        said = statistics.fmean(fitted[kind, one.steps] for one in own)
        kinds[kind] = len(own), statistics.fmean(one.seconds for one in own), said
    return Speed(call, overhead, 1 / per_byte, 1 / per_flop, kinds)
