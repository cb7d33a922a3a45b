"""`aiflow`: finds the command, loads only that one, and turns every error into the right line and exit code.

0: done. 1: the command says that something failed or a gate was missed. 2: a mistake in usage or configuration, said in one line.
130: interrupted, with the command that resumes. Our own bugs keep their traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import TELEMETRY_OFF as TELEMETRY_OFF
from .. import telemetry_off
from ..errors import UserError
from . import Interrupted

# name: (where its function, or its typer app of subcommands, is found; what the list of commands says about it)
COMMANDS = {
    "list": ("aiflow_agents.cli.library:list_entries", "What there is: teams, models, topologies, networks, suites."),
    "show": ("aiflow_agents.cli.library:show", "Print a definition and where it comes from."),
    "copy": ("aiflow_agents.cli.library:copy", "Copy a definition here, to edit it."),
    "run": ("aiflow_agents.cli.run:run", "Ask a team one question and watch it talk."),
    "eval": ("aiflow_agents.cli.evaluate:evaluate", "Is the team better than its best member, and at what cost?"),
    "sweep": ("aiflow_agents.cli.sweep:sweep", "Where does drafting beat streaming?"),
    "curve": ("aiflow_agents.cli.curve:curve", "How good is each arm of a run on a budget?"),
    "view": ("aiflow_agents.cli.view:view", "Open the report of a run in the browser."),
    "score": ("aiflow_agents.cli.score:score", "Mark the answers of a run again."),
    "export": ("aiflow_agents.cli.export:export", "A run as a table, or as logs of inspect."),
    "compare": ("aiflow_agents.cli.compare:compare", "Runs side by side, on the tasks that they share."),
    "train": ("aiflow_agents.cli.train:train", "Train a model from a recipe."),
    "family": ("aiflow_agents.cli.family:family", "Many sizes in one model: grow exits, export one, show them."),
    "calibrate": ("aiflow_agents.cli.calibrate:calibrate", "Fit a codec on a model's hidden states."),
    "plan": ("aiflow_agents.cli.plan:plan", "How best to answer with a family on a network?"),
    "serve": ("aiflow_agents.cli.serve:serve", "An endpoint that any OpenAI client can call."),
    "bench": ("aiflow_agents.cli.bench:bench", "How fast is the engine, and what does an evaluation cost besides?"),
    "doctor": ("aiflow_agents.cli.doctor:doctor", "Check this installation."),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Without arguments it is that of the process, which may end here."""
    code = _main(args)
    if args is None and code == 130 and "ray" in sys.modules:
        sys.stdout.flush()
        os._exit(code)  # nothing is left to do, and Ray's threads crash now and then when an interrupted interpreter is taken down
    return code


def _main(args: Sequence[str] | None) -> int:
    telemetry_off()
    try:
        code = _command().main(args=None if args is None else list(args), prog_name="aiflow", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as error:
        return _say(str(error), 2)
    except _USAGE as error:
        return _usage(error)
    except typer.Abort:
        return _say("interrupted", 130)
    except _Ended as ended:
        return ended.code if ended.line is None else _say(ended.line, ended.code)
    except BrokenPipeError:
        return _reader_gone()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _BARRED and error.filename:
            return _say(f"{error.filename} cannot be used: {error.strerror}; name another place, or mend that one", 2)
        if not disk_is_full(error):
            raise
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return _say(f"the disk is full{where}; what was finished is kept: free some space and run the command again", 2)


class _Ended(Exception):
    """An end on its way through typer, which would drop what a KeyboardInterrupt carries and make a closed pipe look like a failure."""

    def __init__(self, code: int, line: str | None = None):
        self.code, self.line = code, line
        super().__init__(line)


class _Commands(TyperGroup):
    """A group that shows stubs in its help and loads a command only when it is called."""

    def __init__(self, **attributes: Any):
        super().__init__(**attributes)
        for name, (_, summary) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=summary, short_help=summary, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, stub, rest = super().resolve_command(ctx, args)
        return name, stub and _load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            hint = f"; continue with: {error.resume}" if isinstance(error, Interrupted) else ""
            raise _Ended(130, f"interrupted{hint}") from error
        except BrokenPipeError as error:
            raise _Ended(_reader_gone()) from error


def _load(name: str) -> Any:
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        found.rich_markup_mode = None
        return typer.main.get_command(found)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(found)
    return typer.main.get_command(single)


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"aiflow {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, allow_from_autoenv=False, help="Print the version and exit.")
    ] = False,
) -> None:
    """Teams of models over device, edge and cloud: build one, run it, and learn whether it beats its best member.

    `aiflow COMMAND --help` says more. Every option can be given as a variable: AIFLOW_EVAL_LIMIT=100 is `aiflow eval --limit 100`.
    """


def _command() -> Any:
    app = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(context_settings={"auto_envvar_prefix": "AIFLOW", "help_option_names": ["--help", "-h"]})(_root)
    return typer.main.get_command(app)


# --- errors ---

_BARRED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # a place of the user's that is no use
_USAGE: type[Exception] = typer.BadParameter.__mro__[2]  # what every usage error of typer derives from; it has no public name


def _usage(error: Any) -> int:
    """One line for a usage error; a command without its arguments prints its help, as typer means it to."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    context = getattr(error, "ctx", None)
    hint = f" (see '{context.command_path} --help')" if context else ""
    return _say(f"{' '.join(error.format_message().replace('Value error, ', '').split())}{hint}", error.exit_code)


def disk_is_full(error: Exception) -> bool:
    """True for the system's own error and for those that sqlite, safetensors and torch wrap it in."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "disk is full"))


def _reader_gone() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more as it ends
    return 141  # what a shell says of a program that a closed pipe has ended


def _say(line: str, code: int) -> int:
    typer.echo(f"aiflow: {' '.join(line.splitlines())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
