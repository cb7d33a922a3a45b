"""The endpoint on a real Ray Serve, in processes of its own: it answers, stands up again, ends when it is told to, and nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from aiflow_agents.cli.main import main

LACKING = [module for module in ("grpc", "watchfiles") if find_spec(module) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"Ray Serve lacks {', '.join(LACKING)}: pip install 'aiflow-agents[serve]'")
MARK, KEY = "AIFLOW_TEST_MARK", "sk-nobody-must-read-this"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def marked(mark: str) -> dict[int, str]:
    """The commands of all processes that were started with this mark in their environment, by process."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        except OSError:  # it has ended, or is somebody else's
            continue
    return {process: command for process, command in found.items() if command}  # one that has none is dead, and waits for its parent


def test_a_port_that_is_taken_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "willow", "--topology", "single", "--allow", "single", "--port", port]) == 2
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use; take another one with --port" in capsys.readouterr().err


def again(ask: Callable[[], Any]) -> Any:
    """What `ask` gives when there is somebody to answer again."""
    until = time.monotonic() + 120
    while True:
        try:
            return ask()
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_it_answers_streams_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code, port, mark = "import sys; from aiflow_agents.cli.main import main; sys.exit(main())", free_port(), uuid4().hex
    args = ["serve", "willow", "--topology", "single", "--allow", "exit-cascade", "--runtime", "ray", "--port", str(port), "--key-variable", "THE_KEY"]
    path = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "THE_KEY": KEY, MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    server = subprocess.Popen([sys.executable, "-c", code, *args], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    too_late = threading.Timer(300, server.kill)  # Ray starts slowly on a busy machine
    too_late.start()
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert re.search(rf"^6 models at http://127\.0\.0\.1:{port}/v1: willow, ", said), (said, server.communicate())
        assert any("raylet" in command for command in marked(mark).values()), "or nothing would be found below either"
        asked = {"model": "willow", "messages": [{"role": "user", "content": "84*7="}]}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client:
            answer = client.post("/v1/chat/completions", json=asked).json()
            text = answer["choices"][0]["message"]["content"]
            assert re.fullmatch(r"-?\d+", text) and answer["usage"]["aiflow"]["calls"] == 1
            deeper = client.post("/v1/chat/completions", json=asked | {"model": "willow/exit-cascade"}).json()
            assert re.fullmatch(r"-?\d+", deeper["choices"][0]["message"]["content"])
            with client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as streamed:
                lines = [line for line in streamed.iter_lines() if line]
            assert streamed.headers["content-type"].startswith("text/event-stream")
            assert lines[-1] == "data: [DONE]" and len(lines) >= 4 and any(text in line for line in lines[:-1])
            assert httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked).status_code == 401
            (replica,) = [process for process, command in marked(mark).items() if "ServeReplica" in command]
            os.kill(replica, signal.SIGKILL)
            assert again(lambda: client.post("/v1/chat/completions", json=asked).json()["choices"]) == answer["choices"], "another one was started"
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate()
    finally:
        too_late.cancel()
        server.kill()
    assert server.returncode == 0 and "Traceback" not in err and KEY not in err, err
    until = time.monotonic() + 30
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == {}
