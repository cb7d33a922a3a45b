"""From a name or a path to a topology with its parameters."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aiflow_agents import catalog
from aiflow_agents.config import load_python
from aiflow_agents.errors import ConfigError, UnknownName, UserError
from aiflow_agents.topology.base import Topology

PREFIX = "aiflow_topology_"  # of the names of modules that are topology files


def load_class(path: Path) -> type[Topology]:
    """The topology that a file defines: the last subclass of `Topology` written in it. Runs the file, which is the user's own code."""
    name = f"{PREFIX}{path.stem.replace('-', '_')}_{abs(hash((path, path.stat().st_mtime_ns))):x}"  # an edited file is read anew
    module = sys.modules.get(name) or load_python(path, name)
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Topology) and value.__module__ == name]
    if not found:
        raise ConfigError("defines no Topology: expected `class Name(Topology)`", file=path)
    return found[-1]


def file_of(topology: Topology) -> Path | None:
    """The file from which `load_class` makes this topology's class; None for a class of a notebook, a script or an imported module."""
    module = type(topology).__module__
    file = getattr(sys.modules.get(module), "__file__", None) if module.startswith(PREFIX) else None
    return Path(file) if file and Path(file).is_file() and load_class(Path(file)) is type(topology) else None


def load_topology(name: str, parameters: Mapping[str, Any] | None = None) -> Topology:
    """A topology by name or path, with its parameters checked. Raises UnknownName, or UserError naming the parameter and what was expected."""
    entry = catalog.find("topology", name)
    topology = load_class(entry.path)
    try:
        return topology(**dict(parameters or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(str(UnknownName(f"parameter of topology '{name}'", key, topology.model_fields))) from None
        expected = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        raise UserError(f"topology '{name}', parameter {key}: {expected} (got {first['input']!r})") from None
