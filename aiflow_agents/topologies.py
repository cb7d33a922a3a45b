"""The topologies that the catalog finds, as classes: `from aiflow_agents.topologies import Debate`, or `topologies.Debate(rounds=3)`.

A class is looked for by the name of its file, wherever `aiflow list topology` shows one: `SelfConsistency` is what `self-consistency.py` defines.
`load_topology(name, parameters)` does the same by name or path, and says in one line what is wrong with a parameter.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Runs the file of that topology. Raises AttributeError, with the nearest names, where there is none."""
    from aiflow_agents.errors import UnknownName
    from aiflow_agents.topology.load import load_class

    found = {} if name.startswith("_") else _by_class()
    if name not in found:
        raise AttributeError(str(UnknownName("topology", name, found)))
    return load_class(found[name])


def __dir__() -> list[str]:
    return sorted(_by_class())


def _by_class() -> dict[str, Any]:
    """class -> its file, for all that the catalog holds."""
    from aiflow_agents import catalog

    return {"".join(part[:1].upper() + part[1:] for part in e.name.replace("_", "-").split("-")): e.path for e in catalog.entries("topology")}
