"""A run is a folder. Whatever stops it, what was finished is there, and `--resume` goes on from it.

`config.json` what was asked; `samples.jsonl` one line per arm, task and repeat, as it ends; `trace.jsonl` the spans of the first tasks;
`calls.sqlite` remembered answers; `fitted.json` what dev has taught; `summary.json` and `report.html` at the end; `curves.json` where `aiflow
curve` was asked for some; `run.log`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from aiflow_agents.errors import UserError
from aiflow_agents.runtime.budget import Budget

Sample = dict[str, Any]
OK, FAILED, OVER_BUDGET = "ok", "failed", "over budget"  # a sample's status
CURVES, FITTED, SWEEP = "curves.json", "fitted.json", "sweep.json"
FULL = (errno.ENOSPC, errno.EDQUOT)


class RunConfig(BaseModel):
    """config.json: what was asked. `members`, `tasks` and `extract` say what that came to, so that a run does not go on with other ones."""

    model_config = ConfigDict(extra="forbid")
    suite: str
    team: str
    network: str
    topologies: list[dict[str, dict[str, Any]]]
    seed: int = 0
    limit: int | None = None
    repeats: int = 1
    data: str | None = None
    monolith: str | None = None
    budget: Budget | None = None
    faults: list[str] = []
    members: dict[str, str] = {}
    tasks: str = ""
    extract: str | dict[str, Any] = "text"


class OtherRun(UserError):
    """A folder was to be gone on with, and holds another run. `differ` names what differs: key -> (was, is)."""

    def __init__(self, path: Path, differ: Mapping[str, tuple[Any, Any]]):
        self.path, self.differ = path, dict(differ)
        super().__init__(f"{path} cannot be resumed with another configuration: {self.said}; start a new run instead")

    @property
    def said(self) -> str:
        """What differs, in words."""
        return ", ".join(f"{key} was {_short(was)} and is {_short(new)}" for key, (was, new) in self.differ.items())

    def only(self, keys: Iterable[str]) -> OtherRun:
        """The same, about these keys alone."""
        return OtherRun(self.path, {key: self.differ[key] for key in keys})


def compare(path: Path, config: Mapping[str, Any]) -> None:
    """Raise OtherRun unless the run in this folder was asked just this."""
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{path} is no run folder: it has no config.json")
    was = _object(file)
    if was is None:
        raise UserError(f"{file} is damaged: it is no JSON object; start a new run instead")
    new = json.loads(json.dumps(config))
    differ = {key: (was.get(key), new.get(key)) for key in sorted({*was, *new}) if was.get(key) != new.get(key)}
    if differ:
        raise OtherRun(path, differ)


def read_config(path: Path) -> RunConfig:
    """What the run in this folder was asked. Raises UserError where there is none, ConfigError where it cannot be read."""
    from aiflow_agents.config import load_yaml

    if not (path / "config.json").is_file():
        raise UserError(f"{path} is no run folder: it has no config.json")
    return load_yaml(path / "config.json", RunConfig)


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json of a finished run. Raises UserError where the run has not come so far, or the file is damaged."""
    file = path / "summary.json"
    if not path.is_dir() or not (path / "config.json").is_file():
        raise UserError(f"{path} is no run folder: it has no config.json")
    if not file.is_file():
        raise UserError(f"{path} is not finished: it has no summary.json; go on with it: aiflow eval --resume {path}")
    summary = _object(file)
    if summary is None or not isinstance(summary.get("arms"), dict):
        raise UserError(f"{file} is damaged; make it again: aiflow eval --resume {path}")
    return summary


def read_curves(path: Path) -> dict[str, dict[str, Any]]:
    """The curves of a run (see `evals.curve`), by what they are over; none where there are none, or where the file is damaged."""
    return (_object(path / CURVES) if (path / CURVES).is_file() else None) or {}


def read_sweep(path: Path) -> dict[str, Any] | None:
    """What `evals.sweep` has left in a run's folder; None where there is nothing, or it is damaged."""
    return _object(path / SWEEP) if (path / SWEEP).is_file() else None


def _object(file: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None where it holds none."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def read_samples(path: Path) -> dict[tuple[str, str, int], Sample]:
    """The samples of a run by arm, task and repeat, without touching the folder. Raises UserError for a line that is damaged."""
    file = path / "samples.jsonl"
    data = file.read_bytes() if file.is_file() else b""
    return _keyed(_parse(file, data[: data.rfind(b"\n") + 1]))


class RunFolder:
    """Opens a new folder, or an old one to go on. Use as a context manager.

    Raises UserError where nothing can be written, where another process writes, and for a resume of what is no run; OtherRun for one of another.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, resume: bool = False):
        self.path, self.config = path, dict(config)
        self._files: list[_Lines] = []
        try:
            self._open(path / "config.json", resume)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and error.errno not in FULL:
                where = error.filename or path
                hint = "" if resume else "; choose another folder with --log-dir"
                raise UserError(f"{where} cannot be written: {error.strerror}{hint}") from None
            raise

    def _open(self, config: Path, resume: bool) -> None:
        path = self.path
        if resume:
            compare(path, self.config)
        else:
            if config.exists():
                raise UserError(f"{path} already holds a run; go on with it (`aiflow eval --resume {path}`) or choose another folder")
            path.mkdir(parents=True, exist_ok=True)
            write_whole(config, json.dumps(self.config, indent=2, ensure_ascii=False) + "\n")
        self._samples = self._lines("samples.jsonl")
        if not self._samples.lock():
            raise UserError(f"{path} is being written by another process; wait until that one has ended, or stop it")
        # only now, as the other process may have been in mid-write
        self.samples = _keyed(_parse(path / "samples.jsonl", _cut_torn_line(path / "samples.jsonl")))
        self._drop_traces(path / "trace.jsonl")
        self._trace, self._log = self._lines("trace.jsonl"), self._lines("run.log")

    def _lines(self, name: str) -> _Lines:
        self._files.append(_Lines(self.path / name))
        return self._files[-1]

    def _drop_traces(self, path: Path) -> None:
        """Keep the spans of what is finished, once: what is run again leaves new ones."""
        rows: dict[tuple[Any, Any], bytes] = {}
        lines = [line for line in _cut_torn_line(path).split(b"\n") if line]
        for line in lines:
            with suppress(ValueError, AttributeError, TypeError):  # a damaged line, which nobody needs
                row = json.loads(line)
                if self.finished(row.get("arm"), row.get("task_id"), 0):
                    rows[row["arm"], row["task_id"]] = line
        if len(rows) < len(lines):
            write_whole(path, "".join(f"{line.decode('utf-8')}\n" for line in rows.values()))

    def finished(self, arm: str, task_id: str, repeat: int) -> bool:
        """Whether this one is done. What failed is tried again."""
        sample = self.samples.get((arm, task_id, repeat))
        return sample is not None and sample["status"] != FAILED

    def add(self, samples: Iterable[Sample]) -> None:
        """Keep these, on disk at once. A later line for the same arm, task and repeat replaces an earlier one."""
        rows = list(samples)
        self._samples.add("".join(json.dumps(sample) + "\n" for sample in rows))
        self.samples.update({(sample["arm"], sample["task_id"], sample["repeat"]): sample for sample in rows})

    def trace(self, row: Mapping[str, Any]) -> None:
        self._trace.add(json.dumps(row) + "\n")

    def log(self, line: str) -> None:
        self._log.add(f"{datetime.now().isoformat(timespec='seconds')} {line}\n")

    def learned(self, text: str) -> None:
        """What dev has taught (see `evals.fitted`): the same again when the run goes on."""
        write_whole(self.path / FITTED, text)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        write_whole(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        while self._files:
            self._files.pop().close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Lines:
    """A file that only grows, by whole lines. When a disk is full or Ctrl-C comes in mid-write, it is cut back to what it was before."""

    def __init__(self, path: Path):
        self._file = open(path, "ab", buffering=0)  # a buffer would try again later, behind lines that came after

    def add(self, text: str) -> None:
        if not text:
            return
        left = memoryview(text.encode("utf-8", errors="backslashreplace"))
        before = os.fstat(self._file.fileno()).st_size
        try:
            while left:
                left = left[self._file.write(left) :]
        except BaseException as error:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), before)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = self._file.name
            raise

    def lock(self) -> bool:
        """False when another process has it. The lock ends with this process, however that ends."""
        try:
            import fcntl
        except ImportError:  # Windows
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
        return True

    def close(self) -> None:
        self._file.close()


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: it is the old one or the new one, never half."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _keyed(samples: Iterable[Sample]) -> dict[tuple[str, str, int], Sample]:
    """By arm, task and repeat; of several lines for one, the last counts."""
    return {(sample["arm"], sample["task_id"], sample["repeat"]): sample for sample in samples}


def _parse(path: Path, data: bytes) -> list[Sample]:
    """The samples in the whole lines of a file."""
    samples = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line:
            try:
                sample = json.loads(line)
                _ = sample["arm"], sample["task_id"], sample["repeat"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: this line is damaged; delete it, and what it held is run again") from None
            samples.append(sample)
    return samples


def _cut_torn_line(path: Path) -> bytes:
    """The whole lines of a file, after cutting off what follows the last line break."""
    if not path.exists():
        return b""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole


def _short(value: Any) -> str:
    """A value of a configuration in a line of text."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
