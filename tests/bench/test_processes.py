"""What a process and those that it has started hold and compute, against what they say themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiflow_agents.bench import processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
CHILD = """\
import subprocess, sys, time
held = b"x" * 60_000_000
while time.process_time() < 0.4:
    pass
grandchild = subprocess.Popen([sys.executable, *sys.argv[1:]]) if sys.argv[1:] else None
print("there", flush=True)
sys.stdin.read()
if grandchild:
    grandchild.wait()
"""


def test_children_and_theirs_are_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        assert [child.stdout.readline() for _ in range(2)] == [b"there\n"] * 2
        found = processes.family(child.pid)
        assert found[0] == child.pid and len(found) == 2 and child.pid in processes.family(os.getpid())
        assert [command.count(CHILD) for command in processes.commands(child.pid)] == [2, 1]
        assert 115 < processes.memory_mb(child.pid) < 250
        assert 0.7 < processes.cpu_s(child.pid) < 5
        child.stdin.close()
    assert processes.memory_mb(child.pid) == processes.cpu_s(child.pid) == 0
