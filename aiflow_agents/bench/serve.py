"""What serving costs beside the model alone, whether it lasts under load, and whether it stands whatever is sent.

    latency    model.generate([one])        | the same question over HTTP, by turns, one at a time
    load       model.generate(of N) again.. | N clients that ask again as soon as they are answered, by turns
    malformed  truncated, mistyped, oversized, half-closed ...: never a 5xx, nor a traceback or a key in what the server writes

The server is a process of its own; this one is the client, and the model alone. Both sides see the same questions.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiflow_agents.bench import processes
from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import Request, Turn
from aiflow_agents.runtime.hosts import load_model
from aiflow_agents.runtime.team import Team

PATH = "/v1/chat/completions"
KEY = "sk-bench-4f7a90c1d2"
MOST_BODY = 100_000
SESSION = re.compile(r"(/[^\0=]*/session_\d[^/\0]*)")  # where a Ray keeps its logs, among the arguments of its processes
ALONE_S = 30.0  # of a round, at most, for the model alone


@dataclass
class Served:
    """A server under way."""

    port: int
    process: subprocess.Popen[str]
    log: Any

    @property
    def memory_mb(self) -> float:
        """What it and all that it has started hold now: hosts, and Ray's own processes."""
        return processes.memory_mb(self.process.pid)

    @property
    def cpu_s(self) -> float:
        """What these have computed so far."""
        return processes.cpu_s(self.process.pid)

    def said(self) -> str:
        """All that it has written so far, and what its processes in Ray have."""
        self.log.flush()
        sessions = {Path(found[1]) for line in processes.commands(self.process.pid) if (found := SESSION.search(line))}
        logs = [log for session in sessions for log in (*session.glob("logs/worker-*"), *session.glob("logs/serve/*"))]
        return "".join(log.read_text(errors="replace") for log in (Path(self.log.name), *logs) if log.is_file())


@contextmanager
def served(team: str, runtime: str) -> Iterator[Served]:
    """`aiflow serve TEAM` in a process of its own. Raises UserError with what it says when it does not come up."""
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = ["--port", str(free.getsockname()[1])]
        command = [sys.executable, "-m", "aiflow_agents.cli.main", "serve", team, "--topology", "single", "--allow", "single", "--runtime", runtime]
        command += [*port, "--key-variable", "AIFLOW_BENCH_KEY", "--max-body-bytes", str(MOST_BODY), "--at-once", "1000"]
        env = {**os.environ, "AIFLOW_BENCH_KEY": KEY, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=env, text=True)
        assert process.stdout is not None
        try:
            found = re.search(r"http://[\d.]+:(\d+)/v1", process.stdout.readline())
            if found is None:
                process.wait(30)
                raise UserError(f"the server did not start: {Served(0, process, log).said().strip()}")
            yield Served(int(found[1]), process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            process.stdout.close()


def request(method: str, path: str, length: int, more: str = "") -> bytes:
    """The head of a request."""
    lines = f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {KEY}", "content-type: application/json"
    return "\r\n".join([*lines, f"{more}content-length: {length}", "", ""]).encode()


class Connection:
    """A client with one connection and no more code than it takes: it shares the machine with what it measures."""

    def __init__(self, port: int):
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer."""
        return await self.send(request("POST", PATH, len(body)) + body)

    async def send(self, sent: bytes, half_close: bool = False) -> tuple[int, bytes]:
        """The same for whatever bytes; status 0 where the connection is closed without an answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        try:
            writer.write(sent)
            if half_close:
                writer.write_eof()
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            answer = int(head[9:12]), await reader.readexactly(int(found[1]) if found else 0)
            if half_close or b"connection: close" in head.lower():
                self.close()
            return answer
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            return 0, b""

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass(frozen=True)
class Round:
    """One turn of both sides: answers a second, milliseconds of CPU for each, and what the server's processes held at its end."""

    alone_per_s: float
    served_per_s: float
    memory_mb: float
    alone_cpu_ms: float = 0.0
    served_cpu_ms: float = 0.0  # of all its processes together
    clients_cpu_ms: float = 0.0


@dataclass(frozen=True)
class ServedBeside:
    """Medians in seconds of one question at a time; rounds of load; statuses of all answers."""

    alone_s: float
    served_s: float
    added_s: float
    clients: int
    rounds: list[Round]
    memory_mb: float  # when it was warm
    statuses: dict[int, int]
    malformed: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Throughput beside the model's own: the median over rounds of their ratio."""
        return statistics.median(turn.served_per_s / turn.alone_per_s for turn in self.rounds)

    @property
    def growth(self) -> float:
        """Of memory, from when it was warm to the end."""
        return self.rounds[-1].memory_mb / self.memory_mb - 1

    @property
    def errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)

    def as_data(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share, "growth": self.growth, "errors": self.errors}


def bench_serve(
    team: str, member: str, questions: Sequence[str], *, clients: int, seconds: float, rounds: int, singles: int, malformed: int, seed: int,
    runtime: str, progress: Callable[[str], None],
) -> ServedBeside:  # fmt: skip
    """Serve a member and ask it, beside the same model alone in this process."""
    agent = Team.load(team)[member]
    model = load_model(agent.folder)
    requests = [Request((Turn("user", question),), agent.max_tokens, exit=agent.exit, keep=agent.keep) for question in questions]
    bodies = [json.dumps({"model": f"{team}/{member}", "messages": [{"role": "user", "content": question}]}).encode() for question in questions]

    def alone(seconds: float) -> tuple[float, float]:
        """Answers a second, and seconds of CPU for each."""
        done, began, before_s = 0, time.perf_counter(), time.process_time()
        while (took := time.perf_counter() - began) < seconds:
            model.generate([requests[(done + i) % len(requests)] for i in range(clients)])
            done += clients
        return done / took, (time.process_time() - before_s) / done

    with served(team, runtime) as server:
        statuses: Counter[int] = Counter()
        progress("one question at a time")
        singly = asyncio.run(_singly(server, model, requests, bodies, singles, statuses))
        turns: list[Round] = []
        asyncio.run(_load(server, bodies, clients, min(seconds / 4, 5.0), statuses))  # what is made once is made now
        warm_mb = server.memory_mb
        for number in range(rounds):
            progress(f"{clients} clients, round {number + 1} of {rounds}")
            by_itself, by_itself_s = alone(min(seconds / rounds / 4, ALONE_S))
            server_s, here_s = server.cpu_s, time.process_time()
            answered = asyncio.run(_load(server, bodies, clients, seconds / rounds, statuses))
            used_ms = [1000 * took / max(answered, 1) for took in (server.cpu_s - server_s, time.process_time() - here_s)]
            turns.append(Round(by_itself, answered / (seconds / rounds), server.memory_mb, 1000 * by_itself_s, *used_ms))
        progress("malformed requests")
        rude = asyncio.run(_malformed(server, bodies[0], malformed, seed)) if malformed else {}
        return ServedBeside(*singly, clients, turns, warm_mb, dict(statuses), rude)


async def _singly(
    server: Served, model: Any, requests: Sequence[Request], bodies: Sequence[bytes], singles: int, statuses: Counter[int]
) -> tuple[float, float, float]:
    """Medians of: the model alone, the same served, and the difference between the two of one question."""
    connection, alone, over_http = Connection(server.port), [], []
    for i in range(singles + 5):
        began = time.perf_counter()
        model.generate([requests[i % len(requests)]])
        between = time.perf_counter()
        status, _ = await connection.post(bodies[i % len(bodies)])
        statuses[status] += 1
        alone.append(between - began)
        over_http.append(time.perf_counter() - between)
    connection.close()
    alone, over_http = alone[5:], over_http[5:]
    added = [served - by_itself for served, by_itself in zip(over_http, alone, strict=True)]
    return statistics.median(alone), statistics.median(over_http), statistics.median(added)


async def _load(server: Served, bodies: Sequence[bytes], clients: int, seconds: float, statuses: Counter[int]) -> int:
    """Answers that all clients together had in time."""
    ends, next_one, answered = time.perf_counter() + seconds, iter(range(10**12)), 0

    async def client() -> None:
        nonlocal answered
        connection = Connection(server.port)
        while time.perf_counter() < ends:
            status, _ = await connection.post(bodies[next(next_one) % len(bodies)])
            statuses[status] += 1
            answered += status == 200 and time.perf_counter() < ends
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered


MISTAKEN = [{"role": "user", "content": 7}]
VALUES: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1e308, "", "x", [], {}, [[]], [None], {"a": {}}, "\ud800", "\x00", MISTAKEN)
FIELDS = (
    "model", "messages", "n", "seed", "stop", "max_tokens", "temperature", "top_p", "stream", "stream_options", "logprobs", "topology", "tools",
    "response_format", "logit_bias", "nonsense",
)  # fmt: skip


def rude(body: bytes, luck: random.Random) -> tuple[str, bytes, bool]:
    """A request that is not as it should be: its kind, its bytes, and whether the client then closes its side."""
    kind = luck.choice(("truncated", "mistyped", "mistyped", "mistyped", "oversized", "half-closed", "garbage", "headers", "nested", "elsewhere"))
    path, method, length, close, extra = PATH, "POST", None, False, ""
    if kind == "truncated":
        body = body[: luck.randrange(len(body))]
    elif kind == "mistyped":
        asked = json.loads(body) | {luck.choice(FIELDS): luck.choice(VALUES) for _ in range(luck.randrange(1, 4))}
        body = json.dumps(asked).encode()
    elif kind == "oversized":
        length = MOST_BODY + luck.randrange(1, 10**12)
    elif kind == "half-closed":
        length, body, close = len(body), body[: luck.randrange(len(body))], True
    elif kind == "garbage":
        return kind, luck.randbytes(luck.randrange(1, 400)) + b"\r\n\r\n", True
    elif kind == "headers":
        lines = "transfer-encoding: chunked", "content-length: 7", "expect: 100-continue", "x" * 9000 + ": y", "no colon"
        extra, close = f"{luck.choice(lines)}\r\n", True
    elif kind == "nested":
        body = luck.choice((b"[", b'{"messages":')) * luck.randrange(1, 5000)
    else:
        path = luck.choice(("/", "/v1", "/v1/models/../../etc", "//", "/v1/completions", "/%00"))
        method = luck.choice(("GET", "PUT", "DELETE", "PATCH"))
    return kind, request(method, path, len(body) if length is None else length, extra) + body, close


async def _malformed(server: Served, body: bytes, count: int, seed: int) -> dict[str, Any]:
    """What became of so many of them: statuses by kind (0: closed without an answer), and what must not be in what the server wrote."""
    luck, found = random.Random(seed), dict[str, Counter[int]]()
    for _ in range(count):
        kind, sent, close = rude(body, luck)
        connection = Connection(server.port)
        try:
            status, _ = await asyncio.wait_for(connection.send(sent, close), 30)
        except TimeoutError:
            status = -1  # no answer at all
        connection.close()
        found.setdefault(kind, Counter())[status] += 1
    alive, _ = await Connection(server.port).post(body)
    said = server.said()
    return {
        "requests": count,
        "statuses": {kind: dict(sorted(statuses.items())) for kind, statuses in sorted(found.items())},
        "server_errors": sum(n for statuses in found.values() for status, n in statuses.items() if status >= 500 or status < 0),
        "tracebacks": said.count("Traceback"),
        "keys": said.count(KEY),
        "answers_after": alive == 200,
    }
