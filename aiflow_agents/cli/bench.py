"""`aiflow bench`: how fast the engine is beside transformers' own, and what an evaluation costs beside its models."""

from __future__ import annotations

from json import dumps
from typing import Annotated, Any, Literal

import typer

from aiflow_agents.cli.bench_backends import backends
from aiflow_agents.cli.bench_controls import controls
from aiflow_agents.cli.bench_decoding import decoding
from aiflow_agents.cli.bench_drafting import drafting
from aiflow_agents.cli.bench_family import family
from aiflow_agents.cli.bench_judge import judge
from aiflow_agents.cli.bench_kills import kills
from aiflow_agents.cli.bench_monolith import monolith
from aiflow_agents.cli.bench_plan import plan
from aiflow_agents.cli.bench_rank import rank
from aiflow_agents.cli.bench_report import report
from aiflow_agents.cli.bench_resume import resume
from aiflow_agents.cli.bench_serve import serve
from aiflow_agents.cli.bench_views import views
from aiflow_agents.cli.bench_wire import wire

bench = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measure this installation. Medians over rounds in which both sides run by turns."
)
bench.command("backends", short_help="One model behind every backend: the same text, and how fast.")(backends)
bench.command("controls", short_help="Does the judge say `beats` where it must not?")(controls)
bench.command("decoding", short_help="Several tiers decode together: is it exact?")(decoding)
bench.command("drafting", short_help="Tokens per second of a family that drafts for itself.")(drafting)
bench.command("family")(family)
bench.command("judge", short_help="Is the judge ever fooled? Worlds of known truth.")(judge)
bench.command("kills", short_help="Hosts and raylets die in mid-run: is nothing lost?")(kills)
bench.command("monolith", short_help="A team beside one model of its size and tokens.")(monolith)
bench.command("plan", short_help="Do forecasts of `aiflow plan` come true on real sockets?")(plan)
bench.command("rank", short_help="Accuracy over sizes, for each way to decompose.")(rank)
bench.command("report", short_help="Seconds that a large run's page takes to open.")(report)
bench.command("resume", short_help="Killed and resumed again and again: is nothing lost?")(resume)
bench.command("serve", short_help="What serving adds to a model, under load and abuse.")(serve)
bench.command("views", short_help="Accuracy by bytes of each camera: features, JPEG, text.")(views)
bench.command("wire", short_help="Codecs on hidden states: bits, answers lost, time.")(wire)

MODELS = ("oak", "tally")  # the largest that is shipped, and one of those for devices
Display = Annotated[Literal["rich", "plain", "none"], typer.Option(help="Progress, on stderr; rich is plain without a terminal.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")]


@bench.command("engine", short_help="Tokens per second and memory, beside transformers.")
def engine(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help=f"Names or paths. Default: {' and '.join(MODELS)}.", show_default=False)
    ] = None,
    suite: Annotated[str, typer.Option(help="Whose test questions are the prompts.")] = "specialists",
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts; one by one is slow, so batch 1 takes at most 16 of them.")] = 128,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; repeatable. Default: 1 and 64.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer; most end by themselves before.")] = 32,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of both sides.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws the questions.")] = 0,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Also peak memory, each side in a process of its own.")] = True,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """Our engine beside transformers' `generate`: tokens per second, peak memory, and whether both say the same.

    Same weights, dtype, prompts and ends, greedy, one thread. Exit code 1 where the texts differ, other than at a tie of two logits within 1e-4.
    """
    from aiflow_agents import catalog
    from aiflow_agents.bench.engine import bench_engine
    from aiflow_agents.bench.machine import machine
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.suite import load_suite
    from aiflow_agents.models.family.model import model_info

    folders = [catalog.find("model", name).path for name in models or MODELS]
    for folder in folders:
        model_info(folder)  # a folder without weights is said before anything is measured
    one = load_suite(suite)
    questions = [task.question for task in one.tasks("test", seed, prompts)]
    about, sizes, found = machine(), batch or [1, 64], []
    with watcher(display) as watch:
        for folder in folders:
            watch.stage(f"{folder.name}: batches of {', '.join(map(str, sizes))}", 0)
            found.append(bench_engine(folder, questions, batch_sizes=sizes, dtype=dtype, max_tokens=max_tokens, repeats=repeats, memory=memory))
    rows = [(model["model"], row) for model in found for row in model["batches"]]
    if json:
        typer.echo(dumps({"suite": one.name, "seed": seed, "machine": about, "models": found}, indent=2))
    else:
        _show_engine(rows, dtype)
        _show_machine(about)
    for name, row in rows:
        for other in row["different"][:3]:
            typer.echo(f"aiflow: {name} at batch {row['batch']}: another token at {other['at']}, where two logits lie {other['gap']:.2g} apart", err=True)
    return 1 if any(row["different"] for _, row in rows) else 0


@bench.command("overhead", short_help="What an evaluation adds to its models.")
def overhead(
    suite: Annotated[str, typer.Argument(help="A suite by name or path.")] = "specialists",
    limit: Annotated[int, typer.Option(min=1, help="How many test tasks.")] = 200,
    runtime: Annotated[Literal["both", "inline", "ray"], typer.Option(help="inline: this process; ray: one host a core.")] = "both",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws the questions, and every sampled answer.")] = 0,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """A whole evaluation beside the model batches that it asks for, alone on the same hosts: how much dearer is it?

    Start-up (imports, loading of weights, Ray) is on neither side. `wall` compares seconds on the clock, `cpu` the seconds of all cores used.
    """
    from aiflow_agents.bench.machine import machine
    from aiflow_agents.bench.overhead import bench_overhead
    from aiflow_agents.cli.display import watcher

    about, found = machine(), []
    with watcher(display) as watch:
        for one in ("inline", "ray") if runtime == "both" else (runtime,):
            found.append(bench_overhead(suite, runtime=one, limit=limit, seed=seed, repeats=repeats, watch=watch))
    if json:
        typer.echo(dumps({"machine": about, "runtimes": found}, indent=2))
        return 0
    _show_overhead(found)
    _show_machine(about)
    return 0


@bench.command("fetch", short_help="What a payload costs from host to host under Ray.")
def fetch(
    size: Annotated[list[int] | None, typer.Option(min=1, help="Bytes; repeatable. Default: 1 kB, 0.1, 1 and 10 MB.", show_default=False)] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fetches of each size, of which the median counts.")] = 20,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """A payload that lies with another host, fetched over Ray: milliseconds beside a bare copy of as many bytes. It never comes to the driver.

    Three raylets on this machine stand for three machines.
    """
    from aiflow_agents.bench.fetch import SIZES, bench_fetch
    from aiflow_agents.bench.machine import machine
    from aiflow_agents.cli.display import watcher

    about = machine()
    with watcher(display) as watch:
        watch.stage("host to host", 0)
        found = bench_fetch(size or SIZES, repeats=repeats)
    if json:
        typer.echo(dumps({"machine": about, **found}, indent=2))
        return 0
    keys = "call_ms", "local_ms", "fetch_ms", "copy_ms", "overhead_ms"
    rows = [[f"{row['nbytes']:,}", *(f"{row[key]:.2f}" for key in keys), "{:.2f} to {:.2f}".format(*row["spread_ms"])] for row in found["sizes"]]
    _table(["bytes", "empty call ms", "+ own store ms", "+ other host ms", "copy ms", "overhead ms", "half of them"], rows)
    _show_machine(about)
    return 0


# --- what is printed ---


def _show_engine(rows: list[tuple[str, dict[str, Any]]], dtype: str) -> None:
    memory = all("ours_peak_mib" in row for _, row in rows)
    head = ["model", "batch", "ours tok/s", "generate tok/s", "ratio", *(["ours MiB", "generate MiB"] if memory else []), "same text"]
    lines = []
    for name, row in rows:
        peaks = [f"{row[f'{side}_peak_mib']:,.0f}" for side in ("ours", "transformers")] if memory else []
        ties = f" ({row['ties']} at ties)" if row["ties"] else ""
        same = f"{row['identical'] + row['ties']} of {row['prompts']}{ties}"
        rates = f"{row['ours_tokens_per_s']:,.0f}", f"{row['transformers_tokens_per_s']:,.0f}"
        lines.append([name, str(row["batch"]), *rates, f"{row['ratio']:.2f}x", *peaks, same])
    _table(head, lines)
    typer.echo(f"\n{dtype}, greedy, real stops; MiB are peaks of a process that does only this")


def _show_overhead(found: list[dict[str, Any]]) -> None:
    lines = []
    for one in found:
        for i, row in enumerate(one["rounds"], 1):
            seconds = [f"{row[side][clock]:.1f}" for clock in ("wall_s", "cpu_s") for side in ("evaluation", "alone")]
            lines.append([one["runtime"], str(i), *seconds, f"{row['wall_ratio']:.2f}x", f"{row['cpu_ratio']:.2f}x"])
    _table(["runtime", "round", "wall: eval s", "alone s", "cpu: eval s", "alone s", "wall", "cpu"], lines)
    typer.echo("")
    for one in found:
        what = f"{one['calls']:,} calls in {one['batches']:,} batches, {one['n_dev']:,} dev and {one['n_test']:,} test tasks of {one['suite']}"
        if one["runtime"] == "ray":
            typer.echo(f"ray: {one['cpu_ratio']:.2f}x per core used, {one['wall_ratio']:.2f}x on the clock over {one['hosts']} hosts; {what}")
        else:
            typer.echo(f"{one['runtime']}: {one['wall_ratio']:.2f}x ({one['cpu_ratio']:.2f}x in CPU seconds); {what}")


def _show_machine(about: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    typer.echo(f"{about['cpu']}, {about['cores']} cores (load {about['load']}), {about['threads']} thread a process; Python {about['python']}, {versions}")


def _table(head: list[str], lines: list[list[str]]) -> None:
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, *lines]:
        first, rest = line[0].ljust(widths[0]), [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        typer.echo("  ".join([first, *rest]))
