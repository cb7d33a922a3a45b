"""Run folders: what a kill, a full disk or another configuration may do to them, which is nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import UserError
from aiflow_agents.evals import run_folder
from aiflow_agents.evals.run_folder import RunFolder, write_whole

CONFIG = {"suite": "s", "seed": 0, "limit": None, "topologies": [{"debate": {"rounds": 2}}]}


def sample(task: str, status: str = "ok", arm: str = "a", **more: Any) -> dict[str, Any]:
    return {"arm": arm, "task_id": task, "repeat": 0, "status": status, "answer": "é \u2028 \x85 \U0001f600 \ud800", **more}


def filled(path: Path, count: int = 3) -> bytes:
    with RunFolder(path, CONFIG) as folder:
        for i in range(count):
            folder.add([sample(f"t{i}")])
            folder.trace({"task_id": f"t{i}", "spans": []})
    return (path / "samples.jsonl").read_bytes()


def test_samples_are_on_disk_at_once_and_come_back_as_they_were(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "r", CONFIG) as folder:
        folder.add([sample("t0"), sample("t1", "failed")])
        assert len((tmp_path / "r" / "samples.jsonl").read_bytes().splitlines()) == 2
        before = dict(folder.samples)
    with RunFolder(tmp_path / "r", CONFIG, resume=True) as folder:
        assert folder.samples == before
        assert folder.finished("a", "t0", 0) and not folder.finished("a", "t1", 0)  # what failed is tried again
        assert not folder.finished("a", "t0", 1) and not folder.finished("b", "t0", 0)
        folder.add([sample("t1", answer="2nd")])
    with RunFolder(tmp_path / "r", CONFIG, resume=True) as folder:
        assert len(folder.samples) == 2 and folder.samples["a", "t1", 0]["answer"] == "2nd"


def test_a_kill_at_any_byte_leaves_whole_lines_and_the_file_goes_on(tmp_path: Path) -> None:
    whole = filled(tmp_path / "r")
    lines = whole.count(b"\n")
    for cut in range(0, len(whole), 7):
        for name in ("samples.jsonl", "trace.jsonl"):
            data = whole if name == "samples.jsonl" else b'{"task_id": "t0"}\n{"ta'
            (tmp_path / "r" / name).write_bytes(data[:cut])
        with RunFolder(tmp_path / "r", CONFIG, resume=True) as folder:
            assert len(folder.samples) == whole[:cut].count(b"\n")
            folder.add([sample(f"t{i}") for i in range(lines) if not folder.finished("a", f"t{i}", 0)])
            folder.trace({"task_id": "t9"})
        assert (tmp_path / "r" / "samples.jsonl").read_bytes() == whole
        assert [json.loads(line) for line in (tmp_path / "r" / "trace.jsonl").read_text().splitlines()][-1] == {"task_id": "t9"}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    whole = filled(tmp_path / "r")
    (tmp_path / "r" / "samples.jsonl").write_bytes(whole.replace(b'"task_id": "t1"', b'"task_id": \x00t1"'))
    with pytest.raises(UserError, match=r"samples\.jsonl:2: this line is damaged"):
        RunFolder(tmp_path / "r", CONFIG, resume=True)


def test_another_configuration_is_refused_naming_what_differs(tmp_path: Path) -> None:
    filled(tmp_path / "r")
    with pytest.raises(UserError, match=r"limit was None and is 5, seed was 0 and is 1; start a new run"):
        RunFolder(tmp_path / "r", CONFIG | {"seed": 1, "limit": 5}, resume=True)
    with pytest.raises(UserError, match="topologies was"):
        RunFolder(tmp_path / "r", CONFIG | {"topologies": [{"debate": {"rounds": 3}}]}, resume=True)
    with pytest.raises(UserError, match="repeats was None and is 2"):
        RunFolder(tmp_path / "r", CONFIG | {"repeats": 2}, resume=True)
    RunFolder(tmp_path / "r", CONFIG, resume=True).__exit__()


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path: Path) -> None:
    whole = filled(tmp_path / "r")
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder(tmp_path / "r", CONFIG | {"seed": 5})
    assert (tmp_path / "r" / "samples.jsonl").read_bytes() == whole
    assert json.loads((tmp_path / "r" / "config.json").read_text()) == CONFIG
    with pytest.raises(UserError, match="no run folder"):
        RunFolder(tmp_path / "other", CONFIG, resume=True)
    assert not (tmp_path / "other").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "f", "old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(run_folder.os, "replace", full)
        with pytest.raises(OSError):
            write_whole(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
