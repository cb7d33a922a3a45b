"""What commands print when they are done: data as JSON, tables of text, and on which machine it was."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

import typer


def print_json(found: object, *, ascii: bool = True) -> None:
    """As JSON. Without `ascii` letters of all scripts stay as they are."""
    typer.echo(dumps(found, indent=2, ensure_ascii=ascii))


def print_table(rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Rows of cells, the head among them, as wide as they need to be: the first `left` columns begin at the left, numbers end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        typer.echo("  ".join(cells).rstrip())


def print_machine(about: dict[str, Any]) -> None:
    """The line that belongs under every measured number."""
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    typer.echo(f"{about['cpu']}, {about['cores']} cores (load {about['load']}), {about['threads']} thread a process; Python {about['python']}, {versions}")


def print_lines(lines: Sequence[str], run: Path) -> None:
    """What was found out about a run, and where its report shows it."""
    for line in lines:
        typer.echo(line)
    typer.echo(f"\nreport: {run / 'report.html'}")
