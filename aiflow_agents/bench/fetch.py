"""What it costs a host to fetch a coded payload from another one through Ray, beside the bare copy of as many bytes.

    driver, raylet 0: references and sizes           host a, raylet 1 ==> payload ==> host b, raylet 2

Three raylets on this machine stand for three machines: what raylet 2 does not hold is sent to it by raylet 1, as over a network. The hosts are those
of an evaluation (`runtime.hosts.Shelf`); only their model is one that makes payloads of a given size.
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from aiflow_agents.errors import AIFlowError
from aiflow_agents.models.protocol import CallError, Reply, Request, Turn
from aiflow_agents.runtime.hosts import Shelf

SIZES = 100_000, 1_000_000, 10_000_000


class Parcels:
    """A model that answers with as many random bytes as it is asked for, and says how many came with a request."""

    def exchange(self, requests: Sequence[Request], parcels: Mapping[str, bytes]) -> tuple[list[Reply | CallError], dict[str, bytes]]:
        there = str(sum(map(len, parcels.values())))
        made = {str(i): os.urandom(int(request.messages[0].content)) for i, request in enumerate(requests)}
        return [Reply(there, (), None, 0, 0) for _ in requests], made


def bench_fetch(sizes: Sequence[int] = SIZES, *, repeats: int = 20) -> dict[str, Any]:
    """Payloads of each size (bytes) from host to host, `repeats` times after a first that does not count.

    Returns `repeats, sizes: [{nbytes, fetch_ms, copy_ms, overhead_ms}]`, medians: `fetch_ms` is what a call takes longer when its payload lies with
    another host, `copy_ms` the same bytes once through a local TCP connection, `overhead_ms` what is left. Raises AIFlowError when a payload did not
    arrive whole, or was ever at the driver's raylet.
    """
    rows = []
    with _hosts() as (ray, a, b):

        def call(host: Any, nbytes: int, *held: Any) -> tuple[Any, Any]:
            """(reference to the answers, reference to the payload)"""
            return host.generate.options(num_returns=2).remote("parcels", [Request((Turn("user", str(nbytes)),))], *held)

        def answers(*held: Any) -> Any:
            return ray.get(call(b, 0, *held)[0])

        for nbytes in sizes:
            plain, fetched = [], []
            for _ in range(repeats + 1):
                reply, held = call(a, nbytes)
                ray.get(reply)
                plain.append(_timed(answers)[0])
                took, (answer,) = _timed(answers, held)
                fetched.append(took)
                if int(answer.text) != nbytes:
                    raise AIFlowError(f"of a payload of {nbytes:,} bytes {answer.text} arrived")
                if ray.get_runtime_context().get_node_id() in ray.experimental.get_object_locations([held])[held]["node_ids"]:
                    raise AIFlowError(f"a payload of {nbytes:,} bytes came to the driver, which did not ask for it")
            fetch_ms = 1e3 * (statistics.median(fetched[1:]) - statistics.median(plain[1:]))
            copy_ms = 1e3 * statistics.median(_copy(nbytes) for _ in range(repeats))
            rows.append({"nbytes": nbytes, "fetch_ms": fetch_ms, "copy_ms": copy_ms, "overhead_ms": fetch_ms - copy_ms})
    return {"repeats": repeats, "sizes": rows}


@contextmanager
def _hosts() -> Iterator[tuple[Any, Any, Any]]:
    """(ray, host a, host b), each host on a raylet of its own, none on the driver's."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        raise AIFlowError("Ray is running in this process already; the bench starts one of its own")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    store = {"object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    try:
        for place in "ab":
            cluster.add_node(num_cpus=1, resources={place: 1}, **store)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        actor = ray.remote(num_cpus=1, max_restarts=0)(Shelf)
        yield ray, *(actor.options(resources={place: 1}).remote(_load) for place in "ab")
    finally:
        ray.shutdown()
        cluster.shutdown()


def _load(_: str) -> Any:
    return Parcels()


def _timed(work: Callable[..., Any], *payload: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work(*payload)
    return time.perf_counter() - start, found


def _copy(nbytes: int) -> float:
    """Seconds that so many bytes take through a TCP connection to this machine itself."""
    data, room = os.urandom(nbytes), memoryview(bytearray(nbytes))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            sending = threading.Thread(target=sender.sendall, args=(data,))
            start, got = time.perf_counter(), 0
            sending.start()
            while got < nbytes:
                got += receiver.recv_into(room[got:])
            took = time.perf_counter() - start
            sending.join()
    return took
