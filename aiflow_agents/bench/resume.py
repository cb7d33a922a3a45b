"""An evaluation killed at random moments and resumed each time: does it end as one that nobody disturbed?

    whole    eval -----------------------------------------> samples.jsonl, trace.jsonl, summary.json
    cut      eval ---X  --resume -----X  --resume --X  ...  --> the same, line for line (sorted)

The whole run is watched as it grows on disk, and moments are drawn from what was seen: half of them spread over its time, half over its samples,
so that slow and fast stretches are both hit. A kill comes from outside, as SIGKILL, when the cut run has written as much. Some come at a time
instead, while a resumed run is on its way back to where it was and writes nothing. What a torn write leaves is made by hand, as the kernel finishes
small ones: after some kills the line that was written last is cut in the middle.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

from aiflow_agents.errors import AIFlowError
from aiflow_agents.evals.runner import Silence, Watcher

GROWING = ("calls.sqlite", "samples.jsonl", "trace.jsonl", "summary.json", "summary.json.part", "report.html", "report.html.part")
LINES = ("samples.jsonl", "trace.jsonl")
POLL_S = 0.0005
LAST = 0.98  # of the whole run's time: later moments would come after the end


@dataclass(frozen=True)
class Moment:
    """When to kill: as soon as so many bytes of `file` are there ("" is all files together), or, for `seconds`, so long after a resume began."""

    file: str
    size: int
    seconds: float | None = None
    tear: float | None = None  # the share of the last line that is left of it


def bench_resume(
    suite: str = "specialists",
    *,
    topologies: Sequence[str] = (),
    limit: int = 100,
    kills: int = 10,
    runtime: str = "inline",
    seed: int = 0,
    kill_seed: int = 0,
    watch: Watcher | None = None,
) -> dict[str, Any]:
    """Run `suite` once whole and once with `kills` kills, and compare. `seed` is the evaluation's, `kill_seed` draws the moments.

    Returns `suite, runtime, limit, seed, kill_seed, samples, equal: {file: bool}, passed, kills: [{moment, wrote: {file: bytes}, stage, at, torn}]`.
    A kill that came too late, when the run had just ended, is not among them. Raises AIFlowError where a run ends with an error.
    """
    watch = watch or Silence()
    words = ["eval", suite, "--limit", str(limit), "--seed", str(seed), *(word for name in topologies for word in ("--topology", name))]
    how, found = ["--runtime", runtime, "--display", "none"], list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="aiflow-resume-") as scratch:
        whole, cut = Path(scratch, "whole"), Path(scratch, "cut")
        watch.stage("the whole run", 0)
        grown = _grow([*words, *how, "--log-dir", str(whole)], whole)
        watch.stage("kills", kills)
        for moment in _moments(grown, kills, Random(kill_seed)):
            killed = _kill(_command(cut, words, how), cut, moment)
            watch.advance(1)
            if killed:
                watch.note(f"kill {len(found) + 1}: {killed['stage']}, {killed['at']}")
                found.append(killed)
        watch.stage("the rest", 0)
        _grow(_command(cut, words, how), cut)
        equal = same(_run(whole), _run(cut))
        samples = len((_run(whole) / "samples.jsonl").read_bytes().splitlines())
    about = {"suite": suite, "runtime": runtime, "limit": limit, "seed": seed, "kill_seed": kill_seed, "samples": samples}
    return about | {"equal": equal, "passed": all(equal.values()), "kills": found}


# --- moments ---


def _moments(grown: Sequence[tuple[float, dict[str, int]]], kills: int, random: Random) -> list[Moment]:
    """In the order in which the whole run reached them."""
    end_s, written = grown[-1][0] * LAST, grown[-1][1]["samples.jsonl"]
    drawn: list[tuple[float, Moment]] = []
    by_time = (kills + 1) // 2
    for i in range(by_time):
        start_s = grown[0][0]
        at_s = start_s + (end_s - start_s) * (i + random.random()) / by_time
        drawn.append((at_s, Moment("", next(sum(sizes.values()) for at, sizes in reversed(grown) if at <= at_s) + 1)))
    for i in range(kills - by_time):
        size = max(1, int(written * (i + random.random()) / (kills - by_time)))
        drawn.append((next(at for at, sizes in grown if sizes["samples.jsonl"] >= size), Moment("samples.jsonl", size)))
    ordered = [moment for _, moment in sorted(drawn, key=lambda one: one[0])]
    for i in random.sample(range(1, kills), k=min(2, kills - 1)):  # on the way back: dev is replayed from remembered answers meanwhile
        ordered[i] = Moment("", 0, seconds=random.random() * (grown[0][0] + 0.1 * end_s))
    torn = set(random.sample(range(kills), k=(kills + 2) // 3))
    return [Moment(one.file, one.size, one.seconds, random.random() if i in torn else None) for i, one in enumerate(ordered)]


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of the run in this folder."""
    sizes = dict.fromkeys(GROWING, 0)
    if folder.is_dir():
        for run in folder.iterdir():
            with os.scandir(run) as entries:
                for entry in entries:
                    if entry.name in sizes:
                        try:
                            sizes[entry.name] = entry.stat().st_size
                        except FileNotFoundError:  # a .part that has just got its name
                            continue
    return sizes


# --- runs ---


def _grow(words: Sequence[str], folder: Path) -> list[tuple[float, dict[str, int]]]:
    """Run to the end: (seconds since the start, sizes of files) whenever these have changed, once there is anything."""
    process, start, seen = _start(words), time.monotonic(), list[tuple[float, dict[str, int]]]()
    while process.is_alive():
        sizes = _sizes(folder)
        if any(sizes.values()) and (not seen or seen[-1][1] != sizes):
            seen.append((time.monotonic() - start, sizes))
        time.sleep(POLL_S)
    _ended(process, words)
    return [*seen, (time.monotonic() - start, _sizes(folder))]


def _kill(words: Sequence[str], folder: Path, moment: Moment) -> dict[str, Any] | None:
    """Run until the moment, and kill. None where the run had ended before."""
    before = _sizes(folder)
    process, start = _start(words), time.monotonic()

    def reached(sizes: dict[str, int]) -> bool:
        if moment.seconds is not None:
            return time.monotonic() - start >= moment.seconds
        now, was = (sum(found.values()) if moment.file == "" else found[moment.file] for found in (sizes, before))
        return now >= moment.size and now > was

    while process.is_alive() and not reached(_sizes(folder)):
        time.sleep(POLL_S)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    if process.exitcode != -signal.SIGKILL:
        _ended(process, words)
        return None
    after = _sizes(folder)
    grew = {name: after[name] - before[name] for name in GROWING if after[name] != before[name]}
    at = f"{after['samples.jsonl']:,} bytes of samples, {after['calls.sqlite']:,} of answers"
    torn = moment.tear is not None and _tear(folder, moment.tear)
    return {"stage": _stage(folder, grew, after), "at": at, "moment": vars(moment), "wrote": grew, "torn": torn}


def _stage(folder: Path, grew: dict[str, int], after: dict[str, int]) -> str:
    """What the run was about when it was killed, as its files tell."""
    writing = " in mid-transaction" if any(folder.glob("*/calls.sqlite-journal")) else ""
    if not grew:
        return "before it had written anything new" + writing
    if after["summary.json"] or after["summary.json.part"]:
        return "at the end, with summary and report" + writing
    return ("on dev" if not after["samples.jsonl"] else "on test") + writing


def _tear(folder: Path, share: float) -> bool:
    """Leave only the beginning of the line that was written last, as a write does that is cut short."""
    files = [file for name in LINES for file in folder.glob(f"*/{name}") if file.stat().st_size]
    if not files:
        return False
    file = max(files, key=lambda one: one.stat().st_mtime_ns)
    last = file.read_bytes().splitlines(keepends=True)[-1]
    os.truncate(file, file.stat().st_size - len(last) + int(share * (len(last) - 1)))
    return True


def _command(folder: Path, words: Sequence[str], how: Sequence[str]) -> list[str]:
    """What goes on with the run in this folder, or begins it where a kill left none."""
    runs = [run for run in folder.iterdir() if (run / "config.json").is_file()] if folder.is_dir() else []
    return ["eval", "--resume", str(runs[0]), *how] if runs else [*words, *how, "--log-dir", str(folder)]


def _run(folder: Path) -> Path:
    return next(run for run in folder.iterdir() if (run / "config.json").is_file())


def _start(words: Sequence[str]) -> BaseProcess:
    """The command line in a process of its own, forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aiflow_agents.evals.evaluate", "aiflow_agents.models.family.model", "aiflow_agents.cli.main"])
    process = context.Process(target=_evaluate, args=(list(words),))
    process.start()
    return process


def _evaluate(words: list[str]) -> None:
    from aiflow_agents.cli.main import main

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.exit(main(words))


def _ended(process: BaseProcess, words: Sequence[str]) -> None:
    process.join()
    if process.exitcode != 0:
        raise AIFlowError(f"`aiflow {' '.join(words)}` ended with exit code {process.exitcode}")


# --- what came of it ---


def same(whole: Path, cut: Path) -> dict[str, bool]:
    """Which files of two runs are the same: lines sorted, and but for the run's own name."""
    equal: dict[str, bool] = {name: _lines(whole / name) == _lines(cut / name) for name in LINES}
    one, other = (json.loads((run / "summary.json").read_bytes()) | {"run_id": ""} for run in (whole, cut))
    return equal | {"summary.json": one == other}


def _lines(file: Path) -> list[bytes]:
    return sorted(file.read_bytes().splitlines())
