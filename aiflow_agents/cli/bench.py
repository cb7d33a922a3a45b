"""`aiflow bench`: what our own machinery costs, measured here and now, as ratios."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import UserError

bench = typer.Typer(add_completion=False, help="Measure: our engine beside transformers' generate, and an evaluation beside its models alone.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")]
Display = Annotated[Literal["rich", "plain", "none"], typer.Option(help="Progress, on stderr; rich is plain without a terminal.")]


@bench.command()
def engine(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names or folders. Default: tally and oak.", show_default=False)] = None,
    suite: Annotated[str, typer.Option(help="Whose test questions are asked.")] = "specialists",
    prompts: Annotated[int, typer.Option(min=1, help="How many questions; at batch 1 at most 16 of them.")] = 256,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; repeatable. Default: 1 and 64.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 5,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Also peak memory, of a process for each side.")] = True,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    display: Display = "rich",
    json: AsJson = False,
) -> int:
    """Our engine and transformers' generate side by side: same weights, float32, questions and ends, one thread; the same greedy text is checked.

    Exits 1 if an answer differs anywhere but between two tokens that are equally likely within 1e-4.
    """
    from .. import catalog
    from ..bench.engine import bench_engine
    from ..evals.suite import load_suites
    from .display import watcher

    folders = [catalog.find("model", name).path for name in models or ["tally", "oak"]]
    (one, *more) = load_suites(suite)
    if more:
        raise UserError(f"'{suite}' is a group of suites: take one of {', '.join(each.name for each in (one, *more))}")
    questions = [task.question for task in one.tasks("test", seed, prompts)]
    found = []
    with watcher(display) as watch:
        watch.stage("engine", len(folders))
        for folder in folders:
            found.append(bench_engine(folder, questions, batch_sizes=batch or (1, 64), max_tokens=max_tokens, repeats=repeats, memory=memory))
            watch.advance(1)
    result = {"machine": _machine(), "suite": one.name, "seed": seed, "models": found}
    if json:
        typer.echo(json_module.dumps(result, indent=2))
    else:
        _show_engine(result)
    return 1 if any(row["different"] for each in found for row in each["batches"]) else 0


@bench.command()
def overhead(
    suite: Annotated[str, typer.Argument(help="A suite by name or path.")] = "specialists",
    limit: Annotated[int, typer.Option(min=1, help="How many test tasks.")] = 300,
    runtime: Annotated[Literal["inline", "ray", "both"], typer.Option(help="Where models compute.")] = "both",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    display: Display = "rich",
    json: AsJson = False,
) -> None:
    """An evaluation against the very same model batches alone, start-up aside: wall time * cores used / time of the batches on one core."""
    from ..bench.overhead import bench_overhead
    from ..evals.evaluate import plan
    from .display import watcher

    evaluation = plan(suite, seed=seed, limit=limit)
    runtimes = ("inline", "ray") if runtime == "both" else (runtime,)
    with watcher(display) as watch:
        result = {"machine": _machine(), "seed": seed, **bench_overhead(evaluation, runtimes, repeats=repeats, watch=watch)}
    if json:
        typer.echo(json_module.dumps(result, indent=2))
        return
    typer.echo(f"{result['suite']}, {result['n_tasks']:,} test tasks, median of {repeats}; {result['machine']}\n")
    typer.echo(f"{'runtime':8} {'cores':>5} {'batches':>8} {'calls':>8} {'evaluation':>11} {'batches alone':>14} {'ratio':>6}")
    for name, row in result["runtimes"].items():
        times = f"{row['wall_s']:9.2f} s {row['alone_s']:12.2f} s"
        typer.echo(f"{name:8} {row['cores']:5} {row['batches']:8,} {row['calls']:8,} {times} {row['ratio']:6.2f}")
    typer.echo("\nratio: seconds of the evaluation * cores / seconds of the same batches on one core")


def _show_engine(result: dict[str, Any]) -> None:
    typer.echo(f"questions of {result['suite']}, greedy, float32, one thread; {result['machine']}\n")
    typer.echo(f"{'model':12} {'batch':>5} {'ours':>13} {'transformers':>14} {'ratio':>6}  {'same text':>12}  peak memory, ours and theirs")
    for each in result["models"]:
        for row in each["batches"]:
            same = f"{row['identical']}/{row['prompts']}" + (f" +{row['ties']} ties" if row["ties"] else "")
            rates = f"{row['ours_tokens_per_s']:7,.0f} tok/s {row['transformers_tokens_per_s']:8,.0f} tok/s"
            peak = f"{row['ours_peak_mib']:.0f} and {row['transformers_peak_mib']:.0f} MiB" if "ours_peak_mib" in row else "-"
            typer.echo(f"{each['model']:12} {row['batch']:5} {rates} {row['ratio']:6.2f}  {same:>12}  {peak}")


def _machine() -> str:
    """Processor, cores and versions, as they stand beside every number."""
    import os
    import platform
    from importlib.metadata import version

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")), name)
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"
