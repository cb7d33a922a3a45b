"""What the page and the terminal both need to know of a summary's arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("member", "rival", "topology", "placebo")
COSTS = (("wire_bytes", "bytes on the wire", "B"), ("flops", "FLOPs", ""), ("latency", "median latency", "s"),
         ("energy_j", "energy", "J"), ("tokens", "tokens", ""))


def chosen(summary: Mapping[str, Any], role: str) -> str | None:
    """The arm that is the `best_member` or the `best_topology`, if there is one."""
    return (summary.get(role) or {}).get("arm")


def is_ceiling(name: str) -> bool:
    """Whether this arm could not really be run."""
    return name.startswith("oracle")


def sorted_arms(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """By kind, then the best first."""
    order = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(summary["arms"].items(), key=lambda item: (order.get(item[1]["kind"], len(KINDS)), -item[1]["accuracy"], item[0]))


def cost(arm: Mapping[str, Any], key: str) -> float | None:
    """One of COSTS: a mean per question, or the median latency."""
    if key == "tokens":
        parts = (arm.get("tokens_in"), arm.get("tokens_out"))
        return None if None in parts else sum(parts)  # type: ignore[arg-type]
    return (arm.get("latency_s") or {}).get("p50") if key == "latency" else arm.get(key)


def capacities(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """The Information Capacity of every member that has one (see `evals.measures`), the largest first."""
    rows = ((name, (arm.get("measures") or {}).get("information_capacity")) for name, arm in summary["arms"].items())
    return sorted(((name, row) for name, row in rows if row), key=lambda pair: -pair[1]["value"])


def capture_text(capture: Any) -> str:
    """A verdict's capture, (share, (low, high)), in words; "-" where there is none."""
    return f"{100 * capture[0]:.0f} % ({100 * capture[1][0]:.0f} to {100 * capture[1][1]:.0f})" if capture else "-"
