"""A task: one question, and what is known about its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiflow_agents.models.protocol import Turn
    from aiflow_agents.wire.message import Message


@dataclass(frozen=True, slots=True)
class Task:
    """`expected` is None where nobody knows (`aiflow run`); `tags` group tasks in reports, the first one being the skill.

    `cluster` names what it shares with other tasks, as several questions about one scene do: answers to those are no independent evidence.

    `inputs`, by node: what lies there from the start, as a camera's picture does (`runtime.inputs.at_cameras`).

    `before` is the conversation that led to the question. It goes with the question to every member that is asked it, in its bytes too.
    """

    id: str
    question: str
    expected: str | None = None
    tags: tuple[str, ...] = ()
    cluster: str = field(default="", repr=False)
    inputs: Mapping[str, Message] = field(default_factory=dict, repr=False, hash=False)
    before: tuple[Turn, ...] = field(default=(), repr=False)
