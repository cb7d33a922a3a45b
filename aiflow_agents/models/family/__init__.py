"""Familial models: one checkpoint, several exits, and hidden states that another machine can go on from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiflow_agents.models.family.family import Family

__all__ = ["Family"]


def __getattr__(name: str) -> Any:
    """`Family` loads torch, so only when it is asked for."""
    if name == "Family":
        from aiflow_agents.models.family.family import Family

        return Family
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
