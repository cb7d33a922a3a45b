"""A team: the agents of one run, on the nodes of one network, and the home where the question arises and the answer must arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from aiflow_agents import catalog
from aiflow_agents.config import line_of, load_yaml
from aiflow_agents.errors import ConfigError, UnknownName, UserError
from aiflow_agents.models.backends import Behind, Kind
from aiflow_agents.models.confidence import AS_IT_IS, Calibration
from aiflow_agents.models.http import Endpoint
from aiflow_agents.models.protocol import Sampling, Shape
from aiflow_agents.net.cost import named_shape
from aiflow_agents.net.network import Network
from aiflow_agents.net.together import gather, within_budget
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.extraction import Extract
from aiflow_agents.wire.message import Message

if TYPE_CHECKING:
    from aiflow_agents.runtime.run import Result

DEFAULT_NETWORK = "home-wifi"
MAX_TOKENS = 32
T = TypeVar("T")


class SamplingFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)


class MemberFile(BaseModel):
    """One member of a team file."""

    model_config = ConfigDict(extra="forbid")
    backend: Kind = "family"
    model: str = Field(description="a model's name or folder")
    tier: Literal["device", "edge", "cloud"]
    node: str | None = None
    role: str = "member"
    prompt: str | None = None
    sampling: SamplingFile = SamplingFile()
    max_tokens: Annotated[int, Field(gt=0)] | None = Field(default=None, description="default: as the suite says, or else 32")
    costs_as: str | None = None
    exit: Annotated[int, Field(ge=0)] | None = None
    keep: Annotated[float, Field(gt=0, le=1, description="share of a decomposed model's parameters")] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="of the backend `transformers`; default: float32")
    http: Endpoint | None = Field(default=None, description="where the backend `http` asks: url, key, ...")

    @field_validator("model")
    @classmethod
    def _model_is_there(cls, name: str, info: ValidationInfo) -> str:
        if info.data.get("backend") == "http":
            return name
        if info.data.get("backend") == "transformers":  # a folder beside the file, a model of ours, or a name on the hub
            beside = (_beside(info) or Path()) / name
            return str(beside) if beside.is_dir() else _ours(name) or name
        return _known(lambda: str(catalog.find("model", name, base=_beside(info)).path))

    @model_validator(mode="after")
    def _keys_belong_to_the_backend(self) -> MemberFile:
        if self.backend != "family" and (self.exit is not None or self.keep is not None):
            raise ValueError(f"exit and keep choose a part of a family; the backend {self.backend} has none")
        if (self.backend == "http") != (self.http is not None):
            raise ValueError("the backend http needs http: {url: ...}" if self.http is None else f"http is not for the backend {self.backend}")
        if self.backend == "http" and self.costs_as is None:
            raise ValueError("of a model behind an endpoint nobody knows what it costs: name a shape with costs_as")
        if self.dtype is not None and self.backend != "transformers":
            raise ValueError(f"dtype is for the backend transformers, not {self.backend}")
        return self

    @field_validator("costs_as")
    @classmethod
    def _shape_is_known(cls, name: str | None) -> str | None:
        return _known(lambda: name if name is None or named_shape(name) else None)


class TeamFile(BaseModel):
    """A team file: agents/<name>.yaml."""

    model_config = ConfigDict(extra="forbid")
    description: str = ""
    network: str = DEFAULT_NETWORK
    members: dict[str, MemberFile] = Field(min_length=1)

    @field_validator("network")
    @classmethod
    def _network_is_there(cls, name: str, info: ValidationInfo) -> str:
        return _known(lambda: str(catalog.find("network", name, base=_beside(info)).path))


def _ours(name: str) -> str | None:
    """The folder of a model that is in the catalog."""
    try:
        return str(catalog.find("model", name).path)
    except UserError:
        return None


def _beside(info: ValidationInfo) -> Path | None:
    """Paths in a file start at its folder."""
    file = (info.context or {}).get("file")
    return Path(file).parent if file else None


def _known(look: Callable[[], T]) -> T:
    """Names that are not known become mistakes of the file, with their line."""
    try:
        return look()
    except UserError as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True, eq=False)
class Team:
    """Behaves like the ordered collection of its agents. `async for` nothing: ask them."""

    name: str
    agents: Mapping[str, Agent]
    network: Network

    @classmethod
    def load(cls, name: str | Path, *, network: str | Path | None = None, max_tokens: int = MAX_TOKENS) -> Team:
        """A team by name or path, on its own network or another. Loads no weights. `max_tokens` is for members whose file does not say how many.

        Raises UnknownName, ConfigError (file, line, key) or UserError (a model folder without weights).
        """
        entry = catalog.find("team", str(name))
        read = load_yaml(entry.path, TeamFile)
        net = Network.load(catalog.find("network", str(network or read.network)).path)
        agents = {}
        taken: dict[str, int] = {}
        for member, spec in read.members.items():
            node = _place(spec, member, net, taken, entry.path)
            agents[member] = _agent(member, spec, node, net.home, entry.path, max_tokens)
        team = cls(entry.name, agents, net)
        for agent in team:
            net.route(net.home, agent.node)  # raises NoRoute before anything runs
            net.route(agent.node, net.home)
        return team

    @property
    def home(self) -> str:
        return self.network.home

    def __iter__(self) -> Iterator[Agent]:
        return iter(self.agents.values())

    def __len__(self) -> int:
        return len(self.agents)

    def __getitem__(self, name: str) -> Agent:
        if name not in self.agents:
            raise UnknownName(f"member of team '{self.name}'", name, self.agents)
        return self.agents[name]

    def role(self, role: str) -> Agent | None:
        """The first agent with this role, if any."""
        return next((agent for agent in self if agent.role == role), None)

    def by_depth(self) -> list[Agent]:
        """The agents, those that leave a family earlier first; a whole model comes last."""
        return sorted(self, key=lambda agent: (agent.exit is None, agent.exit or 0))

    def only(self, *names: str) -> Team:
        """The same team with these members alone."""
        return replace(self, agents={name: self[name] for name in names})

    def beside(self, name: str, model: Path, max_tokens: int = MAX_TOKENS) -> Team:
        """Another model alone, under the same conditions: on this network, at a node of the highest tier that there is.

        Raises UserError for a folder that is no model.
        """
        from aiflow_agents.models.family.model import model_info

        node = next(nodes[0] for tier in ("cloud", "edge", "device") if (nodes := self.network.tier(tier)))
        self.network.route(self.home, node)  # raises NoRoute before anything runs
        return replace(self, agents={name: Agent(name, str(model), model_info(model), node, self.home, max_tokens=max_tokens)})

    def calibrated(self, calibrations: Mapping[str, Calibration]) -> Team:
        """The same team, whose confidences mean what they say."""
        return replace(self, agents={name: replace(agent, calibration=calibrations.get(name, AS_IT_IS)) for name, agent in self.agents.items()})

    def extracting(self, extract: Extract) -> Team:
        """The same team, of whose texts the answers are found so."""
        return replace(self, agents={name: replace(agent, extract=extract) for name, agent in self.agents.items()})

    async def ask(self, question: str | Message, *, partial: bool = False, **options: Any) -> list[Message]:
        """Ask every member the same, at once. Raises the first member's error after all have answered.

        `partial`: without those for whom the task's budget is not enough, unless it is enough for none.
        """
        asked = (agent.ask(question, **options) for agent in self)
        return await within_budget(asked) if partial else await gather(asked)

    async def run(self, topology: Any, question: str, **options: Any) -> Result:
        """Ask the team one question through a topology. Loads the models at first use; see `runtime.run.ask` for the options."""
        import asyncio

        from aiflow_agents.runtime.run import ask

        return await asyncio.to_thread(ask, self, topology, question, **options)

    def __str__(self) -> str:
        return f"team {self.name} at {self.home} on {self.network.name}: {', '.join(map(str, self))}"


def _place(spec: MemberFile, member: str, network: Network, taken: dict[str, int], file: Path) -> str:
    """The node a member computes on: the one it names, or the nodes of its tier in turn."""
    if spec.node is not None:
        if spec.node not in network.nodes:
            raise _mistake(str(UnknownName(f"node of network '{network.name}'", spec.node, network.nodes)), file, member, "node")
        return spec.node
    nodes = network.tier(spec.tier)
    if not nodes:
        raise _mistake(f"network '{network.name}' has no node of the tier '{spec.tier}'", file, member, "tier")
    taken[spec.tier] = taken.get(spec.tier, -1) + 1
    return nodes[taken[spec.tier] % len(nodes)]


def _mistake(what: str, file: Path, member: str, key: str) -> ConfigError:
    """What is wrong only on this network, or with what the file names."""
    return ConfigError(what, file=file, line=line_of(file, "members", member, key), key=f"members.{member}.{key}")


def _agent(member: str, spec: MemberFile, node: str, home: str, file: Path, max_tokens: int) -> Agent:
    from aiflow_agents.models.family.model import at_exit, model_info
    from aiflow_agents.models.family.rank import Keep, spend

    key = "model"
    keep: Keep = 1.0
    shape = asdict(named_shape(spec.costs_as)) if spec.costs_as else None
    options = spec.http.model_dump(exclude_defaults=True) if spec.http else {}
    backend = Behind(kind=spec.backend, model=spec.model, dtype=spec.dtype or "float32", options=options, shape=(spec.http and shape) or {})
    try:
        info = backend.info()
        if spec.keep is not None:
            key = "keep"
            keep = spend(spec.model, spec.keep)
            info = model_info(spec.model, keep=keep)
        if spec.exit is not None:
            key = "exit"
            info = at_exit(info, spec.model, spec.exit, keep)
    except UserError as error:
        raise _mistake(str(error), file, member, key) from None
    return Agent(
        name=member,
        folder=backend.key,
        info=info,
        node=node,
        home=home,
        role=spec.role,
        prompt=spec.prompt,
        sampling=Sampling(spec.sampling.temperature, spec.sampling.top_p),
        max_tokens=spec.max_tokens or max_tokens,
        shape=Shape(**shape) if shape else None,
        exit=spec.exit,
        keep=spec.keep,
    )
