"""The ledger of one task: every cost is booked here, that of dropped and cancelled work too."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiflow_agents.net.network import Hop
from aiflow_agents.wire.message import Usage


@dataclass(slots=True)
class Spent:
    """What one member has cost a task so far. It has `drafted` so many tokens, and of those that it has `checked` so many were `kept`."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    flops: float = 0.0
    energy_j: float = 0.0
    busy_s: float = 0.0
    drafted: int = 0
    checked: int = 0
    kept: int = 0


@dataclass(slots=True)
class Ledger:
    """Running totals. `links` has the bytes per direction of each link, `members` what each of them has cost, `radio_j` the joules of all links."""

    flops: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    calls: int = 0
    wire_bytes: int = 0
    energy_j: float = 0.0
    radio_j: float = 0.0
    links: dict[tuple[str, str], int] = field(default_factory=dict)
    members: dict[str, Spent] = field(default_factory=dict)

    def book_call(self, member: str, flops: float, tokens_in: int, tokens_out: int, energy_j: float, busy_s: float = 0.0) -> None:
        """One call, or the share of it that was done before it was cancelled. busy_s: how long it held its node."""
        self.flops += flops
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.calls += 1
        self.energy_j += energy_j
        spent = self.spent(member)
        spent.calls += 1
        spent.busy_s += busy_s
        spent.tokens_in += tokens_in
        spent.tokens_out += tokens_out
        spent.flops += flops
        spent.energy_j += energy_j

    def spent(self, member: str) -> Spent:
        """What this member has cost, to be added to."""
        found = self.members.get(member)
        if found is None:
            found = self.members[member] = Spent()
        return found

    def book_hop(self, hop: Hop, energy_j: float, nbytes: int) -> None:
        """One link's part of a transfer. `wire_bytes` counts a message once on every link that carries it."""
        self.wire_bytes += nbytes
        self.energy_j += energy_j
        self.radio_j += energy_j
        self.links[hop.src, hop.dst] = self.links.get((hop.src, hop.dst), 0) + nbytes

    def usage(self, latency_s: float) -> Usage:
        """The task's bill. latency_s: from home to home."""
        return Usage(self.flops, self.tokens_in, self.tokens_out, self.calls, self.wire_bytes, latency_s, self.energy_j)
