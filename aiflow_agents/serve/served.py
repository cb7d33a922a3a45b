"""What is served, by the names of models that clients use.

    specialists            the team, under the topology that it is served with
    specialists/majority   the team under another topology
    specialists/oak        one member
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from aiflow_agents import catalog
from aiflow_agents.errors import AIFlowError, NotHere, UnknownName, UserError
from aiflow_agents.evals.fitted import Fitted, plain
from aiflow_agents.evals.rehearsal import rehearse_one
from aiflow_agents.models.protocol import Sampling
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.serve.refusal import Refusal
from aiflow_agents.serve.schema import Asked, TopologyChoice
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology

QUESTION = Task("rehearsal", "1+1=")


@dataclass(frozen=True, eq=False)
class Served:
    """One model of the endpoint. `member` is its only member's name where it is one, `team` what `name` begins with."""

    name: str
    team: Team
    topology: Topology
    member: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the weights, the tokenizers, or the way of talking change."""
        how = self.topology.name(), plain(self.topology) or self.topology.learned()
        said = [*how, *((agent.fingerprint, agent.calibration) for agent in self.team)]
        return f"fp_{hashlib.blake2b(repr(said).encode(), digest_size=6).hexdigest()}"

    @cached_property
    def streaming(self) -> Topology:
        """How it answers who reads along: a member token by token, a team as its topology does."""
        return self.topology if self.member is None else load_topology("stream", {"member": self.member})

    def tailored(self, asked: Asked) -> Team:
        """The team as this request wants it: how tokens are drawn, how many at most, and, of a member, where it stops."""
        if asked.temperature is None and asked.top_p is None and asked.tokens is None and not asked.stop:
            return self.team
        agents = {}
        for agent in self.team:
            heat = agent.sampling.temperature if asked.temperature is None else asked.temperature
            nucleus = agent.sampling.top_p if asked.top_p is None else asked.top_p
            stop = tuple(asked.stop) if self.member else ()
            agents[agent.name] = replace(agent, sampling=Sampling(heat, nucleus), max_tokens=asked.tokens or agent.max_tokens, stop=stop)
        return replace(self.team, agents=agents)


class Models:
    """Everything that is served."""

    def __init__(self, models: Iterable[Served]):
        self.by_name: dict[str, Served] = {}
        for served in models:
            if served.name in self.by_name:
                raise UserError(f"two models would be called {served.name}: give the member, the topology or the team another name")
            self.by_name[served.name] = served

    @classmethod
    def of(
        cls, teams: Sequence[Team], topology: str | None = None, parameters: Mapping[str, Any] | None = None, allowed: Sequence[str] = (),
        fitted: Fitted | None = None,
    ) -> Models:  # fmt: skip
        """The teams under `topology` (by default a majority), under every other one that fits (or those `allowed`), and their members.

        With a `fitted` run topologies are as they were evaluated there, by default the best one; what learns and was not in that run is left out.

        Raises UserError where `topology`, or one of `allowed`, does not fit a team.
        """
        load: Callable[..., Topology] = fitted.topology if fitted else load_topology
        models: list[Served] = []
        for team in teams:
            usual = None if fitted else "majority" if len(team) > 1 else "single"
            default = _fitting(load(topology or usual, parameters), team)
            own = default.name()
            models += [Served(team.name, team, default), Served(f"{team.name}/{own}", team, default)]
            if allowed:
                others = (_fitting(load(name), team) for name in allowed)
                models += [Served(f"{team.name}/{other.name()}", team, other) for other in others if other.name() != own]
            else:
                found = (_other(load, entry.name, team) for entry in catalog.entries("topology") if entry.name not in (own, "single"))
                models += [Served(f"{team.name}/{other.name()}", team, other) for other in found if other is not None]
            single = load_topology("single")
            models += [Served(f"{team.name}/{agent.name}", team.only(agent.name), single, agent.name) for agent in team]
        return cls(models)

    def find(self, model: str, choice: TopologyChoice | None = None) -> Served:
        """Raises Refusal: 404 for a model that is not served, 400 for a topology that is not, or that does not take these parameters."""
        served = self.by_name.get(model)
        if served is None:
            raise Refusal(404, str(UnknownName("model", model[:200], self.by_name)), code="model_not_found", param="model")
        if choice is None:
            return served
        if served.member:
            raise Refusal(400, f"{model} is one member, and talks to nobody: topology is for a team", param="topology")
        if choice.name is not None:
            team, name = served.team.name, f"{served.team.name}/{choice.name}"
            if model not in (team, name) or name not in self.by_name or self.by_name[name].member:
                known = [known.removeprefix(f"{team}/") for known, other in self.by_name.items() if other.team is served.team and known != team]
                raise Refusal(400, str(UnknownName(f"topology of {model}", choice.name[:200], known)), param="topology.name")
            served = self.by_name[name]
        return replace(served, topology=_changed(served, choice.params)) if choice.params else served

    def __iter__(self) -> Iterator[Served]:
        return iter(self.by_name.values())


def _changed(served: Served, params: Mapping[str, Any]) -> Topology:
    """The topology of a served model with other parameters; those that are not given stay as they are served."""
    from pydantic import ValidationError

    kind = type(served.topology)
    try:
        changed = kind(**{**{name: getattr(served.topology, name) for name in served.topology.model_fields_set}, **params})
        changed.check(served.team)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            unknown = UnknownName(f"parameter of topology '{kind.name()}'", key[:200], kind.model_fields)
            raise Refusal(400, str(unknown), param="topology.params") from None
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        raise Refusal(400, f"topology '{kind.name()}', parameter {key}: {said}", param=f"topology.params.{key}") from None
    except AIFlowError as error:
        raise Refusal(400, str(error), param="topology.params") from None
    return changed


def _fitting(topology: Topology, team: Team) -> Topology:
    topology.check(team)
    rehearse_one(topology, team, QUESTION)
    return topology


def _other(load: Callable[..., Topology], name: str, team: Team) -> Topology | None:
    """A topology, if it can be had as it is and this team can be asked through it."""
    try:
        return _fitting(load(name), team)
    except (UserError, NotHere):
        return None
