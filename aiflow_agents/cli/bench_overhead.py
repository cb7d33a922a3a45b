"""`aiflow bench overhead`: what an evaluation costs beside its models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from aiflow_agents.cli.options import AnswerSeed, Display, Json, Rounds, Suite, TestTasks
from aiflow_agents.cli.output import print_json, print_machine, print_table


def overhead(
    suite: Suite = "specialists",
    limit: TestTasks = 200,
    runtime: Annotated[Literal["both", "inline", "ray"], typer.Option(help="inline: this process; ray: one host a core.")] = "both",
    repeats: Rounds = 3,
    seed: AnswerSeed = 0,
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
        print_json({"machine": about, "runtimes": found})
        return 0
    _show(found)
    print_machine(about)
    return 0


def _show(found: list[dict[str, Any]]) -> None:
    lines = []
    for one in found:
        for i, row in enumerate(one["rounds"], 1):
            seconds = [f"{row[side][clock]:.1f}" for clock in ("wall_s", "cpu_s") for side in ("evaluation", "alone")]
            lines.append([one["runtime"], str(i), *seconds, f"{row['wall_ratio']:.2f}x", f"{row['cpu_ratio']:.2f}x"])
    print_table([["runtime", "round", "wall: eval s", "alone s", "cpu: eval s", "alone s", "wall", "cpu"], *lines])
    typer.echo("")
    for one in found:
        what = f"{one['calls']:,} calls in {one['batches']:,} batches, {one['n_dev']:,} dev and {one['n_test']:,} test tasks of {one['suite']}"
        if one["runtime"] == "ray":
            typer.echo(f"ray: {one['cpu_ratio']:.2f}x per core used, {one['wall_ratio']:.2f}x on the clock over {one['hosts']} hosts; {what}")
        else:
            typer.echo(f"{one['runtime']}: {one['wall_ratio']:.2f}x ({one['cpu_ratio']:.2f}x in CPU seconds); {what}")
