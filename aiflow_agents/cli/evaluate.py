"""`aiflow eval`: run a suite and say whether the team beats its best member."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from aiflow_agents.cli import Interrupted
from aiflow_agents.errors import UserError


def evaluate(
    suite: Annotated[str | None, typer.Argument(help="A suite by name or path; `aiflow list suite` shows them.")] = None,
    team: Annotated[str | None, typer.Option(help="Another team than the suite's own.")] = None,
    network: Annotated[str | None, typer.Option(help="Another network than the suite's or team's own.")] = None,
    topology: Annotated[list[str] | None, typer.Option(help="Only this topology; may be given several times. Parameters with -T.")] = None,
    parameter: Annotated[list[str] | None, typer.Option("-T", help="name=value for every --topology given.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws the questions, and every sampled answer (default: 0).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many test tasks (default: as the suite says).")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="How often each task is answered (default: once).")] = None,
    runtime: Annotated[str, typer.Option(help="ray (one host a core) or inline (this process).")] = "ray",
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster, instead of a local one.")] = None,
    log_dir: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path("logs"),
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="Repeat the run of this config.json; other options given here change it.")] = None,
    reuse: Annotated[list[Path] | None, typer.Option(help="Take remembered answers from this run folder.")] = None,
    require_gain: Annotated[
        float | None, typer.Option(help="Exit 1 unless the best topology beats every member, the best one by this much (0.05 = 5 points).")
    ] = None,
    display: Annotated[str, typer.Option(help="rich, plain or none.")] = "rich",
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would run.")] = False,
) -> int:
    """Ask a team many questions and say, with evidence, whether it beats its best member, and what that costs."""
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.evaluate import evaluate as run
    from aiflow_agents.evals.evaluate import plan
    from aiflow_agents.evals.runner import new_run_path
    from aiflow_agents.evals.suite import load_suites

    asked = {"team": team, "network": network, "seed": seed, "limit": limit, "repeats": repeats}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    patterns = _patterns(topology, parameter)
    again = [word for key, value in given.items() for word in (f"--{key}", str(value))]  # what a command that goes on after Ctrl-C must repeat
    again += [word for name in topology or [] for word in ("--topology", name)] + [word for each in parameter or [] for word in ("-T", each)]
    how = ["--runtime", runtime, *(["--ray-address", ray_address] if ray_address else []), *(w for run in reuse or [] for w in ("--reuse", str(run)))]
    if resume and config:
        raise UserError("--resume goes on with a run and --config begins a new one: give one of them")
    if resume or config:
        saved = _saved(resume, config)
        suite, patterns = suite or saved.suite, patterns or saved.topologies
        given = saved.model_dump(include={*asked}) | given  # what was given explicitly wins; a resume that this makes another run is refused below
    if suite is None:
        raise UserError("which suite? `aiflow list suite` shows them")
    suites = load_suites(suite)
    if resume and len(suites) > 1:
        raise UserError(f"'{suite}' is a group of suites: resume one of {', '.join(s.name for s in suites)}")
    watch = watcher("none" if json else display)
    if dry_run or len(suites) > 1:  # what is wrong in any suite is said before the first one runs
        plans = [plan(one, topologies=patterns, **given) for one in suites]
    if dry_run:
        return _dry_run(plans)
    reports = []
    with watch:
        for place, one in enumerate(suites):
            path = resume or new_run_path(log_dir, one.name)
            try:
                reports.append(
                    run(one, topologies=patterns, runtime=runtime, ray_address=ray_address, path=path, resume=resume is not None, reuse=reuse or [],
                        watch=watch, **given)
                )  # fmt: skip
            except KeyboardInterrupt:
                if not (path / "config.json").exists():
                    raise
                left = [["aiflow", "eval", "--resume", str(path), *how], *(["aiflow", "eval", s.name, *again, *how] for s in suites[place + 1 :])]
                raise Interrupted(" && ".join(map(shlex.join, left))) from None
    if json:
        summaries = [report.summary | {"folder": str(report.folder)} for report in reports]
        typer.echo(json_module.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=2))
    else:
        _show(reports)
    return _exit_code(reports, require_gain)


def parameters(given: list[str] | None) -> dict[str, Any]:
    """`-T rounds=3` as data; values are read as YAML, so numbers are numbers."""
    import yaml

    settings: dict[str, Any] = {}
    for each in given or []:
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise UserError(f"-T {each}: expected name=value")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"-T {each}: the value cannot be read; put it into quotes") from None
    return settings


def _patterns(names: list[str] | None, given: list[str] | None) -> list[dict[str, dict[str, Any]]] | None:
    """The topologies of the command line."""
    if given and not names:
        raise UserError("-T sets parameters of the topologies given with --topology; none is given")
    return [{name: parameters(given)} for name in names] if names else None


def _saved(resume: Path | None, config: Path | None) -> Any:
    """What a run was asked, from its config.json. Raises UserError where there is none or it cannot be read."""
    from aiflow_agents.config import load_yaml
    from aiflow_agents.evals.run_folder import RunConfig

    file = resume / "config.json" if resume else config
    assert file is not None
    if resume and not file.is_file():
        raise UserError(f"{resume} is no run folder: it has no config.json")
    return load_yaml(file, RunConfig)


def _dry_run(plans: list[Any]) -> int:
    for evaluation in plans:
        typer.echo(f"{evaluation.suite.name}: {evaluation.team}")
        typer.echo(f"  {len(evaluation.dev)} dev and {len(evaluation.test)} test tasks")
        typer.echo(f"  topologies: {', '.join(evaluation.prepare())}")
    return 0


def _show(reports: list[Any]) -> None:
    from rich.console import Console

    from aiflow_agents.evals.report import show

    console = Console(width=None if sys.stdout.isatty() else 140)
    for report in reports:
        show(report.summary, console)
        console.print(f"report: {report.folder / 'report.html'}", soft_wrap=True, highlight=False)


def _exit_code(reports: list[Any], require_gain: float | None) -> int:
    code = 0
    for report in reports:
        if report.n_failed:
            typer.echo(
                f"aiflow: {report.n_failed} answers failed and count as wrong; {report.folder / 'run.log'} lists them, and "
                f"`aiflow eval --resume {shlex.quote(str(report.folder))}` tries them again",
                err=True,
            )
            code = 1
        if require_gain is not None and (report.says != "beats" or report.gain < require_gain):
            typer.echo(f"aiflow: {report.summary['suite']}: the gain of {require_gain:g} that was asked for is not shown", err=True)
            code = 1
    return code
