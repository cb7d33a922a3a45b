"""What it took to decode an answer on several tiers: tokens drafted, checked, kept and wasted, and how long the cloud was busy with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from aiflow_agents.net.network import TIERS
from aiflow_agents.runtime.ledger import Ledger

if TYPE_CHECKING:
    from aiflow_agents.runtime.team import Team


@dataclass(frozen=True)
class Decoding:
    """Of one answer of `tokens` tokens, its end among them. `wasted` are drafted tokens that their first checker did not keep, or never got.

    `checks`: calls of the member that decides; `cloud_flops` and `cloud_busy_s`: what the highest tier has computed, and how long it was busy.
    """

    tokens: int
    drafted: int
    checked: int
    kept: int
    wasted: int
    checks: int
    cloud_flops: float
    cloud_busy_s: float

    @classmethod
    def of(cls, ledger: Ledger, team: Team, tokens: int) -> Decoding:
        """From a task's ledger. Checking begins with the first member in the team's order of tiers that has checked anything."""
        tier = {agent.name: TIERS.index(team.network.node(agent.node).tier) for agent in team}
        highest = max(tier.values())
        spent = {name: ledger.members[name] for name in sorted(ledger.members, key=lambda name: tier[name])}
        checkers = [one for one in spent.values() if one.checked]
        drafted = sum(one.drafted for one in spent.values())
        cloud = [one for name, one in spent.items() if tier[name] == highest]
        return cls(
            tokens=tokens,
            drafted=drafted,
            checked=sum(one.checked for one in checkers),
            kept=sum(one.kept for one in checkers),
            wasted=max(drafted - checkers[0].kept, 0) if checkers else drafted,
            checks=checkers[-1].calls if checkers else 0,
            cloud_flops=sum(one.flops for one in cloud),
            cloud_busy_s=sum(one.busy_s for one in cloud),
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Of the tokens that were checked, the share that stayed."""
        return self.kept / self.checked if self.checked else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def per_token(decodings: Sequence[Mapping[str, Any]], usage: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Means over all tokens of these answers (`Decoding.as_json`, and their usage), for an arm: ratios of sums."""

    def total(key: str) -> float:
        return sum(one[key] for one in decodings)

    tokens, checked = max(total("tokens"), 1), total("checked")
    return {
        "acceptance_rate": total("kept") / checked if checked else None,
        "wasted_drafts": total("wasted") / len(decodings),
        "tokens_a_check": None if not total("checks") else tokens / total("checks"),
        "bytes_per_token": sum(one["wire_bytes"] for one in usage) / tokens,
        "joules_per_token": sum(one["energy_j"] for one in usage) / tokens,
        "cloud_flops_per_token": total("cloud_flops") / tokens,
        "cloud_busy_ms_per_token": 1000 * total("cloud_busy_s") / tokens,
    }
