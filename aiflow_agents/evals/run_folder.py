"""A run is a folder. Whatever stops it, what was finished is there, and `--resume` goes on from it.

`config.json` what was asked; `samples.jsonl` one line per arm, task and repeat, as it ends; `trace.jsonl` the spans of the first tasks;
`calls.sqlite` remembered answers; `summary.json` and `report.html` at the end; `run.log`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from aiflow_agents.errors import UserError

Sample = dict[str, Any]


class RunConfig(BaseModel):
    """config.json: what was asked. `members` and `tasks` say what that came to, so that a run does not go on with other ones."""

    model_config = ConfigDict(extra="forbid")
    suite: str
    team: str
    network: str
    topologies: list[dict[str, dict[str, Any]]]
    seed: int = 0
    limit: int | None = None
    repeats: int = 1
    members: dict[str, str] = {}
    tasks: str = ""


class RunFolder:
    """Opens a new folder, or an old one to go on. Use as a context manager."""

    def __init__(self, path: Path, config: Mapping[str, Any], *, resume: bool = False):
        self.path, self.config = path, dict(config)
        file = path / "config.json"
        if resume:
            if not file.is_file():
                raise UserError(f"{path} is no run folder: it has no config.json")
            was = json.loads(file.read_text(encoding="utf-8"))
            differ = sorted(key for key in {*was, *config} if was.get(key) != json.loads(json.dumps(config.get(key))))
            if differ:
                said = ", ".join(f"{key} was {was.get(key)!r} and is {config.get(key)!r}" for key in differ)
                raise UserError(f"{path} cannot be resumed with another configuration: {said}; start a new run instead")
        else:
            if file.exists():
                raise UserError(f"{path} already holds a run; go on with it (`aiflow eval --resume {path}`) or choose another folder")
            path.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(self.config, indent=2, ensure_ascii=False) + "\n")
        _cut_torn_line(path / "trace.jsonl")
        self.samples = {(s["arm"], s["task_id"], s["repeat"]): s for s in _whole_lines(path / "samples.jsonl")}
        self._samples = open(path / "samples.jsonl", "a", encoding="utf-8")
        self._trace = open(path / "trace.jsonl", "a", encoding="utf-8")
        self._log = open(path / "run.log", "a", encoding="utf-8")

    def finished(self, arm: str, task_id: str, repeat: int) -> bool:
        """Whether this one is done. What failed is tried again."""
        sample = self.samples.get((arm, task_id, repeat))
        return sample is not None and sample["status"] == "ok"

    def add(self, samples: Iterable[Sample]) -> None:
        """Keep these, on disk at once. A later line for the same arm, task and repeat replaces an earlier one."""
        lines = []
        for sample in samples:
            self.samples[sample["arm"], sample["task_id"], sample["repeat"]] = sample
            lines.append(json.dumps(sample))
        if lines:
            self._samples.write("\n".join(lines) + "\n")
            self._samples.flush()

    def trace(self, row: Mapping[str, Any]) -> None:
        self._trace.write(json.dumps(row) + "\n")
        self._trace.flush()

    def log(self, line: str) -> None:
        self._log.write(f"{datetime.now().isoformat(timespec='seconds')} {line}\n")
        self._log.flush()

    def summarise(self, summary: Mapping[str, Any]) -> None:
        write_whole(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._samples, self._trace, self._log):
            file.close()


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: it is the old one or the new one, never half."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _whole_lines(path: Path) -> list[Sample]:
    """The samples of a JSONL file; a torn last one, from a kill in mid-write, is cut off."""
    samples = []
    for number, line in enumerate(_cut_torn_line(path).split(b"\n"), 1):
        if line:
            try:
                samples.append(json.loads(line))
            except ValueError:
                raise UserError(f"{path}:{number}: this line is damaged; delete it, and what it held is run again") from None
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
