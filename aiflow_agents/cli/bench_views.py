"""`aiflow bench views`: accuracy by the bytes that each camera sends, over codecs of features, JPEG and text."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from aiflow_agents.cli.again import command
from aiflow_agents.cli.options import Display, Json, Runtime, parameters
from aiflow_agents.cli.output import print_json
from aiflow_agents.errors import UserError


def views(
    suite: Annotated[str, typer.Argument(help="A suite about scenes whose pictures may leave, by name or path.")] = "open-views",
    codec: Annotated[
        list[str] | None, typer.Option(help="A codec of features, as in klt:step=1.5+range or merge:step=1.5; repeatable. Default: a ladder.", show_default=False)
    ] = None,
    budget: Annotated[list[int] | None, typer.Option(min=1, help="Bytes of a JPEG; repeatable. Default: a ladder.", show_default=False)] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME KEY=VALUE...'", help="Another topology, such as 'joint-view send=text'; repeatable. Default: that, and captions.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the questions, and the scenes that codecs are fitted on.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="How many test questions. Default: as the suite says.", show_default=False)] = None,
    scenes: Annotated[int, typer.Option(min=4, help="Training scenes that codecs are fitted on.")] = 1000,
    margin: Annotated[float, typer.Option(min=0.001, max=0.5, help="How far apart two accuracies may be and still count as the same (0.02 = 2 points).")] = 0.02,
    runtime: Runtime = "ray",
    log_dir: Annotated[Path, typer.Option(help="Where the folder is made.")] = Path("logs"),
    resume: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Go on with this folder.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the curves as a picture, an SVG. Default: views.svg in the folder.", show_default=False)] = None,
    by_tag: Annotated[bool, typer.Option("--by-tag", help="Features against JPEG and text also on the tasks of each tag alone.")] = False,
    display: Display = "rich",
    json: Json = False,
) -> None:
    """What an answer is worth by the bytes that each camera sends: features coded in many ways, JPEG, text, on the same questions.

    Bytes of a camera are all that links carry for a question, beyond what they carry where the edge answers by itself, for each camera. Every JPEG and
    text is compared with the features that weigh no more; every codec with int8, also for being as good.
    """
    from aiflow_agents.bench.views import BUDGETS, TEXTS, Views, bench_views
    from aiflow_agents.bench.views_plot import views_svg
    from aiflow_agents.cli import Interrupted
    from aiflow_agents.cli.display import watcher
    from aiflow_agents.evals.runner import new_run_path

    folder = resume or new_run_path(log_dir, "views")
    texts = tuple(_pattern(each) for each in arm) if arm else TEXTS
    asked = None if resume else Views(suite, tuple(codec or ()), tuple(budget or BUDGETS), texts, seed, limit, scenes)
    if plot is not None and not plot.parent.is_dir():
        raise UserError(f"nothing can be written to {plot}: {plot.parent} is no folder")
    try:
        with watcher(display) as watch:
            found = bench_views(folder, asked, runtime=runtime, margin=margin, watch=watch)
    except KeyboardInterrupt:
        if (folder / "views.json").exists():
            raise Interrupted(command("bench", "views", "--resume", folder, "--runtime", runtime)) from None
        raise
    picture = plot or folder / "views.svg"
    picture.write_text(views_svg(found), encoding="utf-8")
    if json:
        print_json(found)
    else:
        _show(found, by_tag)
        typer.echo(f"\n{picture}; report: {found['folder']}/report.html")


def _pattern(given: str) -> tuple[str, dict[str, Any]]:
    name, *words = shlex.split(given) or [""]
    if not name or "=" in name:
        raise UserError(f"--arm '{given}': expected a topology and its parameters, such as 'joint-view send=text'")
    return name, parameters(words)


def _show(found: dict[str, Any], by_tag: bool) -> None:
    from aiflow_agents.evals.verdict import p_text, percent, points

    clusters = f" in {found['clusters']:,} clusters" if found["clusters"] else ""
    typer.echo(f"{found['suite']}: {found['tasks']:,} questions{clusters}, seed {found['seed']}; the edge by itself {percent(found['alone'])}\n")
    typer.echo(f"{'':8}  {'':36} {'bytes a camera':>14}  {'right':>7}  {'95 %':>11}")
    for point in found["points"]:
        low, high = (f"{100 * end:.1f}" for end in point["ci95"])
        typer.echo(f"{point['kind']:8}  {point['what'][:36]:36} {point['nbytes']:14,.1f}  {percent(point['accuracy']):>7}  {f'{low}-{high}':>11}")

    def line(row: dict[str, Any]) -> str:
        mine, other = row["bytes"]
        return (f"{row['arm']} ({mine:,.0f} bytes) against {row['against']} ({other:,.0f}): {points(row['delta'])} points "
                f"({points(row['ci95'][0])} to {points(row['ci95'][1])}), {p_text(row['p_holm'])}")

    if found["against_features"]:
        typer.echo("\nfeatures at the bytes of JPEG and text, or fewer:")
    for row in found["against_features"]:
        typer.echo(f"  {line(row)}{'' if row['bytes'][0] <= row['bytes'][1] else '; none is so small'}")
        for tag, one in row["tags"].items() if by_tag else ():
            typer.echo(f"      {tag:8} {points(one['delta']):>6} ({points(one['ci95'][0])} to {points(one['ci95'][1])}), {p_text(one['p_holm'])}")
    if found["against_int8"]:
        typer.echo(f"\nagainst int8, and whether as good within {points(found['margin'])} points:")
    for row in found["against_int8"]:
        same = row["equivalence"]["p_holm"]
        typer.echo(f"  {line(row)}; {'as good' if same <= 0.05 else 'not shown to be as good'} ({p_text(same)}), {row['bytes'][0] / row['bytes'][1]:.2f} times the bytes")
