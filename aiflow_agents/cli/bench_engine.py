"""`aiflow bench engine`: our engine beside transformers' own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from aiflow_agents.cli.options import AnswerTokens, Display, Json, QuestionSeed, Rounds
from aiflow_agents.cli.output import print_json, print_machine, print_table

MODELS = ("oak", "tally")  # the largest that is shipped, and one of those for devices


def engine(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help=f"Names or paths. Default: {' and '.join(MODELS)}.", show_default=False)
    ] = None,
    suite: Annotated[str, typer.Option(help="Whose test questions are the prompts.")] = "specialists",
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts; one by one is slow, so batch 1 takes at most 16 of them.")] = 128,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; repeatable. Default: 1 and 64.", show_default=False)] = None,
    max_tokens: AnswerTokens = 32,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of both sides.")] = "float32",
    repeats: Rounds = 3,
    seed: QuestionSeed = 0,
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
    from aiflow_agents.models.family.info import model_info

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
        print_json({"suite": one.name, "seed": seed, "machine": about, "models": found})
    else:
        _show(rows, dtype)
        print_machine(about)
    for name, row in rows:
        for other in row["different"][:3]:
            typer.echo(f"aiflow: {name} at batch {row['batch']}: another token at {other['at']}, where two logits lie {other['gap']:.2g} apart", err=True)
    return 1 if any(row["different"] for _, row in rows) else 0


def _show(rows: list[tuple[str, dict[str, Any]]], dtype: str) -> None:
    memory = all("ours_peak_mib" in row for _, row in rows)
    head = ["model", "batch", "ours tok/s", "generate tok/s", "ratio", *(["ours MiB", "generate MiB"] if memory else []), "same text"]
    lines = []
    for name, row in rows:
        peaks = [f"{row[f'{side}_peak_mib']:,.0f}" for side in ("ours", "transformers")] if memory else []
        ties = f" ({row['ties']} at ties)" if row["ties"] else ""
        same = f"{row['identical'] + row['ties']} of {row['prompts']}{ties}"
        rates = f"{row['ours_tokens_per_s']:,.0f}", f"{row['transformers_tokens_per_s']:,.0f}"
        lines.append([name, str(row["batch"]), *rates, f"{row['ratio']:.2f}x", *peaks, same])
    print_table([head, *lines])
    typer.echo(f"\n{dtype}, greedy, real stops; MiB are peaks of a process that does only this")
