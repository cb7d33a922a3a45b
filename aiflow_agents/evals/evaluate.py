"""`evaluate`: the same evaluation from Python as from the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiflow_agents import catalog, telemetry_off
from aiflow_agents.errors import UnknownName, UnmetNeed, UserError
from aiflow_agents.evals.report import show, write_report
from aiflow_agents.evals.rivals import MOST_SAMPLES, rivals
from aiflow_agents.evals.run_folder import RunFolder
from aiflow_agents.evals.runner import Evaluation, Watcher, new_run_path
from aiflow_agents.evals.suite import Suite, load_suites
from aiflow_agents.evals.trial import DevTrial
from aiflow_agents.evals.verdict import percent, points, quantity, sentence
from aiflow_agents.models.protocol import Reply, Request
from aiflow_agents.runtime.hosts import Answers, Batches, Hosts, open_hosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.run import Job, Result, Runs, run_jobs
from aiflow_agents.runtime.scene import stable_hash
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import load_topology

RUNTIMES = ("inline", "ray")
Pattern = str | Topology | Mapping[str, Mapping[str, Any]]  # a topology's name or path, a topology, or a name with its parameters


class Silence:
    """A watcher that watches nothing."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def note(self, line: str) -> None: ...


@dataclass(frozen=True, repr=False)
class Report:
    """The outcome of one suite: `summary` (see summary.json), and the folder that holds everything."""

    summary: dict[str, Any]
    folder: Path

    @property
    def sentence(self) -> str:
        """The verdict in a few words."""
        return sentence(self.summary)

    @property
    def says(self) -> str | None:
        """What may be said of the best topology: beats, not shown or loses; None without a topology."""
        best = self.summary["best_topology"]
        return next((v["says"] for v in self.summary["verdicts"] if best and v["arm"] == best["arm"] and v["against"] == "members"), None)

    @property
    def gain(self) -> float:
        """Accuracy of the best topology minus that of the best member."""
        arms, best = self.summary["arms"], self.summary["best_topology"]
        return arms[best["arm"]]["accuracy"] - arms[self.summary["best_member"]["arm"]]["accuracy"] if best else 0.0

    @property
    def n_failed(self) -> int:
        return sum(arm["n_failed"] for arm in self.summary["arms"].values())

    def accuracy(self, arm: str) -> float:
        return self.summary["arms"][arm]["accuracy"]

    def __str__(self) -> str:
        """The tables of the terminal."""
        from rich.console import Console

        console = Console(width=140)
        with console.capture() as captured:
            show(self.summary, console)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __repr__(self) -> str:
        summary, best = self.summary, self.summary["best_topology"]
        outcome = {"beats": "beats every member", "loses": "loses to its best member", "not shown": "is not shown to beat its best member"}
        said = f"{best['arm']} {outcome.get(self.says or '', 'was not judged')}, {points(self.gain)} points" if best else "no topology"
        failed = f", {self.n_failed:,} answers failed" if self.n_failed else ""
        return f"<Report {summary['suite']}: {said}, {summary['n_tasks']:,} questions{failed}; {self.folder}>"

    def _repr_html_(self) -> str:
        """For notebooks: the sentence, and the arms that it is about."""
        from html import escape

        chosen = [self.summary[role]["arm"] for role in ("best_topology", "best_member") if self.summary[role]]
        rows = []
        for name in chosen + [name for name in self.summary["arms"] if name not in chosen]:
            arm, strong = self.summary["arms"][name], "b" if name in chosen else "span"
            costs = quantity(arm["wire_bytes"], "B"), quantity(arm["latency_s"]["p50"], "s"), quantity(arm["energy_j"], "J")
            cells = arm["kind"], percent(arm["accuracy"]), *costs
            rows.append(f"<tr><td><{strong}>{escape(name)}</{strong}></td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
        head = "".join(f"<th>{word}</th>" for word in ("arm", "kind", "right", "on the wire", "median", "energy"))
        return f"<p>{escape(self.sentence)}</p><table><tr>{head}</tr>{''.join(rows)}</table><p>{escape(str(self.folder / 'report.html'))}</p>"


def plan(
    suite: str | Suite,
    team: str | Team | None = None,
    topologies: Sequence[Pattern] | None = None,
    *,
    network: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    repeats: int = 1,
) -> Evaluation:
    """The evaluation that `evaluate` would run, checked: every topology has answered a question with members that only pretend to think.

    Loads no weights. What a suite's file names by path is looked up beside that file.
    """
    suites = [suite] if isinstance(suite, Suite) else load_suites(suite)
    if len(suites) != 1:
        raise UserError(f"'{suite}' is a group of suites: evaluate {', '.join(s.name for s in suites)} one by one")
    one = suites[0]
    if isinstance(team, Team):
        if network is not None:
            raise UserError("a Team brings its network along: give `network` to Team.load instead")
        people, team_name = team, team.name
    else:
        where = _entry("team", team, one.file.team, one)
        net = _entry("network", network, one.file.network, one).path if network or one.file.network else None
        people, team_name = Team.load(where.path, network=net), _findable(where)
    if topologies is None:
        patterns = [_settled(_entry("topology", None, name, one), parameters) for name, parameters in one.topologies()]
    else:
        patterns = [_settled(catalog.find("topology", name), parameters) for name, parameters in map(_pattern, topologies)]
    config: dict[str, Any] = {
        "suite": _findable(catalog.Entry("suite", one.name, one.folder / "eval.yaml", "path")),
        "team": team_name,
        "network": _findable(catalog.Entry("network", Path(people.network.file).stem, Path(people.network.file), "path"))
        if people.network.file
        else people.network.name,
        "topologies": [{name: dict(parameters)} for name, parameters in patterns],
        "seed": seed,
        "limit": limit,
        "repeats": repeats,
    }
    evaluation = Evaluation(one, people, patterns, seed, limit, repeats, config)
    for topology in evaluation.prepare().values():
        with suppress(UnmetNeed):  # of what will be learned on dev
            rehearse(topology, people, evaluation.dev[0])
    # not to be set by anyone, but a run does not go on with other weights or other questions than it began with
    config["members"] = {agent.name: f"{agent.info.name} {agent.info.weights_hash[:12]} at {agent.node}" for agent in people}
    config["tasks"] = f"{len(evaluation.dev)} dev, {len(evaluation.test)} test, {stable_hash(evaluation.dev, evaluation.test):016x}"
    return evaluation


def evaluate(
    suite: str | Suite,
    team: str | Team | None = None,
    topologies: Sequence[Pattern] | None = None,
    *,
    runtime: str = "inline",
    hosts: Hosts | None = None,
    ray_address: str | None = None,
    log_dir: str | Path = "logs",
    path: str | Path | None = None,
    resume: bool = False,
    reuse: Iterable[str | Path] = (),
    watch: Watcher | None = None,
    **options: Any,
) -> Report:
    """Run one suite and say whether the team beats its best member.

    `team`, `network` and `topologies` default to those the suite names; further options are those of `plan`. `path` is the run folder (default: a new
    one in `log_dir`); with `resume` it is gone on with. `hosts` may be shared between evaluations, and is then not closed here.
    Works inside a running event loop (a notebook). Raises `UserError` for anything wrong in names, files or options.
    """
    if runtime not in RUNTIMES:
        raise UnknownName("runtime", runtime, RUNTIMES)
    evaluation, known = plan(suite, team, topologies, **options), [_calls(run) for run in reuse]
    folder_path, watch = Path(path) if path else new_run_path(Path(log_dir), evaluation.suite.name), watch or Silence()
    with RunFolder(folder_path, evaluation.config, resume=resume) as folder, closing(Memory(folder_path / "calls.sqlite", reuse=known)) as memory:
        if hosts is None and runtime == "ray":
            watch.stage("starting Ray", 0)
        used = hosts or start_hosts(runtime, ray_address)
        try:
            summary = evaluation.run(folder, used, memory, watch)
        finally:
            if hosts is None:
                used.close()
    write_report(folder_path)
    return Report(summary, folder_path)


def _pattern(topology: Pattern) -> tuple[str, dict[str, Any]]:
    if isinstance(topology, str):
        return topology, {}
    if isinstance(topology, Topology):
        import sys

        file = getattr(sys.modules.get(type(topology).__module__), "__file__", None)
        if file is None:
            raise UserError(f"topology {type(topology).__name__} lives in no file, so a run with it could not be repeated; put it into one")
        return file, topology.model_dump(mode="json", exclude_defaults=True)
    name, parameters = next(iter(topology.items()))
    return name, dict(parameters)


def _settled(entry: catalog.Entry, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A topology as config.json names it, and the parameters given as plain data, checked."""
    name = _findable(entry)
    data = load_topology(name, parameters).model_dump(mode="json")
    return name, {key: data[key] for key in parameters}


def _entry(kind: catalog.Kind, given: str | Path | None, default: str | None, suite: Suite) -> catalog.Entry:
    """What the caller names, or else what the suite's file does."""
    return catalog.find(kind, str(given)) if given else catalog.find(kind, default or "", base=suite.folder)


def _findable(entry: catalog.Entry) -> str:
    """What config.json calls it, to find it again: its name where that leads to it, or else its whole path."""
    try:
        return entry.name if catalog.find(entry.kind, entry.name).path == entry.path else str(entry.path)
    except UnknownName:
        return str(entry.path)


def _calls(run: str | Path) -> Path:
    path = Path(run) / "calls.sqlite" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise UserError(f"no remembered answers at {path}")
    return path


def start_hosts(runtime: str, ray_address: str | None = None) -> Hosts:
    """`open_hosts`, with telemetry off and one line where no cluster is at that address: Ray itself looks for minutes and then ends the process."""
    telemetry_off()
    if runtime == "ray" and ray_address:
        host, _, port = ray_address.rpartition(":")
        try:
            if host and port.isdigit() and "://" not in ray_address:
                import socket

                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return open_hosts(runtime, address=ray_address)
        except (OSError, ValueError) as error:  # ConnectionError is an OSError
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"no Ray cluster at {ray_address}: {why}; start one with `ray start --head`, or leave --ray-address out") from error
    return open_hosts(runtime, address=ray_address)


# --- the rehearsal: what a run would ask, without a model ---

ENDLESS = 2000  # calls for one question
SAMPLED, TEMPERATURES = "self-consistency@", 4  # rivals that take as many samples as they need, and at how many temperatures on dev


def rehearse(topology: Runs, team: Team, task: Task) -> int:
    """How many different calls the topology makes for a question: the more of two rehearsals, with members that agree and with such that do not.

    Raises the UserError that the topology raises: a member it names is not there, it is to be fitted first.
    """
    return max(_Rehearsal(team, agree).calls([topology], task) for agree in (True, False))


def calls_at_most(evaluation: Evaluation) -> dict[str, Any]:
    """What a run would ask of its members, as plain data: arms with their calls a task, and calls of the whole run, each at most.

    Equal calls are made once, so the whole is less than the sum. Self-consistency as a rival is counted with as many samples as it may ever take.
    """
    team, n_dev, n_test = evaluation.team, len(evaluation.dev), len(evaluation.test) * evaluation.repeats
    arms: dict[str, dict[str, Any]] = {}
    dev = test = 0.0
    for agree in (True, False):
        rehearsal, few = _Rehearsal(team, agree), evaluation.dev[:4]
        trial = DevTrial(team, few, lambda answer, task: float(stable_hash(answer, task.id) % 2), rehearsal.execute)
        fitted = {name: _fitted(topology, trial) for name, topology in evaluation.prepare().items()}
        for topology in fitted.values():
            trial.accuracy(topology)
        dev = max(dev, rehearsal.memory.executed / len(few))
        best = max(fitted, key=lambda name: trial.accuracy(fitted[name])[1], default=None)
        kinds: dict[str, tuple[str, Runs]] = {name: ("member", load_topology("single", {"member": name})) for name in team.agents}
        kinds |= {name: ("rival", rival) for name, rival in (rivals(trial, fitted[best], evaluation.seed) if best else {}).items()}
        kinds |= {name: ("topology", topology) for name, topology in fitted.items()}
        for name, (kind, arm) in kinds.items():
            calls = MOST_SAMPLES if name.startswith(SAMPLED) else _Rehearsal(team, agree).calls([arm], few[0])
            arms[name] = {"kind": kind, "calls": max(calls, arms[name]["calls"] if name in arms else 0)}
        counted = [arm for name, (_, arm) in kinds.items() if not name.startswith(SAMPLED)]
        test = max(test, _Rehearsal(team, agree).calls(counted, few[0]))
    sampled = MOST_SAMPLES if any(name.startswith(SAMPLED) for name in arms) else 0
    on_dev, on_test = math.ceil((dev + TEMPERATURES * sampled) * n_dev), math.ceil((test + 2 * sampled) * n_test)
    order = ("member", "rival", "topology")
    return {
        "suite": evaluation.suite.name,
        "team": team.name,
        "members": {agent.name: agent.node for agent in team},
        "network": team.network.name,
        "seed": evaluation.seed,
        "repeats": evaluation.repeats,
        "n_dev": n_dev,
        "n_test": len(evaluation.test),
        "arms": dict(sorted(arms.items(), key=lambda item: order.index(item[1]["kind"]))),
        "calls_at_most": {"dev": on_dev, "test": on_test, "all": on_dev + on_test},
    }


def _fitted(topology: Topology, trial: DevTrial) -> Topology:
    """Fitted to answers without sense, which may be too much for it."""
    try:
        return topology.fit(trial)
    except UserError:
        raise
    except Exception:
        return topology


class _Endless(Exception):
    """A topology asks and asks."""


class _Rehearsal:
    """Hosts whose models only pretend: all sure of one answer, or each unsure of one of its own."""

    def __init__(self, team: Team, agree: bool):
        self.team, self.agree, self.memory = team, agree, Memory()
        self._left = ENDLESS

    def calls(self, topologies: Sequence[Runs], task: Task) -> int:
        """How many different calls these make for a question in all. Raises the UserError of one of them."""
        for topology in topologies:
            told = _Told(topology)
            self._left = ENDLESS
            with suppress(_Endless):
                run_jobs([Job("rehearsal", told, task, self.team)], self, self.memory, _nothing)
            if told.error:
                raise told.error
        return self.memory.executed

    def execute(self, jobs: Sequence[Job]) -> list[Result]:
        results: dict[int, Result] = {}
        self._left = ENDLESS * len(jobs)
        run_jobs(jobs, self, self.memory, lambda result: results.update({id(result.job): result}))
        return [results[id(job)] for job in jobs]

    def generate(self, batches: Batches) -> dict[str, Answers]:
        self._left -= sum(map(len, batches.values()))
        if self._left < 0:
            raise _Endless
        return {model: [self._reply(model, request) for request in requests] for model, requests in batches.items()}

    def _reply(self, model: str, request: Request) -> Reply:
        text, sure = ("0", 0.99) if self.agree else (str(stable_hash(model, request.messages, request.seed) % 1000), 0.01)
        return Reply(text, (0, 0), (math.log(sure), 0.0), sum(len(turn.content) for turn in request.messages), 2)

    def close(self) -> None: ...


def _nothing(result: Result) -> None: ...


class _Told:
    """A topology that tells what mistake of the user it met; the runtime keeps only the words."""

    def __init__(self, topology: Runs):
        self.topology = topology
        self.error: UserError | None = None

    async def run(self, task: Task, team: Team) -> Any:
        try:
            return await self.topology.run(task, team)
        except UserError as error:
            self.error = error
            raise
