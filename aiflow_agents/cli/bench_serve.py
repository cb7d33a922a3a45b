"""`aiflow bench serve`: what serving adds to a model, how it stands load, and what it makes of malformed requests."""

from __future__ import annotations

import statistics
from typing import Annotated, Literal

import typer

from aiflow_agents.cli.options import AskedSuite, Json
from aiflow_agents.cli.output import print_json

ADDED_MS, SHARE, GROWTH = 10.0, 0.8, 0.05  # what is aimed at


def serve(
    model: Annotated[str, typer.Argument(help="A member, as TEAM/MEMBER.")] = "specialists/oak",
    suite: AskedSuite = "specialists",
    clients: Annotated[int, typer.Option(min=1, help="That ask at the same time.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, help="Of load, all rounds together.")] = 120.0,
    rounds: Annotated[int, typer.Option(min=1, help="In each the model alone has its turn too, a quarter as long, 30 s at most.")] = 4,
    singles: Annotated[int, typer.Option(min=1, help="Questions asked one at a time.")] = 200,
    malformed: Annotated[int, typer.Option(min=0, help="Requests that are not as they should be.")] = 500,
    runtime: Annotated[Literal["ray", "inline"], typer.Option(help="Of `aiflow serve`.")] = "ray",
    seed: Annotated[int, typer.Option(help="Draws the questions, and what is malformed.")] = 0,
    json: Json = False,
) -> int:
    """A served member beside the same model alone: latency, throughput under load, memory, and malformed requests.

    Exit code 1 where a well-formed request had an error, or a malformed one a 5xx, a traceback, or a key in what the server wrote.
    """
    from aiflow_agents.bench.machine import machine
    from aiflow_agents.bench.serve import bench_serve
    from aiflow_agents.errors import UserError
    from aiflow_agents.evals.suite import load_suite

    team, slash, member = model.rpartition("/")
    if not slash:
        raise UserError(f"{model} is no member: expected TEAM/MEMBER, such as specialists/oak")
    questions = [task.question for task in load_suite(suite).tasks("test", seed, max(1000, 10 * clients))]
    found = bench_serve(
        team, member, questions, clients=clients, seconds=seconds, rounds=rounds, singles=singles, malformed=malformed, seed=seed, runtime=runtime,
        progress=lambda what: typer.echo(what, err=True),
    )  # fmt: skip
    rude = found.malformed
    bad = found.errors or rude and (rude["server_errors"] or rude["tracebacks"] or rude["keys"] or not rude["answers_after"])
    if json:
        print_json({"model": model, "suite": suite, "seed": seed, "runtime": runtime, **found.as_data(), "machine": machine()})
        return 1 if bad else 0
    typer.echo(f"one at a time   alone {found.alone_s * 1000:.1f} ms, served {found.served_s * 1000:.1f} ms: {found.added_s * 1000:+.1f} ms at the median")
    alone, served = (sum(getattr(turn, side) for turn in found.rounds) / len(found.rounds) for side in ("alone_per_s", "served_per_s"))
    typer.echo(f"{clients} clients     alone {alone:.0f}/s in batches of {clients}, served {served:.0f}/s: {found.share:.0%} (median of {rounds} rounds)")
    cpu = (statistics.median(getattr(turn, f"{side}_cpu_ms") for turn in found.rounds) for side in ("alone", "served", "clients"))
    typer.echo("CPU an answer   alone {:.2f} ms, served {:.2f} ms of all its processes, its clients {:.2f} ms".format(*cpu))
    typer.echo(f"memory          {found.memory_mb:.0f} MB warm, {found.rounds[-1].memory_mb:.0f} MB at the end: {found.growth:+.1%}")
    typer.echo(f"answers         {sum(found.statuses.values()):,}, of them errors {found.errors}")
    if rude:
        typer.echo(f"malformed       {rude['requests']:,}: 5xx {rude['server_errors']}, tracebacks {rude['tracebacks']}, keys in its log {rude['keys']}")
    return 1 if bad else 0
