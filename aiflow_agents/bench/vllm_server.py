"""A real server of vLLM on loopback, for as long as a measurement or a test needs one.

It is started as what `vllm serve` starts: the CPU build, whose distribution has another name, stops at `vllm serve` before it has begun (0.32.0).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiflow_agents.errors import UserError
from aiflow_agents.models.vllm import ENVIRONMENT, KV_CACHE_GB, installed

START_S = 600.0  # most of it is import; a busy machine takes minutes


@contextmanager
def serving(folder: Path, name: str, *, dtype: str = "float32", max_model_len: int) -> Iterator[str]:
    """The address (http://127.0.0.1:PORT/v1) of a server that answers as the model `name`. Raises `UserError` where it does not come up."""
    if not installed():
        raise UserError("a server of vLLM needs vLLM, which is not installed; see `aiflow doctor`")
    port = _free_port()
    words = ["--model", str(folder), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, "--dtype", dtype, "--enforce-eager"]
    more = ["--max-model-len", str(max_model_len), "--kv-cache-memory-bytes", str(int(KV_CACHE_GB * 2**30))]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *more],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}, start_new_session=True,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            if not _comes_up(server, url):
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines()
                raise UserError(f"vLLM's server did not come up with {folder}: {said[-1] if said else 'it said nothing'}")
            yield f"{url}/v1"
        finally:
            _end(server)


def _comes_up(server: subprocess.Popen[bytes], url: str) -> bool:
    import httpx

    ends = time.monotonic() + START_S
    while time.monotonic() < ends and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """It and the engine that it started: politely, then not."""
    for how, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        try:
            os.killpg(server.pid, how)
        except ProcessLookupError:
            break
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
