"""`evaluate`: the same evaluation from Python as from the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError

from aiflow_agents import catalog
from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.evals.rehearsal import rehearse
from aiflow_agents.evals.report import show, write_report
from aiflow_agents.evals.run_folder import RunFolder
from aiflow_agents.evals.runner import Evaluation, Silence, Watcher, new_run_path
from aiflow_agents.evals.scorer import Scorer
from aiflow_agents.evals.start import start_hosts
from aiflow_agents.evals.suite import Given, Suite, load_suites
from aiflow_agents.evals.tables import What, rows, to_arrow, to_pandas
from aiflow_agents.evals.verdict import percent, points, quantity, sentence
from aiflow_agents.net.faults import Fault, parse
from aiflow_agents.runtime.budget import Budget
from aiflow_agents.runtime.extraction import extraction
from aiflow_agents.runtime.hooks import Hooks, Run, log_warning
from aiflow_agents.runtime.hosts import Hosts
from aiflow_agents.runtime.memory import Memory
from aiflow_agents.runtime.placement import seated
from aiflow_agents.runtime.ray_metrics import RayMetrics
from aiflow_agents.runtime.scene import stable_hash
from aiflow_agents.runtime.team import Team
from aiflow_agents.topology.base import Topology
from aiflow_agents.topology.load import file_of, load_topology

RUNTIMES = ("inline", "ray")
PLACES = ("any", "spread")
Pattern = str | Topology | Mapping[str, Mapping[str, Any]]  # a topology's name or path, a topology, or a name with its parameters


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
    def least_gain(self) -> float | None:
        """The lower end of the 95 % interval of `gain`; None without a topology."""
        best = self.summary["best_topology"]
        rows = (v for v in self.summary["verdicts"] if best and v["arm"] == best["arm"] and v["against"] == "members")
        return next((row["ci95"][0] for row in rows if row["ci95"]), None)

    def shows(self, gain: float) -> bool:
        """Whether the best topology is shown to beat every member, and the best one by more than `gain` (a share: 0.05 is 5 points)."""
        return self.says == "beats" and self.least_gain is not None and self.least_gain > gain

    @property
    def n_failed(self) -> int:
        return sum(arm["n_failed"] for arm in self.summary["arms"].values())

    def accuracy(self, arm: str) -> float:
        return self.summary["arms"][arm]["accuracy"]

    def to_pandas(self, what: What = "arms") -> Any:
        """`arms` or `samples` as a pandas.DataFrame; for the columns see `evals.tables`. Raises UserError where there is no pandas."""
        return to_pandas(rows(what, self.summary, self.folder))

    def to_arrow(self, what: What = "arms") -> Any:
        """The same as a pyarrow.Table. Raises UserError where there is no pyarrow."""
        return to_arrow(rows(what, self.summary, self.folder))

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
        lines = []
        for name in chosen + [name for name in self.summary["arms"] if name not in chosen]:
            arm, strong = self.summary["arms"][name], "b" if name in chosen else "span"
            costs = quantity(arm["wire_bytes"], "B"), quantity(arm["latency_s"]["p50"], "s"), quantity(arm["energy_j"], "J")
            cells = arm["kind"], percent(arm["accuracy"]), *costs
            lines.append(f"<tr><td><{strong}>{escape(name)}</{strong}></td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
        head = "".join(f"<th>{word}</th>" for word in ("arm", "kind", "right", "on the wire", "median", "energy"))
        return f"<p>{escape(self.sentence)}</p><table><tr>{head}</tr>{''.join(lines)}</table><p>{escape(str(self.folder / 'report.html'))}</p>"


def plan(
    suite: str | Suite | Iterable[Given],
    team: str | Team | None = None,
    topologies: Sequence[Pattern] | None = None,
    *,
    network: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    repeats: int = 1,
    data: str | Path | None = None,
    monolith: str | Path | None = None,
    budget: Budget | None = None,
    faults: Sequence[str | Fault] = (),
    scorer: str | Scorer | None = None,
) -> Evaluation:
    """The evaluation that `evaluate` would run, checked: every topology has answered a question with members that only pretend to think.

    `suite` is a name or path, a `Suite`, or tasks as `Suite.of` takes them, marked by `scorer`. What a suite's file names by path is looked up beside
    that file; `data` is read in place of what it names, from here. `monolith` is a model by name or folder, which answers alone and is a rival of the
    team. `budget` limits what each task may spend, in every arm, on dev and on test (see `runtime.budget`). `faults` go wrong in each task, as in
    `["cloud dies 2.0"]`, beside those of the network's file (see `net.faults`). Loads no weights.
    """
    one = _one(suite, scorer).reading(None if data is None else str(data))
    people, team_name = _people(one, team, network)
    people = people.extracting(extraction(one.file.extract)).with_faults(*parse(faults))
    alone = None if monolith is None else _monolith(monolith, people, one)
    patterns = _patterns(one, topologies)
    suite_name = catalog.IN_PYTHON + one.name if one.given else _findable(catalog.Entry("suite", one.name, one.folder / "eval.yaml", "path"))
    config: dict[str, Any] = {
        "suite": suite_name,
        "team": team_name,
        "network": _findable(catalog.Entry("network", Path(people.network.file).stem, Path(people.network.file), "path"))
        if people.network.file
        else people.network.name,
        "topologies": [_told(each) if isinstance(each, Topology) else {each[0]: dict(each[1])} for each in patterns],
        "seed": seed,
        "limit": limit,
        "repeats": repeats,
        **({} if one.data is None else {"data": one.data}),
        **({} if monolith is None else {"monolith": _findable(catalog.find("model", str(monolith)))}),
        **({"budget": budget.limits()} if budget else {}),
        **({"faults": list(map(str, people.network.faults))} if people.network.faults else {}),
    }
    evaluation = Evaluation(one, people, patterns, seed, limit, repeats, config, monolith=alone, budget=budget)
    rehearse(evaluation)
    config |= _pinned(evaluation)  # the evaluation's own: what it has drawn by now it need not draw again
    return evaluation


def _pinned(evaluation: Evaluation) -> dict[str, Any]:
    """Not to be set by anyone, but a run does not go on with other weights or other questions than it began with."""
    extract, everybody = evaluation.suite.file.extract, [*evaluation.team, *(evaluation.monolith or ())]
    members = {agent.name: f"{agent.info.name} {agent.info.weights_hash[:12]} at {agent.node}" for agent in everybody}
    told = {} if extract == "text" else {"extract": extract if isinstance(extract, str) else extract.model_dump(exclude_defaults=True)}
    dev, test = evaluation.dev, evaluation.test
    return {"members": members, **told, "tasks": f"{len(dev)} dev, {len(test)} test, {stable_hash(dev, test):016x}"}


def _one(suite: str | Suite | Iterable[Given], scorer: str | Scorer | None) -> Suite:
    """The suite that is meant."""
    if scorer is not None and isinstance(suite, str | Suite):
        raise UserError("a suite brings its scorer along: `scorer` is for tasks that are given as a list")
    suites = [suite] if isinstance(suite, Suite) else load_suites(suite) if isinstance(suite, str) else [Suite.of(suite, scorer or "exact")]
    if len(suites) != 1:
        raise UserError(f"'{suite}' is a group of suites: evaluate {', '.join(s.name for s in suites)} one by one")
    return suites[0]


def _people(suite: Suite, team: str | Team | None, network: str | None) -> tuple[Team, str]:
    """Who answers, and what config.json calls them."""
    if team is None and suite.given:
        raise UserError(f"a suite made in Python names no team: give one, as in evaluate({suite.name}, team)")
    if isinstance(team, Team):
        if network is not None:
            raise UserError("a Team brings its network along: give `network` to Team.load instead")
        return team, _where_from(team)
    where = _entry("team", team, suite.file.team, suite)
    net = _entry("network", network, suite.file.network, suite).path if network or suite.file.network else None
    return Team.load(where.path, network=net, max_tokens=suite.file.max_tokens), _findable(where)


def _patterns(suite: Suite, topologies: Sequence[Pattern] | None) -> list[tuple[str, dict[str, Any]] | Topology]:
    """The topologies that are given, or else the suite's own."""
    if topologies is not None:
        asked = map(_pattern, topologies)
        return [each if isinstance(each, Topology) else _settled(catalog.find("topology", each[0]), each[1]) for each in asked]
    patterns: list[tuple[str, dict[str, Any]] | Topology] = []
    for place, (name, parameters) in enumerate(suite.topologies()):
        try:
            patterns.append(_settled(catalog.find("topology", name, base=suite.folder), parameters))
        except UserError as error:
            raise suite.mistake(error, "topologies", place) from None
    return patterns


def evaluate(
    suite: str | Suite | Iterable[Given],
    team: str | Team | None = None,
    topologies: Sequence[Pattern] | None = None,
    *,
    runtime: str = "inline",
    hosts: Hosts | None = None,
    ray_address: str | None = None,
    place: str = "any",
    host_gpus: float = 0.0,
    log_dir: str | Path = "logs",
    path: str | Path | None = None,
    resume: bool = False,
    reuse: Iterable[str | Path] = (),
    watch: Watcher | None = None,
    hooks: Iterable[object] = (),
    **options: Any,
) -> Report:
    """Run one suite and say whether the team beats its best member.

    `team`, `network` and `topologies` default to those the suite names; further options are those of `plan`. `path` is the run folder (default: a new
    one in `log_dir`); with `resume` it is gone on with. `place` "spread" loads members' models on Ray nodes of their tiers (`runtime.placement`), of
    whose GPUs each host gets `host_gpus`; a cluster at `ray_address` publishes what is counted (`runtime.ray_metrics`). `hosts` may be shared between
    evaluations, and is then not closed here. `hooks` are told what happens, and change nothing (`runtime.hooks`).
    Works inside a running event loop (a notebook). Raises `UserError` for anything wrong in names, files or options.
    """
    if runtime not in RUNTIMES:
        raise UnknownName("runtime", runtime, RUNTIMES)
    if place not in PLACES:
        raise UnknownName("place", place, PLACES)
    if place == "spread" and runtime != "ray":
        raise UserError("place 'spread' is for a Ray cluster: runtime 'ray', with the cluster's ray_address")
    evaluation, known = plan(suite, team, topologies, **options), [_calls(run) for run in reuse]
    models = evaluation.team.objects
    if place == "spread":
        alone = evaluation.monolith
        evaluation = replace(evaluation, team=seated(evaluation.team), monolith=seated(alone) if alone else None)
    folder_path, note = Path(path) if path else new_run_path(Path(log_dir), evaluation.suite.name), watch.note if watch else log_warning
    watch = watch or Silence()

    def tell(line: str) -> None:  # what went wrong in hooks
        folder.log(line)
        note(line)

    heard = Hooks([*hooks, *([RayMetrics()] if runtime == "ray" and ray_address else [])], tell=tell)
    with RunFolder(folder_path, evaluation.config, resume=resume) as folder, closing(Memory(folder_path / "calls.sqlite", reuse=known)) as memory:
        if hosts is None and runtime == "ray":
            watch.stage("starting Ray", 0)
        used = hosts or start_hosts(runtime, ray_address, host_gpus=host_gpus, note=watch.note, models=models)
        run = Run(evaluation.team, evaluation.suite.name, evaluation.seed, folder_path, evaluation.config)
        try:
            if place == "spread" and hosts is None:
                used.check([evaluation.team, *([evaluation.monolith] if evaluation.monolith else [])])  # type: ignore[attr-defined]
            with closing(heard), heard.watching(run) as teller:
                summary = evaluation.run(folder, used, memory, watch, teller)
                if teller:
                    teller.outcome = Report(deepcopy(summary), folder_path)  # its own, so that nobody else's changes
        finally:
            if hosts is None:
                used.close()
    write_report(folder_path)
    return Report(summary, folder_path)


def _pattern(topology: Pattern) -> tuple[str, dict[str, Any]] | Topology:
    """A topology by name and parameters, so that the run can be repeated; the object itself where no file of its own makes it."""
    if isinstance(topology, str):
        return topology, {}
    if isinstance(topology, Topology):
        [parameters] = _told(topology).values()
        file = file_of(topology)
        return topology if file is None else (str(file), parameters)
    name, given = next(iter(topology.items()))
    return name, dict(given)


def _told(topology: Topology) -> dict[str, dict[str, Any]]:
    """How config.json tells of an object. Raises UserError where its parameters are no plain data."""
    try:
        return {catalog.IN_PYTHON + topology.name(): topology.model_dump(mode="json", exclude_defaults=True)}
    except PydanticSerializationError as error:
        raise UserError(f"topology '{topology.name()}' has a parameter that cannot be written down: {error}; use plain data") from None


def _where_from(team: Team) -> str:
    """How config.json calls a team that is given as an object."""
    return _findable(catalog.Entry("team", team.name, Path(team.file), "path")) if team.file else catalog.IN_PYTHON + team.name


def _settled(entry: catalog.Entry, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A topology as config.json names it, and the parameters given as plain data, checked."""
    name = _findable(entry)
    data = load_topology(name, parameters).model_dump(mode="json")
    return name, {key: data[key] for key in parameters}


def _entry(kind: catalog.Kind, given: str | Path | None, default: str | None, suite: Suite) -> catalog.Entry:
    """What the caller names, or else what the suite's file does."""
    if given:
        return catalog.find(kind, str(given))
    try:
        return catalog.find(kind, default or "", base=suite.folder)
    except UserError as error:
        raise suite.mistake(error, kind) from None


def _monolith(model: str | Path, team: Team, suite: Suite) -> Team:
    """A model by name or folder as a team of one. Raises UserError where it could not see what the members do."""
    if suite.file.scenes:
        raise UserError(f"the pictures of suite '{suite.name}' stay with its cameras, so no single model can be asked; leave the monolith out")
    one = team.beside("monolith", catalog.find("model", str(model)).path, suite.file.max_tokens)
    return one.extracting(extraction(suite.file.extract))


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
