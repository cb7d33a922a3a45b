"""One evaluation, from a suite and a team to a verdict.

1. On dev: every member alone; calibrate; fit the topologies; choose the best member and the best topology; make the rivals of the latter.
2. On test: every arm on every task. Each sample is on disk as soon as it is there.
3. Judge, summarise, draw.

Step 1 is repeated on resume: its model calls are remembered, so it costs little, and it ends the same.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aiflow_agents.errors import UserError
from aiflow_agents.evals.capacity import capacities
from aiflow_agents.evals.fitted import written
from aiflow_agents.evals.provenance import packages, revision
from aiflow_agents.evals.rivals import RIVALS, rivals
from aiflow_agents.evals.run_folder import FAILED, OK, OVER_BUDGET, RunFolder, Sample
from aiflow_agents.evals.suite import Suite
from aiflow_agents.evals.summary import judge_samples, oracle
from aiflow_agents.evals.trial import DevTrial, Execute, Settings, chosen, settings
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.hooks import Teller
from aiflow_agents.runtime.hosts import Hosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, run_jobs
from aiflow_agents.runtime.scene import Session
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology

SCHEMA = 1
TRACED = 20  # tasks of each arm whose spans are kept
SLICE = 250  # test tasks run through all arms before the next ones: what a kill can cost


class Watcher(Protocol):
    """Who watches a run. Every method may do nothing."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def note(self, line: str) -> None: ...


class Silence:
    """A watcher that watches nothing."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def note(self, line: str) -> None: ...


@dataclass(frozen=True)
class Arm:
    """One way of answering the suite. `kind` is member, rival, topology or placebo; `team`: who answers, where that is not the team itself."""

    name: str
    kind: str
    topology: Topology
    team: Team | None = None


@dataclass(frozen=True)
class Evaluation:
    """What to run. `topologies` are (name, parameters), or objects that no file holds. `monolith`: a team of one model, which is a rival. `budget` is
    what each task may spend, whichever arm answers it, on dev and on test.
    """

    suite: Suite
    team: Team
    topologies: Sequence[tuple[str, Mapping[str, Any]] | Topology]
    seed: int = 0
    limit: int | None = None
    repeats: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    monolith: Team | None = None
    budget: Budget | None = None

    @cached_property
    def dev(self) -> list[Task]:
        return self.suite.tasks("dev", self.seed, self.limit)

    @cached_property
    def test(self) -> list[Task]:
        return self.suite.tasks("test", self.seed, self.limit)

    def prepare(self) -> dict[str, Topology]:
        """The topologies by arm name, checked against the team. Raises in one line before anything runs."""
        arms: dict[str, Topology] = {}
        for member in self.team.agents:
            if member in RIVALS:
                raise UserError(f"a member of team '{self.team.name}' is called '{member}', which is the name of another arm; give it another name")
        for asked in self.topologies:
            topology = asked if isinstance(asked, Topology) else load_topology(*asked)
            topology.check(self.team)
            label = _label(topology, topology.model_dump(mode="json", exclude_defaults=True) if isinstance(asked, Topology) else asked[1])
            if label in arms or label in self.team.agents or label in RIVALS:
                raise UserError(f"two arms would be called '{label}': give the topology's class, or the member, another name")
            arms[label] = topology
        return arms

    def run(self, folder: RunFolder, hosts: Hosts, memory: Memory, watch: Watcher, teller: Teller | None = None) -> dict[str, Any]:
        """Run to the end and give the summary, which is also on disk. Killed anywhere, it can be run again on the same folder."""
        test = self.test  # a mistake in it is said before anything runs
        trial, arms, best = self.choose(self.executor(hosts, memory, watch, teller), watch)
        folder.log(f"dev done: best member {trial.best_member}, best topology {best}")
        fitted = {arm.name: arm.topology for arm in arms if arm.kind in ("topology", "placebo")}
        folder.learned(written(trial.team, self.suite.file.extract, self.prepare(), fitted, best))
        self._test(arms, test, trial.team, folder, hosts, memory, watch, teller)
        capacity = capacities(trial.team, test, hosts, memory) if self.suite.file.extract == "text" else {}
        folder.add(oracle([arm.name for arm in arms if arm.kind == "member"], [task.id for task in test], self.repeats, folder))
        summary = self._summary(arms, test, trial, best, folder, capacity)
        summary = json.loads(json.dumps(summary))  # as it will be read: lists where there were tuples
        folder.summarise(summary)
        return summary

    # -- steps -------------------------------------------------------------------------------------------------------

    def choose(self, execute: Execute, watch: Watcher) -> tuple[DevTrial, list[Arm], str | None]:
        """All that happens on dev: the trial, every arm but the oracle, fitted, and the name of the best topology."""
        asked = self.prepare()
        trial = DevTrial(self.team, self.dev, self.suite.scorer, execute)
        watch.note(f"best member on dev: {trial.best_member} ({trial.scores[trial.best_member]:.1%} of {len(self.dev)})")
        fitted = {name: topology.fit(trial) for name, topology in asked.items()}
        best = self._best({name: topology for name, topology in asked.items() if not topology.control}, trial)
        arms = [Arm(agent.name, "member", load_topology("single", {"member": agent.name})) for agent in self.team]
        if best:
            watch.note(f"best topology on dev: {best} ({trial.unseen(asked[best])[0]:.1%} where it was not fitted)")
            arms += [Arm(name, "rival", topology) for name, topology in rivals(trial, fitted[best], self.seed).items()]
        if self.monolith:
            arms.append(Arm("monolith", "rival", load_topology("single", {"member": "monolith"}), self.monolith))
        return trial, arms + [Arm(name, "placebo" if topology.control else "topology", topology) for name, topology in fitted.items()], best

    def executor(self, hosts: Hosts, memory: Memory, watch: Watcher, teller: Teller | None = None) -> Execute:
        """What runs jobs on dev."""
        teller = teller and teller.at("dev")

        def execute(jobs: Sequence[Job]) -> list[Result]:
            results: dict[int, Result] = {}
            place = {id(job): i for i, job in enumerate(jobs)}
            watch.stage(f"dev: {jobs[0].arm}" if jobs else "dev", len(jobs))

            def done(result: Result) -> None:
                results[place[id(result.job)]] = result
                watch.advance(1)

            run_jobs(jobs, hosts, memory, done, seed=self.seed, budget=self.budget, teller=teller)
            return [results[i] for i in range(len(jobs))]

        return execute

    @staticmethod
    def _best(topologies: Mapping[str, Topology], trial: DevTrial) -> str | None:
        """The most accurate topology on questions of dev that it was not fitted on; of equals the one with fewer FLOPs."""
        results = np.array([trial.unseen(topology) for topology in topologies.values()])  # [topologies, 2]
        return list(topologies)[int(chosen(results[:, 0], results[:, 1]))] if len(results) else None

    def _test(
        self, arms: Sequence[Arm], tasks: Sequence[Task], team: Team, folder: RunFolder, hosts: Hosts, memory: Memory, watch: Watcher,
        teller: Teller | None,
    ) -> None:  # fmt: skip
        teller = teller and teller.at("test")
        watch.stage("test", len(arms) * len(tasks) * self.repeats)
        early = {task.id for task in tasks[:TRACED]}
        same: dict[Settings, list[Arm]] = {}  # arms that do the same, whatever they are called, are run once, by the name of the first
        for arm in arms:
            same.setdefault(settings(arm.topology), []).append(arm)
        twins = {alike[0].name: [arm.name for arm in alike] for alike in same.values()}

        def jobs(part: Sequence[Task]) -> Iterator[Job]:
            for task in part:
                for repeat in range(self.repeats):
                    for arm, *others in same.values():
                        if all(folder.finished(one.name, task.id, repeat) for one in (arm, *others)):
                            watch.advance(1 + len(others))
                        else:
                            yield Job(arm.name, arm.topology, task, arm.team or team, repeat, traced=task.id in early and repeat == 0)

        told: set[str] = set()
        sessions = met_before(folder)

        def done(result: Result) -> None:
            for name in twins[result.job.arm]:
                if folder.finished(name, result.job.task.id, result.job.repeat):  # the kill came between it and one that does the same
                    watch.advance(1)
                    continue
                self._keep(result, name, folder)
                if result.error and name not in told:  # the first of an arm at once, as it may be what all will say
                    told.add(name)
                    watch.note(f"{name} failed on {result.job.task.id}: {result.error}")
                watch.advance(1)

        for start in range(0, len(tasks), SLICE):
            part = jobs(tasks[start : start + SLICE])
            run_jobs(part, hosts, memory, done, seed=self.seed, sessions=sessions, budget=self.budget, teller=teller)

    def _keep(self, result: Result, arm: str, folder: RunFolder) -> None:
        """On disk at once. The sample comes last: once it is there, a resume will not run this job again."""
        if result.job.traced:
            spans = [span._asdict() for span in result.spans]
            folder.trace({"arm": arm, "task_id": result.job.task.id, "spans": spans})
        if result.error:
            folder.log(f"{arm} failed on {result.job.task.id}: {result.error}")
        folder.add([self.sample(result, arm)])

    def sample(self, result: Result, arm: str) -> Sample:
        """What is kept of one answer."""
        job = result.job
        score = 0.0 if result.answer is None else self.suite.scorer(result.answer, job.task)
        said = {"text": result.text} if result.text and result.text.strip() != result.answer else {}  # where the answer is only a part of it
        met = {"met": [list(pair) for pair in result.met]} if result.met else {}
        return said | met | {
            "arm": arm,
            "task_id": job.task.id,
            "repeat": job.repeat,
            "question": job.task.question,
            "answer": result.answer,
            "expected": job.task.expected,
            "score": score,
            "correct": score >= 1.0,
            "status": FAILED if result.error else OVER_BUDGET if result.over else OK,
            "error": result.error or result.over,
            "confidence": None if result.confidence is None else round(result.confidence, 4),
            "seed": self.seed,
            **({"cluster": job.task.cluster} if job.task.cluster else {}),
            "tags": list(job.task.tags),
            "usage": {key: _short(value) for key, value in asdict(result.usage).items()},
            **_delivered(result),
            **({"decoding": {key: _short(value) for key, value in result.decoding.as_json().items()}} if result.decoding else {}),
            **({"mark": result.mark} if result.mark else {}),
        }

    # -- the summary -------------------------------------------------------------------------------------------------

    def _summary(
        self, arms: Sequence[Arm], tasks: Sequence[Task], trial: DevTrial, best: str | None, folder: RunFolder, capacity: Mapping[str, Any]
    ) -> dict[str, Any]:
        kinds = {arm.name: arm.kind for arm in arms} | {"oracle": "rival"}
        rows = {name: [[folder.samples[name, task.id, r] for r in range(self.repeats)] for task in tasks] for name in kinds}
        learned = {arm.name: arm.topology.learned() for arm in arms if arm.kind != "member"}
        return {
            "schema": SCHEMA,
            "run_id": folder.path.name,
            "suite": self.suite.name,
            "team": self.team.name,
            "network": self.team.network.name,
            **({"faults": list(map(str, self.team.network.faults))} if self.team.network.faults else {}),
            "seed": self.seed,
            "split": "test",
            "git": revision(),
            "packages": packages(),
            "python": platform.python_version(),
            "n_tasks": len(tasks),
            "n_dev": len(trial.tasks),
            "repeats": self.repeats,
            **({"budget": self.budget.limits()} if self.budget else {}),
            "best_member": {"arm": trial.best_member, "chosen_on": "dev"},
            "best_topology": {"arm": best, "chosen_on": "dev"} if best else None,
            "learned": learned,
            **judge_samples(
                rows, kinds, best_member=trial.best_member, best_topology=best, seed=self.seed, folder=folder, capacity=capacity,
                fidelity={arm.name: how for arm in arms if (how := arm.topology.fidelity(arm.team or self.team))},
            ),
        }  # fmt: skip


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _delivered(result: Result) -> dict[str, Any]:
    """When an answer that did not come all at once was at home; of any other its latency says it."""
    came = result.delivery
    if came is None or (each := came.ms_per_token) is None:
        return {}
    return {"delivery": {"first_token_s": _short(came.first_token_s), "ms_per_token": _short(each), "tokens": came.tokens}}


def met_before(folder: RunFolder) -> dict[str, Session]:
    """Who has met whom in each arm's finished tasks: a run that goes on does not let them introduce themselves again."""
    sessions: dict[str, Session] = {}
    for (arm, task, repeat), sample in folder.samples.items():
        if "met" in sample and folder.finished(arm, task, repeat):
            sessions.setdefault(arm, {}).update(dict.fromkeys((one, other) for one, other in sample["met"]))
    return sessions


def arm_name(topology: str, parameters: Mapping[str, Any]) -> str:
    """What a topology, by name or path, is called with these parameters."""
    return _label(load_topology(topology, parameters), parameters)


def _label(topology: Topology, parameters: Mapping[str, Any]) -> str:
    given = ", ".join(f"{k}={topology.budget if k == 'budget' else v}" for k, v in parameters.items())
    return topology.name() + (f"({given})" if parameters else "")


def new_run_path(log_dir: Path, suite: str) -> Path:
    """A folder that does not exist yet: logs/<suite>-<date>-<time>, with a number where two begin in the same second."""
    from datetime import datetime

    base = log_dir / f"{suite}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path
