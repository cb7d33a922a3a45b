"""A team: the agents of one run, on the nodes of one network, and the home where the question arises and the answer must arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from aiflow_agents import catalog
from aiflow_agents.config import line_of, load_yaml
from aiflow_agents.errors import ConfigError, UnknownName, UserError
from aiflow_agents.models.backends import Backend, Behind, Kind, as_model
from aiflow_agents.models.confidence import AS_IT_IS, Calibration
from aiflow_agents.models.http import Endpoint
from aiflow_agents.models.protocol import Model, Sampling, Shape
from aiflow_agents.models.vllm import Options
from aiflow_agents.net.cost import named_shape
from aiflow_agents.net.faults import Fault
from aiflow_agents.net.network import Network
from aiflow_agents.net.together import quorate, within_budget
from aiflow_agents.runtime.agent import Agent
from aiflow_agents.runtime.extraction import Extract
from aiflow_agents.runtime.hosts import OBJECT
from aiflow_agents.runtime.memory import fingerprint
from aiflow_agents.runtime.scene import SCENE
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
    backend: Backend = "family"
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
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="of transformers and vllm; default: float32")
    vllm: Options | None = Field(default=None, description="how the backend `vllm` is set up: max_model_len, gpu_memory_utilization, ...")
    http: Endpoint | None = Field(default=None, description="where the backend `http` asks: url, key, ...")
    options: dict[str, Any] = Field(default={}, description="what an installed backend takes besides the model's name")

    @field_validator("model")
    @classmethod
    def _model_is_there(cls, name: str, info: ValidationInfo) -> str:
        if info.data.get("backend") == "http" or info.data.get("backend") not in get_args(Kind):
            return name
        if info.data.get("backend") in ("transformers", "vllm"):  # a folder beside the file, a model of ours, or a name on the hub
            beside = (_beside(info) or Path()) / name
            return str(beside) if beside.is_dir() else _ours(name) or name
        return _known(lambda: str(catalog.find("model", name, base=_beside(info)).path))

    @model_validator(mode="after")
    def _keys_belong_to_the_backend(self) -> MemberFile:
        if self.exit is not None and self.backend not in ("family", "transformers", "vllm"):
            raise ValueError(f"exit chooses a part of a family; the backend {self.backend} has none")
        if self.backend != "family" and self.keep is not None:
            raise ValueError(f"keep chooses a size of a decomposed model; the backend {self.backend} has none")
        if self.backend != "vllm" and self.vllm is not None:
            raise ValueError(f"vllm is not for the backend {self.backend}")
        if (self.backend == "http") != (self.http is not None):
            raise ValueError("the backend http needs http: {url: ...}" if self.http is None else f"http is not for the backend {self.backend}")
        if self.backend == "http" and self.costs_as is None:
            raise ValueError("of a model behind an endpoint nobody knows what it costs: name a shape with costs_as")
        if self.dtype is not None and self.backend not in ("transformers", "vllm"):
            raise ValueError(f"dtype is for the backends transformers and vllm, not {self.backend}")
        if self.options and self.backend in get_args(Kind):
            raise ValueError(f"options are for backends of other packages, not for {self.backend}")
        return self

    @field_validator("costs_as")
    @classmethod
    def _shape_is_known(cls, name: str | None) -> str | None:
        return _known(lambda: name if name is None or named_shape(name) else None)


class Member(MemberFile):
    """A member that is made in Python: as in a team file, but its model may be an object, and it is on a device where nothing else is said."""

    model: Any
    tier: Literal["device", "edge", "cloud"] = "device"

    @field_validator("model")
    @classmethod
    def _model_is_there(cls, model: Any, info: ValidationInfo) -> Any:
        if isinstance(model, str | Path):
            return MemberFile._model_is_there(str(model), info)
        return _known(lambda: as_model(model, "this"))

    @model_validator(mode="after")
    def _objects_are_whole(self) -> Member:
        if not isinstance(self.model, str) and self.model_fields_set & {"backend", "exit", "keep", "dtype", "vllm", "http", "options"}:
            raise ValueError("a model that is an object takes none of backend, exit, keep, dtype, vllm, http and options")
        return self

    @classmethod
    def of(cls, given: Any, name: str) -> Member:
        """Raises UserError, with the member's name and the key."""
        try:
            return cls.model_validate(given if isinstance(given, Mapping) else {"model": given})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
            if first["type"] == "extra_forbidden":
                what, key = str(UnknownName("key of a member", key, cls.model_fields)), ""
            raise UserError(f"member '{name}'{key and f', {key}'}: {what}") from None


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
    file: str | None = None  # where it was read, if all of it was

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
        return cls(entry.name, agents, net, str(entry.path))._connected()

    @classmethod
    def of(
        cls, members: Mapping[str, Any], *, name: str = "team", network: str | Path | Network = DEFAULT_NETWORK, max_tokens: int = MAX_TOKENS
    ) -> Team:
        """A team made in Python. A member is a model: its name or folder, or an object (`models.protocol.Model`); or a mapping with the keys of a
        team file, whose `model` may be an object too. Who says neither `tier` nor `node` is on a device.

        Raises UserError, in one line with the member's name.
        """
        net = network if isinstance(network, Network) else Network.load(catalog.find("network", str(network)).path)
        if not members:
            raise UserError("a team has at least one member")
        agents, taken = {}, dict[str, int]()
        for member, given in members.items():
            spec = Member.of(given, member)
            agents[member] = _agent(member, spec, _place(spec, member, net, taken, None), net.home, None, max_tokens)
        return cls(name, agents, net)._connected()

    def _connected(self) -> Team:
        """This team. Raises NoRoute before anything runs."""
        for agent in self:
            self.network.route(self.home, agent.node)
            self.network.route(agent.node, self.home)
        return self

    @property
    def objects(self) -> dict[str, Model]:
        """By key, the models that are objects of this process and not loaded by name: hosts have to be opened with them."""
        return {OBJECT + agent.fingerprint: agent.model for agent in self if agent.model is not None}  # wherever they are placed

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

    def with_faults(self, *faults: str | Fault) -> Team:
        """The same team on a network in which these go wrong, such as `"cloud dies 2.0"`: see `net.faults`. Raises UserError."""
        return replace(self, network=self.network.with_faults(*faults))

    def only(self, *names: str) -> Team:
        """The same team with these members alone."""
        return replace(self, agents={name: self[name] for name in names}, file=None)

    def beside(self, name: str, model: Path, max_tokens: int = MAX_TOKENS) -> Team:
        """Another model alone, under the same conditions: on this network, at a node of the highest tier that there is.

        Raises UserError for a folder that is no model.
        """
        from aiflow_agents.models.family.info import model_info

        node = next(nodes[0] for tier in ("cloud", "edge", "device") if (nodes := self.network.tier(tier)))
        self.network.route(self.home, node)  # raises NoRoute before anything runs
        return replace(self, file=None, agents={name: Agent(name, str(model), model_info(model), node, self.home, max_tokens=max_tokens)})

    def calibrated(self, calibrations: Mapping[str, Calibration]) -> Team:
        """The same team, whose confidences mean what they say."""
        return replace(self, agents={name: replace(agent, calibration=calibrations.get(name, AS_IT_IS)) for name, agent in self.agents.items()})

    def extracting(self, extract: Extract) -> Team:
        """The same team, of whose texts the answers are found so."""
        return replace(self, agents={name: replace(agent, extract=extract) for name, agent in self.agents.items()})

    async def ask(self, question: str | Message, *, partial: bool = False, quorum: int | None = None, **options: Any) -> list[Message]:
        """Ask every member the same, at once. Raises the first member's error after all have answered.

        `partial`: without those for whom the task's budget is not enough, unless it is enough for none. `quorum`: without those who fail, as long as
        so many answer.
        """
        asked = (agent.ask(question, **options) for agent in self)
        return await within_budget(asked, quorum) if partial else await quorate(asked, quorum)

    async def tell(self, message: Message) -> Message:
        """Let the user have what this message says, as the beginning of the answer: it comes home. Gives it as it is there.

        What was told cannot be taken back. Raises UserError where it does not go on from that.
        """
        here = await message.to(self.home)
        SCENE.get().tell(here)
        return here

    async def run(self, topology: Any, question: str, **options: Any) -> Result:
        """Ask the team one question through a topology. Loads the models at first use; see `runtime.run.ask` for the options."""
        import asyncio

        from aiflow_agents.runtime.run import ask

        return await asyncio.to_thread(ask, self, topology, question, **options)

    def __str__(self) -> str:
        return f"team {self.name} at {self.home} on {self.network.name}: {', '.join(map(str, self))}"


def _place(spec: MemberFile, member: str, network: Network, taken: dict[str, int], file: Path | None) -> str:
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


def _mistake(what: str, file: Path | None, member: str, key: str) -> UserError:
    """What is wrong only on this network, or with what the file names."""
    if file is None:
        return UserError(f"member '{member}', {key}: {what}")
    return ConfigError(what, file=file, line=line_of(file, "members", member, key), key=f"members.{member}.{key}")


def _agent(member: str, spec: MemberFile, node: str, home: str, file: Path | None, max_tokens: int) -> Agent:
    from aiflow_agents.models.family.info import at_exit, model_info
    from aiflow_agents.models.family.rank import Keep, spend
    from aiflow_agents.models.hub import folder_of

    key = "model"
    keep: Keep = 1.0
    shape = asdict(named_shape(spec.costs_as)) if spec.costs_as else None
    options = given.model_dump(exclude_defaults=True) if (given := spec.http or spec.vllm) else spec.options
    own: Model | None = None if isinstance(spec.model, str) else spec.model
    more: dict[str, Any] = {"shape": (spec.http and shape) or {}, "exit": None if spec.backend == "family" else spec.exit}
    try:
        if own is not None:
            info, folder = own.info, OBJECT + fingerprint(own.info)
        else:
            behind = Behind(kind=spec.backend, model=spec.model, dtype=spec.dtype or "float32", options=options, **more)
            info, folder = behind.info(), behind.key
        if spec.keep is not None:
            key = "keep"
            keep = spend(spec.model, spec.keep)
            info = model_info(spec.model, keep=keep)
        if spec.exit is not None:
            key = "exit"
            info = at_exit(info, spec.model if spec.backend == "family" else folder_of(spec.model), spec.exit, keep)
    except UserError as error:
        raise _mistake(str(error), file, member, key) from None
    return Agent(
        name=member,
        folder=folder,
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
        model=own,
    )
