"""A process and all that it has started, and these in turn: what they hold, and what they have computed. From /proc, where there is one."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """The process and its descendants that are still there."""
    children = defaultdict(list)
    for process in PROC.iterdir():
        if process.name.isdigit() and (stat := _stat(int(process.name))):
            children[int(stat[1])].append(int(process.name))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += children[found[-1]]
    return found


def commands(pid: int) -> list[str]:
    """With which arguments they were started."""
    found = []
    for one in family(pid):
        with suppress(OSError):
            found.append((PROC / str(one) / "cmdline").read_text(errors="replace"))
    return found


def memory_mb(pid: int) -> float:
    """What they all hold; of what several of them share, each counts its part."""
    return sum(_held_kb(one) for one in family(pid)) / 1024


def cpu_s(pid: int) -> float:
    """Seconds that those of them have computed which are still there."""
    stats = (_stat(one) for one in family(pid))
    return sum(int(stat[11]) + int(stat[12]) for stat in stats if stat) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the command's name: the state first, then the parent. Empty where the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def _held_kb(pid: int) -> int:
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):  # the first is not for everybody's eyes
        try:
            lines = (PROC / str(pid) / name).read_text().splitlines()
        except OSError:
            continue
        found = [line for line in lines if line.startswith(key)]
        if found:
            return int(found[0].split()[1])
    return 0
