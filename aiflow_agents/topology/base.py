"""A topology is one async method, with typed parameters beside it, and what it needs of its team."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar
from zlib import crc32

from pydantic import BaseModel, ConfigDict

from aiflow_agents.errors import MemberFailed, UnmetNeed
from aiflow_agents.runtime.budget import Budget

if TYPE_CHECKING:
    from aiflow_agents.runtime.task import Task
    from aiflow_agents.runtime.team import Team
    from aiflow_agents.wire.message import Message

T = TypeVar("T")


Fidelity = Literal["", "exact", "bounded", "lossy"]


@dataclass(frozen=True)
class Needs:
    """What a topology needs: at least so many members, these roles, these capabilities of every member, and that all have the same weights."""

    members: int = 1
    roles: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    one_family: bool = False

    def missing(self, team: Team) -> str | None:
        """What the team lacks, in words; None when it has everything."""
        if len(team) < self.members:
            return f"at least {self.members} members; team '{team.name}' has {len(team)}"
        for role in self.roles:
            if team.role(role) is None:
                return f"a member with role '{role}'; the roles in team '{team.name}' are {', '.join(sorted({a.role for a in team}))}"
        for agent in team:
            lacking = self.capabilities - agent.info.capabilities
            if lacking:
                return f"members with {', '.join(sorted(lacking))}; {agent.name} has {', '.join(sorted(agent.info.capabilities)) or 'none'}"
        if self.one_family and len({agent.info.weights_hash for agent in team}) > 1:
            return f"members of one family; team '{team.name}' has others"
        return None


class Trial(Protocol):
    """What a topology may learn from: answers on the dev split, and nothing else."""

    team: Team
    tasks: list[Task]
    questions: list[str]
    marks: dict[str, list[float]]  # member -> 0 to 1, question by question
    correct: dict[str, list[bool]]  # the same: right or wrong
    answers: dict[str, list[str | None]]  # None where the member failed
    confidence: dict[str, list[float | None]]  # calibrated; None without log-probabilities, or where the member failed
    flops: dict[str, float]  # member -> mean per question

    @property
    def best_member(self) -> str: ...

    def accuracy(self, topology: Topology) -> tuple[float, float]:
        """(accuracy, mean FLOPs per question) of a topology on the dev split."""
        ...


class Topology(BaseModel):
    """Base of all topologies. Fields are parameters, settable from a file, the command line or Python; `needs` is checked before the run.

    `budget`: what one task may spend at most, whatever the run allows. A topology need not know of it: what is over it raises `OverBudget`, which may
    leave `run`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(Needs,), arbitrary_types_allowed=True)
    needs: ClassVar[Needs] = Needs()
    decodes: ClassVar[Fidelity] = ""  # what `fidelity` says, where that does not depend on the team
    budget: Budget | None = None

    async def run(self, task: Task, team: Team) -> Message:
        """Answer one question. Runs at `team.home`."""
        raise NotImplementedError

    def fit(self, trial: Trial) -> Self:
        """The same topology with thresholds and choices learned on the dev split. By default that is nothing but a placebo's other questions."""
        if getattr(self, "placebo", "") == "other" and not getattr(self, "others", ()):
            return self.model_copy(update={"others": tuple(trial.questions[:50])})
        return self

    def check(self, team: Team) -> None:
        """Raise UnmetNeed, in one line, before anything runs."""
        missing = self.needs.missing(team)
        if missing:
            raise UnmetNeed(f"topology '{self.name()}' needs {missing}")

    def most_calls(self) -> int:
        """How many calls one question may take, for those that go on as their members say; 0 where any answers, even pretended ones, show it."""
        return 0

    def fidelity(self, team: Team) -> Fidelity:
        """How true its answers are to those of the member that decides. exact: the same text, or exactly its distribution; bounded: what may be lost
        was limited on dev; lossy: nothing is promised. Empty where it is no way of decoding one member's answer.
        """
        return self.decodes

    @property
    def control(self) -> bool:
        """Whether this is a placebo: a channel that carries nothing, which must not look like a team. It is judged apart and never chosen.

        By default it is one with a parameter `placebo` that is set.
        """
        return bool(getattr(self, "placebo", ""))

    @classmethod
    def name(cls) -> str:
        """The name of the pattern: that of its file, by convention."""
        return "".join("-" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("-")

    def learned(self) -> dict[str, Any]:
        """The parameters as plain data, for config.json and reports."""
        return self.model_dump(mode="json", exclude=None if self.budget else {"budget"})


async def heard_by(member: str, heard: Sequence[Message], ask: Callable[[Sequence[Message]], Awaitable[T]]) -> T:
    """What `ask(heard)` gives; without the messages of members that have died and can no longer be heard. Raises where `member` itself fails."""
    while True:
        try:
            return await ask(heard)
        except MemberFailed as lost:
            left = [message for message in heard if message.author != lost.member]
            if lost.member == member or len(left) == len(heard):
                raise
            heard = left


def another(question: str, others: Sequence[str]) -> str:
    """Another question than this one, for a placebo: always the same one of `others`, which come from a dev split. Raises UnmetNeed without any."""
    unlike = [other for other in others if other != question]
    if not unlike:
        raise UnmetNeed("placebo=other takes its other questions from a dev split: use `aiflow eval`")
    return unlike[crc32(question.encode()) % len(unlike)]
