"""What a number was measured on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from aiflow_agents.bench.machine import cpu_seconds, machine


def test_the_machine_is_described_in_plain_data() -> None:
    about = machine()
    assert json.loads(json.dumps(about)) == about
    assert about["cpu"].strip() and about["cores"] >= 1 and about["packages"]["torch"] and about["python"] == sys.version.split()[0]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="only here does the system tell")
def test_cpu_seconds_of_a_process_are_those_it_counts_itself() -> None:
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time(), flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdin
        said = float(other.stdout.readline())
        assert cpu_seconds(other.pid) == pytest.approx(said, abs=0.1)
        other.stdin.write("\n")
    assert cpu_seconds(other.pid) is None
    assert cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.1)
