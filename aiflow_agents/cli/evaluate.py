"""`aiflow eval`: run a suite and say whether the team beats its best member."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aiflow_agents.cli import Interrupted
from aiflow_agents.cli.again import command, explicit, given_words
from aiflow_agents.cli.options import AnswerSeed, Display, Fault, HostGpus, Limit, Runtime, limits, parameters
from aiflow_agents.cli.output import print_json
from aiflow_agents.errors import AIFlowError, UserError

if TYPE_CHECKING:
    from aiflow_agents.evals.evaluate import Report
    from aiflow_agents.evals.run_folder import OtherRun, RunConfig
    from aiflow_agents.evals.suite import Suite

# what a run is: its config.json keeps these, and they win over that file only where they are given
WHAT = (
    *("team", "network", "fault", "topology", "parameter", "seed", "limit", "repeats", "data", "monolith"),
    *("max_tokens_total", "max_flops", "max_bytes", "max_seconds"),
)
# how it is done: no run remembers these, so a command that goes on with one says them again
HOW = ("runtime", "ray_address", "place", "host_gpus", "reuse", "require_gain", "display", "json")


def evaluate(
    context: typer.Context,
    suite: Annotated[str | None, typer.Argument(help="A suite by name or path; `aiflow list suite` shows them.", show_default=False)] = None,
    team: Annotated[str | None, typer.Option(help="Another team than the suite's own.", show_default=False)] = None,
    network: Annotated[str | None, typer.Option(help="Another network than the suite's or team's own.", show_default=False)] = None,
    fault: Fault = None,
    topology: Annotated[
        list[str] | None, typer.Option(help="Only this topology; repeatable. One alone is the one that is judged, instead of the best on dev.", show_default=False)
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-T", metavar="NAME=VALUE", help="A parameter of every --topology given.", show_default=False)
    ] = None,
    seed: AnswerSeed = 0,
    limit: Limit = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each task is answered.")] = 1,
    data: Annotated[
        str | None,
        typer.Option(help="A file, folder or Hugging Face name to read in place of the suite's data, in the same columns.", show_default=False),
    ] = None,
    monolith: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model that answers alone, as a rival; see `aiflow bench monolith`.", show_default=False),
    ] = None,
    max_tokens_total: Annotated[
        int | None, typer.Option(min=0, help="Of one task: tokens read and made, of all calls together. A hard limit.", show_default=False)
    ] = None,
    max_flops: Annotated[float | None, typer.Option(min=0, help="Of one task: FLOPs of all calls.", show_default=False)] = None,
    max_bytes: Annotated[int | None, typer.Option(min=0, help="Of one task: bytes on all links.", show_default=False)] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0, help="Of one task: simulated seconds from home to home.", show_default=False)] = None,
    runtime: Runtime = "ray",
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster, instead of a local one.", show_default=False)] = None,
    place: Annotated[
        Literal["any", "spread"],
        typer.Option(help="spread: every member's model is loaded on Ray nodes labelled with its tier (aiflow.tier=device, edge or cloud)."),
    ] = "any",
    host_gpus: HostGpus = 0.0,
    log_dir: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path("logs"),
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with this run folder.", show_default=False)] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Repeat the run of this config.json; options given here win over it.", show_default=False)
    ] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Take remembered answers from this run folder; repeatable.", show_default=False)
    ] = None,
    require_gain: Annotated[
        float | None,
        typer.Option(
            help="Exit 1 unless the best topology beats every member, and the 95 % interval of its gain over the best one lies above this (0.05 = 5 points).",
            show_default=False,
        ),
    ] = None,
    display: Display = "rich",
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else on stdout.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, and run nothing.")] = False,
) -> int:
    """Ask a team many questions and say, with evidence, whether it beats its best member, and what that costs.

    A run is a folder. What is given here wins over --config, and that over what the suite says.

    gsm8k, math-500, mmlu, mmlu-pro and arc read public benchmarks, from the Hugging Face hub or from --data. The models that come with this
    package are far too small for those: give a --team of real ones, or the scores mean nothing.
    """
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.evaluate import evaluate as run
    from aiflow_agents.evals.evaluate import plan
    from aiflow_agents.evals.rehearsal import calls_at_most
    from aiflow_agents.evals.run_folder import OtherRun, compare
    from aiflow_agents.evals.runner import new_run_path

    if resume and config:
        raise UserError("--resume goes on with a run and --config begins a new one: give one of them")
    resume = resume.parent if resume and resume.name == "config.json" else resume
    saved = _saved(resume, config)
    settings = _settings(context, saved)
    suites = _suites(suite or (saved.suite if saved else None), resume)
    reports: list[Report] = []
    try:
        if dry_run or len(suites) > 1:  # what is wrong in any suite is said before the first one runs
            plans = [plan(one, **settings) for one in suites]
        if dry_run:
            if resume:
                compare(resume, plans[0].config)
            return _dry_run([calls_at_most(one) for one in plans], json)
        for position, one in enumerate(suites):
            path = resume or new_run_path(log_dir, one.name)
            with _resumable(context, path, suites[position + 1 :]), watcher(display) as watch:
                report = run(
                    one,
                    runtime=runtime,
                    ray_address=ray_address,
                    place=place,
                    host_gpus=host_gpus,
                    path=path,
                    resume=resume is not None,
                    reuse=reuse or [],
                    watch=watch,
                    **settings,
                )
            reports.append(report)
            if not json:
                _show(report)
    except OtherRun as other:
        raise UserError(_refusal(context, other)) from None
    if json:
        _one_or_all([report.summary | {"folder": str(report.folder)} for report in reports])
    return _exit_code(reports, require_gain)


# --- what is evaluated ---


def _saved(resume: Path | None, config: Path | None) -> RunConfig | None:
    """What a run was asked, from its config.json. Raises UserError where there is none or it cannot be read."""
    from aiflow_agents.config import load_yaml
    from aiflow_agents.evals.run_folder import RunConfig

    if resume and not (resume / "config.json").is_file():
        raise UserError(f"{resume} is no run folder: it has no config.json")
    if resume:
        return load_yaml(resume / "config.json", RunConfig)
    return load_yaml(config / "config.json" if config.is_dir() else config, RunConfig) if config else None


def _settings(context: typer.Context, saved: RunConfig | None) -> dict[str, Any]:
    """What is evaluated, but for the suite: as it was given, else as the saved run has it, else as the options have it by themselves."""
    given, asked = explicit(context), context.params
    plain = ("team", "network", "seed", "limit", "repeats", "data", "monolith")
    budget = limits(asked["max_tokens_total"], asked["max_flops"], asked["max_bytes"], asked["max_seconds"])
    return {
        **{name: asked[name] if name in given or saved is None else getattr(saved, name) for name in plain},
        "topologies": _patterns(asked["topology"], asked["parameter"]) or (saved.topologies if saved else None),
        "faults": list(asked["fault"] or (saved.faults if saved else ())),
        "budget": budget or (saved.budget if saved else None),
    }


def _patterns(names: list[str] | None, given: list[str] | None) -> list[dict[str, dict[str, Any]]] | None:
    """The topologies of the command line."""
    if given and not names:
        raise UserError("-T sets parameters of the topologies given with --topology; none is given")
    return [{name: parameters(given)} for name in names] if names else None


def _suites(name: str | None, resume: Path | None) -> list[Suite]:
    """The suite of this name, or those of its group."""
    from aiflow_agents.evals.suite import load_suites

    if name is None:
        raise UserError("which suite? `aiflow list suite` shows them")
    suites = load_suites(name)
    if resume and len(suites) > 1:
        raise UserError(f"'{name}' is a group of suites: resume one of {', '.join(one.name for one in suites)}")
    return suites


# --- when it stops before its end ---


@contextmanager
def _resumable(context: typer.Context, path: Path, left: Iterable[Suite]) -> Iterator[None]:
    """Around a run: what stops it is told with the command that goes on, where there is something to go on with."""
    from aiflow_agents.cli.main import disk_is_full

    try:
        yield
    except KeyboardInterrupt:
        if (path / "config.json").exists():
            raise Interrupted(_go_on(context, path, left)) from None
        raise
    except Exception as error:
        full = disk_is_full(error)
        ours = isinstance(error, AIFlowError) and not isinstance(error, UserError)  # the hosts died, again and again
        if not (full or ours) or not (path / "config.json").exists():
            raise
        what = "the disk is full: free some space" if full else str(error)
        raise UserError(f"{what}; what was finished is kept, go on with: {_go_on(context, path, left)}") from error


def _go_on(context: typer.Context, path: Path, left: Iterable[Suite]) -> str:
    """The command that does what is left to do: the rest of this run, and the suites after it."""
    how, what = given_words(context, HOW), given_words(context, (*WHAT, "config", "log_dir"))
    return " && ".join([command("eval", "--resume", path, *how), *(command("eval", suite.name, *what, *how) for suite in left)])


def _refusal(context: typer.Context, other: OtherRun) -> str:
    """A run does not go on as another one: what differs, and which commands make sense instead."""
    keys = {"topology": "topologies", "fault": "faults"}
    given = {keys.get(name, "budget" if name.startswith("max_") else name): by for name, by in explicit(context).items()}
    told = {name: by for name, by in given.items() if name in other.differ}
    suite, how = [context.params["suite"]] if context.params["suite"] else [], given_words(context, HOW)
    new = command("eval", *suite, "--config", other.path / "config.json", *given_words(context, WHAT), *how)
    if not told:
        return f"{other.path} cannot go on, as what it began with has changed: {other.said}; begin a new run with what is there now: {new}"
    variables = ", ".join(f"{by} says so" for by in told.values() if by.startswith("AIFLOW_"))
    return (
        f"{other.path} was begun with other settings: {other.only(told).said}{f' ({variables})' if variables else ''}; "
        f"go on with it as it was: {command('eval', '--resume', other.path, *how)}; or begin a new run: {new}"
    )


# --- what is printed ---


def _one_or_all(found: list[dict[str, Any]]) -> None:
    """One suite's data, or a list of those of a group."""
    print_json(found[0] if len(found) == 1 else found)


def _dry_run(plans: list[dict[str, Any]], json: bool) -> int:
    if json:
        _one_or_all(plans)
        return 0
    for plan in plans:
        repeats = f", each {plan['repeats']} times" if plan["repeats"] > 1 else ""
        typer.echo(f"{plan['suite']}: {plan['n_dev']:,} dev and {plan['n_test']:,} test tasks{repeats}, seed {plan['seed']}")
        faults = "".join(f", {fault}" for fault in plan.get("faults", ()))
        typer.echo(f"team {plan['team']} on {plan['network']}{faults}: {', '.join(f'{name} at {node}' for name, node in plan['members'].items())}\n")
        width = max(map(len, plan["arms"]))
        typer.echo(f"{'arm':{width}}  {'kind':8}  calls a task, at most")
        for name, arm in plan["arms"].items():
            typer.echo(f"{name:{width}}  {arm['kind']:8}  {arm['calls']:4}")
        calls = plan["calls_at_most"]
        typer.echo(f"\nat most {calls['all']:,} calls, {calls['dev']:,} on dev and {calls['test']:,} on test; equal ones are made once\n")
    return 0


def _show(report: Report) -> None:
    from rich.console import Console

    from aiflow_agents.evals.report import show

    console = Console(width=None if sys.stdout.isatty() else 140)
    show(report.summary, console)
    console.print(f"report: {report.folder / 'report.html'}", soft_wrap=True, highlight=False)


def _exit_code(reports: list[Report], require_gain: float | None) -> int:
    code = 0
    for report in reports:
        if report.n_failed:
            typer.echo(
                f"aiflow: {report.n_failed} answers failed and count as wrong; {report.folder / 'run.log'} lists them, and "
                f"`aiflow eval --resume {shlex.quote(str(report.folder))}` tries them again",
                err=True,
            )
            code = 1
        if require_gain is not None and not report.shows(require_gain):
            typer.echo(f"aiflow: {report.summary['suite']}: a gain above {require_gain:g} is required, and not shown: {_why_not(report)}", err=True)
            code = 1
    return code


def _why_not(report: Report) -> str:
    """Why a gain is not shown, in a line."""
    team, least = report.summary["best_topology"], report.least_gain
    if team is None or least is None:
        return f"no topology was judged; {report.folder}"
    gain = f"{team['arm']} over {report.summary['best_member']['arm']}: {report.gain:.3f}, the lower end of its 95 % interval is {least:.3f}"
    every = "" if report.says == "beats" else ", and it is not shown to beat every member" if report.says == "not shown" else ", and it loses"
    return f"{gain}{every}; {report.folder}"
