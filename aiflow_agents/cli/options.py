"""Options that several commands share, each with the one text that every help says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aiflow_agents.errors import UserError

if TYPE_CHECKING:
    from aiflow_agents.runtime.budget import Budget

# --- what is printed, and how it is seen to go on ---

Display = Annotated[Literal["rich", "plain", "none"], typer.Option(help="Progress, on stderr; rich is plain without a terminal.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")]

# --- runs, and what they are of ---

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False)]
Fitted = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="A run folder of `aiflow eval`: the team as it was evaluated, with what was learned on dev.", show_default=False),
]
Fault = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="What goes wrong on the network, such as 'phone-edge down 1.0 2.0', 'cloud dies 2.0', 'any loss 0.05' or 'any jitter 0.02'; repeatable.",
        show_default=False,
    ),
]
Suite = Annotated[str, typer.Argument(help="A suite by name or path.")]
AskedSuite = Annotated[str, typer.Option(help="Whose test questions are asked.")]
OnlyTopology = Annotated[list[str] | None, typer.Option(help="Only this topology; repeatable.", show_default=False)]
Limit = Annotated[int | None, typer.Option(min=1, help="How many test tasks. Default: as the suite says.", show_default=False)]
TestTasks = Annotated[int, typer.Option(min=1, help="How many test tasks.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds, of which the median counts.")]
AnswerTokens = Annotated[int, typer.Option(min=1, help="Of one answer; most end by themselves before.")]
KillSeed = Annotated[int, typer.Option(help="Draws the moments.")]

# --- seeds, by what they draw ---

QuestionSeed = Annotated[int, typer.Option(help="Draws the questions.")]
AnswerSeed = Annotated[int, typer.Option(help="Draws the questions, and every sampled answer.")]

# --- where it is computed ---

Runtime = Annotated[Literal["ray", "inline"], typer.Option(help="ray: one host a core; inline: this process.")]
HostGpus = Annotated[float, typer.Option(min=0, help="GPUs of each host in Ray, such as 0.5; 0 leaves them alone.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train; auto takes a GPU if there is one.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the checkpoint if there is one, or drop it.")]


# --- what they say ---


def ready_to_train(device: str, threads: int = 1) -> str:
    """Set torch up, and say where to train: cpu or cuda. Raises UserError where a GPU is asked for and none is seen."""
    import torch
    import transformers

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu, or install a torch built for CUDA")
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def run_folder(given: Path) -> Path:
    """A run that is named by its folder, or by one of the two files that tell what it is."""
    return given.parent if given.name in ("summary.json", "config.json") else given


def parameters(given: list[str] | None) -> dict[str, Any]:
    """`-T rounds=3` as data; values are read as in a YAML file, so numbers are numbers."""
    from pydantic import RootModel

    from aiflow_agents.config import parse_yaml

    settings: dict[str, Any] = {}
    for each in given or []:
        key, equals, value = (part.strip() for part in each.partition("="))
        if not equals or not key:
            raise UserError(f"-T {each}: expected NAME=VALUE, such as -T rounds=3")
        if key in settings:
            raise UserError(f"-T {each}: {key} is given twice")
        try:
            settings[key] = parse_yaml(f"value: {value}", RootModel[dict[str, Any]]).root["value"]
        except UserError:
            raise UserError(f"-T {each}: the value cannot be read; put it into quotes, such as -T '{key}=\"...\"'") from None
    return settings


def limits(tokens: int | None, flops: float | None, nbytes: int | None, seconds: float | None) -> Budget | None:
    """The budget that `--max-...` options say; None where they say nothing."""
    from aiflow_agents.runtime.budget import Budget

    return Budget(tokens=tokens, flops=flops, bytes=nbytes, seconds=seconds) or None
