"""AIFlow Agents: teams of models over devices, edge and cloud, and evidence on whether the team beats its best member.

The names below are all a script needs; each is imported when it is first used, so `import aiflow_agents` is quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from aiflow_agents.errors import OverBudget
    from aiflow_agents.evals.evaluate import Report, evaluate
    from aiflow_agents.evals.suite import Suite
    from aiflow_agents.models.protocol import ModelInfo, Reply, Request, Sampling
    from aiflow_agents.net.together import first, gather
    from aiflow_agents.runtime.budget import Budget
    from aiflow_agents.runtime.hooks import Hook
    from aiflow_agents.runtime.otel import OpenTelemetry
    from aiflow_agents.runtime.run import Result
    from aiflow_agents.runtime.task import Task
    from aiflow_agents.runtime.team import Team
    from aiflow_agents.topology.base import Needs, Topology
    from aiflow_agents.topology.load import load_topology
    from aiflow_agents.wire.message import Message

_PLACES = {
    "Budget": "runtime.budget",
    "Hook": "runtime.hooks",
    "Message": "wire.message",
    "ModelInfo": "models.protocol",
    "Needs": "topology.base",
    "OpenTelemetry": "runtime.otel",
    "OverBudget": "errors",
    "Reply": "models.protocol",
    "Report": "evals.evaluate",
    "Request": "models.protocol",
    "Result": "runtime.run",
    "Sampling": "models.protocol",
    "Suite": "evals.suite",
    "Task": "runtime.task",
    "Team": "runtime.team",
    "Topology": "topology.base",
    "evaluate": "evals.evaluate",
    "first": "net.together",
    "gather": "net.together",
    "load_topology": "topology.load",
}

__all__ = [
    "Budget",
    "Hook",
    "Message",
    "ModelInfo",
    "Needs",
    "OpenTelemetry",
    "OverBudget",
    "Reply",
    "Report",
    "Request",
    "Result",
    "Sampling",
    "Suite",
    "Task",
    "Team",
    "Topology",
    "__version__",
    "evaluate",
    "first",
    "gather",
    "load_topology",
    "telemetry_off",
    "topologies",
]


TELEMETRY_OFF = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def telemetry_off() -> None:
    """Let Ray, vLLM and Hugging Face send nothing, unless the user's environment says otherwise. They look when they are imported or started."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "topologies":
        return import_module("aiflow_agents.topologies")
    if name not in _PLACES:
        raise AttributeError(f"module 'aiflow_agents' has no attribute '{name}'")
    telemetry_off()  # the front door: what lies behind it may import them
    return getattr(import_module(f"aiflow_agents.{_PLACES[name]}"), name)
