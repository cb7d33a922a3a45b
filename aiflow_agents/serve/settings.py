"""What is served and how, as plain data: it may travel to another process, which then builds the endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from aiflow_agents import catalog
from aiflow_agents.errors import UserError
from aiflow_agents.evals.fitted import Fitted
from aiflow_agents.runtime.placement import seated
from aiflow_agents.runtime.team import Team
from aiflow_agents.serve.gate import Keys, Limits
from aiflow_agents.serve.served import Models


@dataclass(frozen=True)
class Settings:
    """`teams` and topologies are names or paths (no team: that of the run `fitted`); `keys` are digests, never the keys themselves."""

    teams: Sequence[str]
    topology: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    allowed: Sequence[str] = ()
    network: str | None = None
    runtime: Literal["ray", "inline"] = "ray"
    ray_address: str | None = None
    spread: bool = False  # members' models on Ray nodes of their tiers
    host_gpus: float = 0.0
    keys: Sequence[bytes] = ()
    limits: Limits = Limits()
    seed: int = 0
    pace: bool = False
    fitted: str | None = None  # a run folder

    def models(self) -> Models:
        """Raises UserError for what is not there, or does not fit."""
        fitted = Fitted.read(self.fitted) if self.fitted else None
        if fitted and len(self.teams) > 1:
            raise UserError(f"{self.fitted} was fitted for one team, and {len(self.teams)} are to be served: {', '.join(self.teams)}")
        if fitted and not self.teams:
            teams = [fitted.load_team(self.network)]
        else:
            teams = [Team.load(team, network=self.network) for team in self.teams]
            teams = [fitted.team(team) for team in teams] if fitted else teams
        if self.spread:
            teams = [seated(team) for team in teams]
        return Models.of(teams, self.topology, self.parameters, self.allowed, fitted)

    def located(self) -> Settings:
        """The same with paths in place of names, so that it means the same wherever it is read."""
        def path(kind: Literal["team", "topology", "network"], name: str) -> str:
            return str(catalog.find(kind, name).path.resolve())

        return replace(
            self,
            teams=[path("team", team) for team in self.teams],
            topology=self.topology and path("topology", self.topology),
            allowed=[path("topology", name) for name in self.allowed],
            network=self.network and path("network", self.network),
            fitted=self.fitted and str(Path(self.fitted).resolve()),
        )


def digests_from(variable: str | None) -> list[bytes]:
    """Of the keys in an environment variable, one or several with commas between. Raises UserError where it is not set."""
    if variable is None:
        return []
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not keys:
        raise UserError(f"the environment variable {variable}, which holds the API keys, is not set")
    return Keys(keys).digests
