"""`aiflow score`: the answers of a run, marked again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aiflow_agents.cli.options import RunFolder
from aiflow_agents.cli.output import print_json

if TYPE_CHECKING:
    from aiflow_agents.evals.rescore import Rescored


def score(
    run: RunFolder,
    scorer: Annotated[
        str | None, typer.Option(help="exact, folded, number, math, or a Python file. Default: what the suite says now.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what changed as JSON.")] = False,
) -> int:
    """Mark the saved answers of a run again, and write its summary and report anew. No model is asked.

    Best member and best topology, thresholds and calibrations stay as they were chosen on dev. Old marks stay in samples.jsonl, before the new ones.
    """
    from aiflow_agents.evals.rescore import rescore

    done = rescore(run.parent if run.name == "summary.json" else run, scorer)
    if json:
        print_json(_as_json(done) | {"folder": str(run)})
    else:
        _say(done)
    return 0


def _as_json(done: Rescored) -> dict[str, object]:
    arms = {
        name: {"before": done.before["arms"][name]["accuracy"], "after": arm["accuracy"], "changed": len(done.changed.get(name, ()))}
        for name, arm in done.after["arms"].items()
    }
    marks = [
        {"arm": arm, "task_id": task, "repeat": repeat, "before": was, "after": now}
        for arm, rows in done.changed.items() for task, repeat, was, now in rows
    ]  # fmt: skip
    verdicts = [dict(zip(("arm", "against", "before", "after"), row, strict=True)) for row in done.verdicts]
    return {"scorer": done.scorer, "arms": arms, "verdicts": verdicts, "changed": marks}


def _say(done: Rescored) -> None:
    from aiflow_agents.evals.verdict import percent, sentence

    count = sum(map(len, done.changed.values()))
    typer.echo(f"marked by {done.scorer}: {count:,} of {sum(arm['n'] for arm in done.after['arms'].values()):,} marks changed")
    if count:
        width = max(map(len, done.changed))
        typer.echo(f"\n{'arm':{width}}  {'before':>7}  {'after':>7}  marks that changed")
        for arm, rows in done.changed.items():
            was, now = (percent(summary["arms"][arm]["accuracy"]) for summary in (done.before, done.after))
            some = ", ".join(dict.fromkeys(task for task, *_ in rows[:3])) + (", ..." if len(rows) > 3 else "")
            typer.echo(f"{arm:{width}}  {was:>7}  {now:>7}  {len(rows):,}: {some}")
    for arm, against, was, now in done.verdicts:
        typer.echo(f"{arm} against {against}: {was} before, {now} now")
    typer.echo(f"\n{sentence(done.after)}")
