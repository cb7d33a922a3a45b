"""The rehearsal: what a run would ask of its members, found out with members that only pretend to think, each unsure of an answer of its own.

It costs no model time, and shows before a run what would otherwise make every task of an arm fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aiflow_agents.errors import NotHere, UnmetNeed, UserError
from aiflow_agents.evals.rivals import MOST_SAMPLES, TEMPERATURES
from aiflow_agents.evals.runner import Evaluation, Silence
from aiflow_agents.models.protocol import Parcel, Reply, Request
from aiflow_agents.runtime.hosts import Answers, Batches
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, Runs, run_jobs
from aiflow_agents.runtime.scene import stable_hash
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team

ENDLESS = 2000  # calls for one question, after which a rehearsal is broken off
FEW = 4  # tasks that stand for all
SAMPLED = "self-consistency@", "vote@flops"  # rivals that take as many samples as they need, of one member or of all


def rehearse(evaluation: Evaluation) -> None:
    """Let every topology answer one question. Raises UserError where it never could: it asks a member who is not there or reads what is not here."""
    task = evaluation.dev[0]
    for topology in evaluation.prepare().values():
        with suppress(UnmetNeed):  # of what will be learned on dev
            rehearse_one(topology, evaluation.team, task)


def rehearse_one(topology: Runs, team: Team, task: Task) -> None:
    """The same for one topology as it is. What else it raises is left to the run, where it is data."""
    watched = _Watched(topology)
    with suppress(_Endless):
        _Stage().execute([Job("rehearsal", watched, task, team)])
    if isinstance(watched.error, NotHere):
        raise UserError(f"{type(topology).__name__}: {watched.error}")
    if watched.error is not None:
        raise watched.error


def calls_at_most(evaluation: Evaluation) -> dict[str, Any]:
    """What a run would ask of its members, as plain data: arms with their calls a task, and calls of the whole run, each at most.

    Equal calls are made once, so the whole is less than the sum. Rivals that sample are counted with as many samples as they may ever take.
    Raises UserError where a topology learns or does nothing sensible with pretended answers.
    """
    team, repeats = evaluation.team, evaluation.repeats
    few = replace(evaluation, suite=replace(evaluation.suite, scorer=lambda answer, task: 0.0), limit=FEW)
    dev, test = _Stage(), _Stage()
    calls: dict[str, int] = {}
    unseen = 0  # calls for a task that pretended answers do not lead to
    try:
        trial, arms, _ = few.choose(dev.execute, Silence())
        for arm in arms:
            sampled = arm.name.startswith(SAMPLED)
            results = [] if sampled else test.execute([Job(arm.name, arm.topology, task, arm.team or trial.team) for task in few.test])
            most_samples = MOST_SAMPLES * (len(team) if arm.name == SAMPLED[1] else 1)
            calls[arm.name] = most_samples if sampled else max(result.usage.calls for result in results)
            if (most := arm.topology.most_calls()) > calls[arm.name]:
                unseen, calls[arm.name] = unseen + most - calls[arm.name], most
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the calls cannot be counted: with pretended answers, {type(error).__name__}: {error}") from error
    samples = [most for name, most in calls.items() if name.startswith(SAMPLED)]
    on_dev = math.ceil((dev.memory.executed / len(few.dev) + len(TEMPERATURES) * max(samples, default=0) + unseen) * len(evaluation.dev))
    on_test = math.ceil((test.memory.executed / len(few.test) + sum(samples) + unseen) * len(evaluation.test) * repeats)
    return {
        "suite": evaluation.suite.name,
        "team": team.name,
        "members": {agent.name: agent.node for agent in team},
        "network": team.network.name,
        **({"faults": list(map(str, team.network.faults))} if team.network.faults else {}),
        "seed": evaluation.seed,
        "repeats": repeats,
        "n_dev": len(evaluation.dev),
        "n_test": len(evaluation.test),
        "arms": {arm.name: {"kind": arm.kind, "calls": calls[arm.name]} for arm in arms},
        "calls_at_most": {"dev": on_dev, "test": on_test, "all": on_dev + on_test},
    }


class _Endless(Exception):
    def __str__(self) -> str:
        return f"a topology asks more than {ENDLESS:,} times for one question"


class _Stage:
    """Hosts without models."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.weights: dict[str, str] = {}

    def execute(self, jobs: Sequence[Job]) -> list[Result]:
        """The results in the order of the jobs. Raises _Endless."""
        results: dict[int, Result] = {}
        self.weights.update({agent.folder: agent.info.weights_hash for job in jobs for agent in job.team})
        left = ENDLESS * len(jobs)

        def note(calls: int, executed: int) -> None:  # all calls: one that asks the same again and again executes one
            nonlocal left
            left -= calls
            if left < 0:
                raise _Endless

        run_jobs(jobs, self, self.memory, lambda result: results.update({id(result.job): result}), note=note)
        return [results[id(job)] for job in jobs]

    def generate(self, batches: Batches) -> dict[str, Answers]:
        return {model: [self._reply(model, request) for request in requests] for model, requests in batches.items()}

    def _reply(self, model: str, request: Request) -> Reply:
        text = request.score or str(stable_hash(model, request.messages, request.seed, request.exit) % 1000)
        tokens_in = sum(len(turn.content) for turn in request.messages)
        parcel = Parcel(text, 1, self.weights[model], request.want, 1, (0, 0)) if request.want else None
        return Reply(text, (0, 0), (math.log(0.01), 0.0), tokens_in, 2, parcel=parcel)

    def know(self, model: str, request: Request, reply: Reply) -> None: ...

    def close(self) -> None: ...


class _Watched:
    """A topology whose mistake is kept as it is; the runtime keeps only the words."""

    def __init__(self, topology: Runs):
        self.topology = topology
        self.error: UserError | NotHere | None = None

    async def run(self, task: Task, team: Team) -> Any:
        try:
            return await self.topology.run(task, team)
        except (UserError, NotHere) as error:
            self.error = error
            raise
