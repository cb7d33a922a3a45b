"""What was measured on: without it a number says nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from aiflow_agents.evals.provenance import packages, revision


def machine() -> dict[str, Any]:
    """`cpu, cores, load, threads, python, packages, git`: what is measured runs on one torch thread; `load` is how busy the machine was before."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": 1,
        "python": platform.python_version(),
        "packages": packages(),
        "git": revision(),
    }


def _cpu() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_seconds(pid: int) -> float | None:
    """CPU seconds that another process has used so far, user and system; None where the system does not tell, or the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
