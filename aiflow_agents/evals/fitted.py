"""What an evaluation has learned on dev, kept in its run folder for whoever asks or serves the same team afterwards.

`fitted.json`: what each member was, and how its confidence is calibrated; what each topology was asked to be, and what it has become.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError

from aiflow_agents import catalog
from aiflow_agents.errors import UserError
from aiflow_agents.evals.run_folder import FITTED, read_config
from aiflow_agents.evals.trial import settings
from aiflow_agents.models.confidence import Calibration
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.extraction import Named, Pattern, extraction
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology


class MemberWas(BaseModel):
    """What a member said on dev depends on these; where one of them differs, what was learned does not hold."""

    model_config = ConfigDict(extra="forbid")
    model: str
    weights: str
    tokenizer: str
    dtype: str
    exit: int | None
    keep: float | None
    role: str
    prompt: str | None
    temperature: float
    top_p: float

    @classmethod
    def of(cls, agent: Agent) -> MemberWas:
        info, drawn = agent.info, agent.sampling
        return cls(
            model=info.name, weights=info.weights_hash, tokenizer=info.tokenizer_hash, dtype=info.dtype, exit=agent.exit, keep=agent.keep,
            role=agent.role, prompt=agent.prompt, temperature=drawn.temperature, top_p=drawn.top_p,
        )  # fmt: skip


class FittedMember(BaseModel):
    model_config = ConfigDict(extra="forbid")
    was: MemberWas
    max_tokens: int
    slope: float
    bias: float


class FittedTopology(BaseModel):
    """`learned` is None where it cannot be written down as plain data."""

    model_config = ConfigDict(extra="forbid")
    name: str
    asked: dict[str, Any]
    learned: dict[str, Any] | None


class FittedFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    team: str
    extract: Named | Pattern
    best_topology: str | None
    members: dict[str, FittedMember]
    topologies: dict[str, FittedTopology]


def written(team: Team, extract: Named | Pattern, asked: Mapping[str, Topology], fitted: Mapping[str, Topology], best: str | None) -> str:
    """The text of fitted.json. `team` is calibrated; `asked` and `fitted` are the topologies by arm, before and after dev."""
    members = {
        agent.name: FittedMember(
            was=MemberWas.of(agent), max_tokens=agent.max_tokens, slope=agent.calibration.slope, bias=agent.calibration.bias
        )
        for agent in team
    }  # fmt: skip
    topologies = {
        arm: FittedTopology(name=topology.name(), asked=plain(asked[arm]) or {}, learned=_whole(topology)) for arm, topology in fitted.items()
    }
    file = FittedFile(team=team.name, extract=extract, best_topology=best, members=members, topologies=topologies)
    return json.dumps(file.model_dump(mode="json"), separators=(",", ":")) + "\n"


def plain(topology: Topology) -> dict[str, Any] | None:
    """All parameters as plain data; None where there are others."""
    try:
        return json.loads(json.dumps(topology.model_dump(mode="json")))
    except (PydanticSerializationError, TypeError, ValueError):
        return None


def _whole(topology: Topology) -> dict[str, Any] | None:
    """The same where they make just this topology again."""
    data = plain(topology)
    try:
        return data if data is not None and settings(type(topology)(**data)) == settings(topology) else None
    except ValidationError:
        return None


@dataclass(frozen=True)
class Fitted:
    """What the run in this folder has learned. Raises UserError, in one line, for whatever it was not learned for."""

    run: Path
    file: FittedFile

    @classmethod
    def read(cls, run: str | Path) -> Fitted:
        """Raises UserError where the run has not come so far, or the folder holds none."""
        path = Path(run)
        read_config(path)
        if not (path / FITTED).is_file():
            raise UserError(f"{path} has no {FITTED}: its dev split is not done, or it is older than that; aiflow eval --resume {path} writes it")
        try:
            file = FittedFile.model_validate_json((path / FITTED).read_bytes())
        except ValidationError:
            raise UserError(f"{path / FITTED} is damaged; make it again: aiflow eval --resume {path}") from None
        return cls(path, file)

    def load_team(self, network: str | None = None) -> Team:
        """The run's own team, fitted, on the network that it ran on or another."""
        config = read_config(self.run)
        if config.team.startswith(catalog.IN_PYTHON):
            raise UserError(f"the team of {self.run} was made in Python, and no file holds it: name a team")
        here = None if config.network.startswith(catalog.IN_PYTHON) else config.network
        return self.team(Team.load(config.team, network=network or here))

    def team(self, team: Team) -> Team:
        """The same team as it was evaluated: confidences calibrated, answers found and as long as there."""
        differ = list(self._differ(team))
        if differ:
            raise UserError(f"{self.run} was fitted for another team than {team.name}: {'; '.join(differ)}")
        extract, agents = extraction(self.file.extract), {}
        for agent in team:
            was = self.file.members[agent.name]
            agents[agent.name] = replace(agent, max_tokens=was.max_tokens, extract=extract, calibration=Calibration(was.slope, was.bias))
        return replace(team, agents=agents)

    def _differ(self, team: Team) -> Iterator[str]:
        if {*team.agents} != {*self.file.members}:
            yield f"its members were {', '.join(self.file.members)}, and here they are {', '.join(team.agents)}"
            return
        for agent in team:
            was, now = self.file.members[agent.name].was.model_dump(), MemberWas.of(agent).model_dump()
            for key in was:
                if was[key] != now[key]:
                    yield f"{agent.name}'s {key} was {_short(was[key])} and is {_short(now[key])}"

    def best(self) -> str:
        """The arm of the best topology on dev."""
        if self.file.best_topology is None:
            raise UserError(f"{self.run} has no topology: name one with --topology")
        return self.file.best_topology

    def topology(self, name: str | None, parameters: Mapping[str, Any] | None = None) -> Topology:
        """A topology as it was evaluated, by name or path and the parameters that it was asked to have there; None: the best on dev.

        Who names no parameters means the only one of that name, or the one that was asked to have none. What learns nothing is as it is.
        """
        if name is None:
            if parameters:
                raise UserError(f"-T sets parameters of a topology, and none is given: --topology; {self.run} has {', '.join(self.file.topologies)}")
            arm = self.best()
            return self._made(load_topology(self._name(arm)), arm)
        asked = load_topology(name, parameters)
        alike = {arm: one for arm, one in self.file.topologies.items() if one.name == asked.name()}
        same = [arm for arm, one in alike.items() if one.asked == plain(asked)] or ([*alike] if len(alike) == 1 and not parameters else [])
        if same:
            return self._made(asked, same[0])
        if type(asked).fit is Topology.fit and not asked.control:  # it learns nothing
            return asked
        given = f"({', '.join(f'{key}={value}' for key, value in parameters.items())})" if parameters else ""
        raise UserError(f"{self.run} has not fitted '{asked.name()}{given}'; it has {', '.join(self.file.topologies) or 'no topology'}")

    def _name(self, arm: str) -> str:
        """By which name or path config.json knows the topology of an arm."""
        wanted = self.file.topologies[arm].name
        for pattern in read_config(self.run).topologies:
            for name in pattern:
                if not name.startswith(catalog.IN_PYTHON) and load_topology(name).name() == wanted:
                    return name
        raise UserError(f"topology '{arm}' of {self.run} was made in Python, and no file holds it: name another with --topology")

    def _made(self, asked: Topology, arm: str) -> Topology:
        learned = self.file.topologies[arm].learned
        if learned is None:
            raise UserError(f"what '{arm}' has learned in {self.run} is no plain data, so it is not kept")
        try:
            return type(asked)(**learned)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise UserError(f"'{arm}' of {self.run} is not as it was: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _short(value: Any) -> str:
    """In a line of text. A hash is as long as config.json has it."""
    text = str(value)
    return text[:12] if len(text) >= 32 and text.isalnum() else text if len(text) <= 60 else f"{text[:57]}..."
