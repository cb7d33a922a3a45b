"""The command that goes on with work that was stopped, or does it again: words of a command line, from what was given on it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

import typer


def explicit(context: typer.Context) -> dict[str, str]:
    """The parameters that were given, and by what: `--limit`, or the variable `AIFLOW_EVAL_LIMIT`."""
    found = {}
    for param in context.command.params:
        name = str(param.name)
        source = getattr(context.get_parameter_source(name), "name", "")
        if source == "COMMANDLINE":
            found[name] = max(param.opts, key=len)
        elif source == "ENVIRONMENT":
            found[name] = f"{context.auto_envvar_prefix}_{name.upper()}"
    return found


def given_words(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of these options that were given, as words of a command."""
    given, words = explicit(context), []
    for param in context.command.params:
        if param.name in names and param.name in given:
            value = context.params[param.name]
            for each in value if isinstance(value, (list, tuple)) else [value]:
                words += [max(param.opts, key=len)] if each is True else [max(param.opts, key=len), str(each)]
    return words


def option_words(options: Mapping[str, object]) -> list[str]:
    """Options by their names, as words of a command; those that are None are left out."""
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def flag_words(**flags: bool) -> list[str]:
    """Switches that are on, as words of a command; `no_card=True` is `--no-card`."""
    return [f"--{name.replace('_', '-')}" for name, on in flags.items() if on]


def command(*words: object) -> str:
    """One command of `aiflow`, as a shell reads it."""
    return shlex.join(["aiflow", *map(str, words)])
