"""The dev split: where the best member, the best topology, thresholds and temperatures are chosen. The test split is never looked at here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property

import numpy as np

from aiflow_agents.evals.scorer import Scorer
from aiflow_agents.models.confidence import calibrate
from aiflow_agents.runtime.run import Job, Result
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology

Execute = Callable[[Sequence[Job]], list[Result]]
Settings = tuple[type, tuple[bytes | str, ...]]


class DevTrial:
    """Runs topologies on the dev split and remembers how they did. Implements `topology.base.Trial`."""

    def __init__(self, team: Team, tasks: Sequence[Task], scorer: Scorer, execute: Execute):
        self.tasks, self.scorer, self._execute = list(tasks), scorer, execute
        self.questions = [task.question for task in tasks]
        self._seen: dict[tuple[Settings, str], tuple[float, float, float]] = {}  # by task: what a part has seen, the whole need not run again
        single = {agent.name: load_topology("single", {"member": agent.name}) for agent in team}
        results = execute([Job(name, topology, task, team) for name, topology in single.items() for task in tasks])
        by_member = {name: results[i * len(tasks) : (i + 1) * len(tasks)] for i, name in enumerate(single)}
        self.answers = {name: [r.answer for r in rs] for name, rs in by_member.items()}
        self.marks = {name: [self.score(r) for r in rs] for name, rs in by_member.items()}
        self.correct = {name: [mark >= 1.0 for mark in marks] for name, marks in self.marks.items()}
        self.scores = {name: float(np.mean(marks)) for name, marks in self.marks.items()}
        self.flops = {name: float(np.mean([r.usage.flops for r in rs])) for name, rs in by_member.items()}
        self.calibrations = {name: calibrate([r.confidence for r in rs], self.correct[name]) for name, rs in by_member.items()}
        self.team = team.calibrated(self.calibrations)
        self.confidence = {
            name: [None if r.confidence is None else self.calibrations[name](r.confidence) for r in rs] for name, rs in by_member.items()
        }

    def score(self, result: Result) -> float:
        """The mark of one result; a failed one gets 0."""
        return 0.0 if result.answer is None else self.scorer(result.answer, result.job.task)

    @cached_property
    def best_member(self) -> str:
        """The member with the best mean score; of equals the cheapest."""
        names = list(self.scores)
        return names[int(chosen(np.array([self.scores[name] for name in names]), np.array([self.flops[name] for name in names])))]

    def accuracy(self, topology: Topology) -> tuple[float, float]:
        """(mean score, mean FLOPs per question)."""
        return self._measure(topology)[:2]

    def unseen(self, topology: Topology) -> tuple[float, float]:
        """(mean score, mean FLOPs per question) of a topology where it was not fitted: fitted on each half of dev, measured on the other.

        Where it was fitted it looks better than it is: a router by four points, on 700 questions. A single task has no halves and is used twice.
        """
        if len(self.tasks) == 1:
            return self.accuracy(topology.fit(self))
        order = np.random.default_rng(0).permutation(len(self.tasks)).tolist()  # not every other one: skills come in turn
        halves = [sorted(order[start::2]) for start in (0, 1)]
        sums = [0.0, 0.0]
        for learned_on, measured_on in (halves, halves[::-1]):
            results = self._part(measured_on).accuracy(topology.fit(self._part(learned_on)))
            sums = [total + len(measured_on) * result for total, result in zip(sums, results, strict=True)]
        return sums[0] / len(self.tasks), sums[1] / len(self.tasks)

    def _part(self, places: Sequence[int]) -> DevTrial:
        """The same trial, of these tasks alone. Confidences stay calibrated as they are."""
        part = copy(self)
        part.__dict__.pop("best_member", None)
        part.tasks, part.questions = [self.tasks[i] for i in places], [self.questions[i] for i in places]
        part.answers = {name: [said[i] for i in places] for name, said in self.answers.items()}
        part.correct = {name: [right[i] for i in places] for name, right in self.correct.items()}
        part.confidence = {name: [sure[i] for i in places] for name, sure in self.confidence.items()}
        part.scores = {name: float(np.mean([self.marks[name][i] for i in places])) for name in self.marks}
        part.marks = {name: [marks[i] for i in places] for name, marks in self.marks.items()}
        return part

    def tokens(self, topology: Topology) -> tuple[float, float]:
        """(mean score, mean tokens per question)."""
        mean, _, tokens = self._measure(topology)
        return mean, tokens

    def _measure(self, topology: Topology) -> tuple[float, float, float]:
        """Mean score, FLOPs and tokens."""
        key = settings(topology)
        new = [Job(topology.name(), topology, task, self.team) for task in self.tasks if (key, task.id) not in self._seen]
        for result in self._execute(new) if new else ():
            used = result.usage
            self._seen[key, result.job.task.id] = self.score(result), used.flops, float(used.tokens_in + used.tokens_out)
        score, flops, tokens = np.array([self._seen[key, task.id] for task in self.tasks]).T
        return float(np.mean(score)), float(np.mean(flops)), float(np.mean(tokens))


def chosen(scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The index of the highest score, of equals the cheapest, of those the first. [..., arms], [arms] -> [...]."""
    order = np.argsort(costs, kind="stable")
    return order[np.argmax(scores[..., order], axis=-1)]


def settings(topology: Topology) -> Settings:
    """What tells one topology from another: its class and its parameters. Two with the same settings do the same."""
    values = (getattr(topology, name) for name in type(topology).model_fields)
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):  # an abridged array would make two fitted topologies one
        return type(topology), tuple(value.tobytes() if isinstance(value, np.ndarray) else repr(value) for value in values)
