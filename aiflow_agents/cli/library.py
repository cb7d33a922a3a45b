"""`aiflow list`, `show` and `copy`: what there is, what it says, and an editable copy of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ..catalog import LAYOUTS, Entry, Kind, describe, entries, find
from ..errors import UnknownName, UserError
from .output import print_json

KINDS = "team, model, recipe, topology, network or suite"

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KindOption = Annotated[str, typer.Option("--kind", help=f"Where a name means several things: {KINDS}.")]


def list_entries(
    kind: Annotated[str, typer.Argument(help=f"Only these: {KINDS}.")] = "",
    json: Json = False,
) -> None:
    """What can be named on the command line, and where each comes from.

    Names are looked up here (agents/, topologies/, evals/ under the current directory), in the folders of AIFLOW_PATH, in plugins, and in the
    library that comes with the package. The first that has a name wins, and only that one is listed.
    """
    found = entries(_kind(kind) if kind else None)
    if json:
        print_json([_record(entry) for entry in found], ascii=False)
        return
    rows = [(entry.kind, entry.name, entry.origin, describe(entry)) for entry in found]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    room = max(shutil.get_terminal_size((140, 24)).columns - sum(widths) - 6, 20)
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        said = row[3] if len(row[3]) <= room else row[3][: room - 3] + "..."
        typer.echo("  ".join([*cells, said]).rstrip())
    if not rows:
        typer.echo("nothing found; `aiflow doctor` says where was looked", err=True)


def show(
    name: Annotated[str, typer.Argument(help="A name from `aiflow list`, or a path.")],
    kind: KindOption = "",
    json: Json = False,
) -> None:
    """Print a definition: the file itself, and for a model its card."""
    found = _find(name, kind)
    if json:
        print_json([{**_record(entry), "text": _text(entry)} for entry in found], ascii=False)
        return
    for entry in found:
        typer.secho(f"# {entry.kind} {entry.name} ({entry.origin}): {entry.path}", bold=True)
        typer.echo(_text(entry).rstrip() + "\n")


def copy(
    name: Annotated[str, typer.Argument(help="A name from `aiflow list`, or a path.")],
    to: Annotated[Path, typer.Argument(help="A folder, or the new file's name.")] = Path("."),
    kind: KindOption = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Copy a definition to a place where it can be edited; a suite or a model is copied as its whole folder."""
    found = _find(name, kind)
    if len(found) > 1:
        raise UserError(f"'{name}' is a {' and a '.join(entry.kind for entry in found)}; say which with --kind")
    (entry,) = found
    target = to / entry.whole.name if to.is_dir() else to
    if target.exists() and target.samefile(entry.whole):
        raise UserError(f"{target} is the {entry.kind} itself; name another place")
    if target.exists() and not force:
        raise UserError(f"{target} exists already; name another place, or overwrite it with --force")
    if target.exists() and target.is_dir() != entry.whole.is_dir():
        raise UserError(f"{target} is a {'folder' if target.is_dir() else 'file'}, the {entry.kind} is not; name another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.whole.is_dir():
        shutil.copytree(entry.whole, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    else:
        shutil.copyfile(entry.whole, target)
    path = str(target) if target.is_absolute() else os.path.join(".", target)
    typer.echo(f"{path}\n{_USE[entry.kind].format(path=path)}")


_USE: dict[Kind, str] = {
    "team": "use it with: --team {path}",
    "model": "use it in a team file as: model: {path}",
    "recipe": "use it with: aiflow train {path}",
    "topology": "use it with: --topology {path}",
    "network": "use it with: --network {path}",
    "suite": "use it with: aiflow eval {path}",
}


def _kind(word: str) -> Kind:
    """A kind by its name, in the plural too."""
    for kind in get_args(Kind):
        if word in (kind, f"{kind}s", f"{kind[:-1]}ies"):
            return kind
    raise UnknownName("kind of definition", word, get_args(Kind))


def _find(name: str, kind: str) -> list[Entry]:
    """Everything that a name means, or just the one of a kind. A path means one thing: the kind whose folder it lies in, if there is one."""
    if kind:
        return [find(_kind(kind), name)]
    found: list[Entry] = []
    wrong_file: UserError | None = None
    for each in LAYOUTS:
        try:
            found.append(find(each, name))
        except UnknownName:
            continue
        except UserError as error:  # a path that is no such file, but may be of another kind
            wrong_file = error
    paths = [entry for entry in found if entry.origin == "path"]
    if paths:
        return [next((e for e in paths if Path(LAYOUTS[e.kind].folder).name == e.whole.parent.name), paths[0])]
    if not found:
        raise wrong_file or UnknownName("definition", name, {entry.name for entry in entries()})
    return found


def _record(entry: Entry) -> dict[str, Any]:
    return {"kind": entry.kind, "name": entry.name, "origin": entry.origin, "path": str(entry.path), "description": describe(entry)}


def _text(entry: Entry) -> str:
    card = entry.path / "README.md"
    file = entry.path if entry.kind != "model" else card if card.is_file() else entry.path / "config.json"
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
