"""The hand-over: when no world can go on, all waiting calls become one batch per model.

Calls with equal content are computed once; what was answered before is not computed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiflow_agents.models.protocol import CallError, Reply, Request
from aiflow_agents.net.world import External
from aiflow_agents.runtime.hosts import Hosts
from aiflow_agents.runtime.memory import Key, Memory


class Call(NamedTuple):
    """One call of one agent: which model (its folder, and its fingerprint), and what it is asked."""

    model: str
    fingerprint: str
    request: Request


class Handover:
    """Answers all waiting calls of all worlds. `note(calls, executed)` tells who watches how many waited, and how many of them a model computed."""

    def __init__(self, hosts: Hosts, memory: Memory, note: Callable[[int, int], None] = lambda calls, executed: None):
        self.hosts, self.memory, self.note = hosts, memory, note

    def __call__(self, calls: Sequence[External]) -> None:
        values = self.answers([external.payload for external in calls])
        # in the order of the calls, wherever their answers came from: tasks must not go on otherwise in a second run
        for external, value in zip(calls, values, strict=True):
            external.resolve(value)

    def answers(self, calls: Sequence[Call]) -> list[Reply | CallError]:
        """The answers to these calls, in their order."""
        # 1. equal calls share one answer
        shared: dict[Key, _Answer] = {}
        asked = []
        for call in calls:
            key = (call.fingerprint, call.request)
            answer = shared.get(key)
            if answer is None:
                answer = shared[key] = _Answer(key, call.model, self.memory.get(key))
            asked.append(answer)
        # 2. what is not remembered is looked for on disk, then computed
        unknown = [answer for answer in shared.values() if answer.value is None]
        if unknown:
            on_disk = self.memory.load([answer.key for answer in unknown])
            if on_disk:
                for answer in unknown:
                    answer.value = on_disk.get(answer.key)
                    if isinstance(answer.value, Reply) and answer.value.parcel is not None:
                        self.hosts.know(answer.model, answer.key[1], answer.value)
                unknown = [answer for answer in unknown if answer.value is None]
            self._execute(unknown)
        self.note(len(calls), len(unknown))
        return [answer.value for answer in asked]  # type: ignore[misc]

    def _execute(self, unknown: list[_Answer]) -> None:
        """Let the hosts compute, and remember what they answer; a refusal is not remembered."""
        batches: dict[str, list[_Answer]] = {}
        for answer in unknown:
            batches.setdefault(answer.model, []).append(answer)
        if batches:
            made = self.hosts.generate({model: [answer.key[1] for answer in part] for model, part in batches.items()})
            for model, part in batches.items():
                for answer, value in zip(part, made[model], strict=True):
                    answer.value = value
            self.memory.put([(answer.key, answer.value) for answer in unknown if isinstance(answer.value, Reply)])


class _Answer:
    """What is to be known of one distinct call."""

    __slots__ = ("key", "model", "value")

    def __init__(self, key: Key, model: str, value: Reply | CallError | None):
        self.key, self.model, self.value = key, model, value
