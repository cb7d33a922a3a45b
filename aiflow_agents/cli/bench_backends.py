"""`aiflow bench backends`: the same model through every backend, side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aiflow_agents.cli.options import AnswerTokens, AskedSuite, Display, Json, QuestionSeed, Rounds
from aiflow_agents.cli.output import print_json


def backends(
    model: Annotated[str, typer.Argument(help="A model by name or path.")],
    backend: Annotated[
        list[str] | None,
        typer.Option(help="transformers, vllm or http (a server of vLLM on loopback), beside family; repeatable. Default: all that run here.", show_default=False),
    ] = None,
    exit: Annotated[int | None, typer.Option(min=0, help="Of a family.", show_default=False)] = None,
    suite: AskedSuite = "specialists",
    questions: Annotated[int, typer.Option(min=1, help="How many.")] = 500,
    max_tokens: AnswerTokens = 32,
    repeats: Rounds = 3,
    seed: QuestionSeed = 0,
    display: Display = "rich",
    json: Json = False,
) -> int:
    """Does a model say the same behind every backend, and how fast is each beside our own engine?

    Greedy, float32, one thread, all questions in one batch. Exit code 1 where a text differs, other than first at two tokens whose log-probabilities
    lie within 1e-4.
    """
    from .. import catalog
    from ..bench.backends import BACKENDS, bench_backends
    from ..bench.machine import machine
    from ..errors import UnknownName, UserError
    from ..evals.suite import load_suite
    from ..models.family.info import at_exit, model_info
    from ..models.vllm import REMEDY, installed
    from .display import watcher

    folder = catalog.find("model", model).path
    info = model_info(folder)  # a folder without weights is said before anything is measured
    if exit is not None:
        at_exit(info, folder, exit)
    prompts = load_suite(suite)
    for name in set(backend or ()) - set(BACKENDS):
        raise UnknownName("backend", name, BACKENDS)
    if backend and {"vllm", "http"} & set(backend) and not installed():
        raise UserError(f"vLLM is not installed: {REMEDY}")
    chosen = backend or [name for name in BACKENDS if name in ("family", "transformers") or installed()]
    asked = [task.question for task in prompts.tasks("test", seed, questions)]
    about = machine()
    with watcher(display) as watch:
        found = bench_backends(folder, asked, chosen, exit=exit, max_tokens=max_tokens, repeats=repeats, watch=watch)
    if json:
        print_json({"suite": prompts.name, "seed": seed, "machine": about, **found})
    else:
        _show(found, about)
        if not backend and not installed():
            typer.echo(f"vllm and http were left out, as vLLM is not installed: {REMEDY}")
    for row in found["backends"]:
        for what, label in (("ties", "a tie"), ("different", "another text")):
            for one in row[what][: 3 if what == "different" else None]:
                where = f"{one['question']!r}: {one['family']!r} and {one['other']!r}, at token {one['at']}, {one['gap']:.2g} apart"
                typer.echo(f"aiflow: {row['backend']}: {label} at {where}", err=True)
    return 1 if any(row["different"] for row in found["backends"]) else 0


def _show(found: dict[str, Any], about: dict[str, Any]) -> None:
    exit = "" if found["exit"] is None else f", exit {found['exit']}"
    typer.echo(f"{found['model']}{exit}: {found['questions']} questions, float32, greedy\n")
    typer.echo(f"{'backend':<12}  {'load s':>6}  {'tok/s':>8}  {'to family':>9}  same text")
    for row in found["backends"]:
        ties = f", {len(row['ties'])} at ties" if row["ties"] else ""
        same = f"{row['identical']} of {found['questions']}{ties}"
        typer.echo(f"{row['backend']:<12}  {row['load_s']:6.1f}  {row['tokens_per_s']:8,.0f}  {row['ratio']:8.2f}x  {same}")
    typer.echo(f"\n{about['cpu']}, {about['cores']} cores (load {about['load']}); Python {about['python']}")
