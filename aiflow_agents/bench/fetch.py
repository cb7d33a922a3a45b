"""What it costs a host to fetch a coded payload from another one through Ray, beside the bare copy of as many bytes.

    driver, raylet 0: references and sizes           host a, raylet 1 ==> payload ==> host b, raylet 2

Three raylets on this machine stand for three machines: what raylet 2 does not hold is sent to it by raylet 1, as over a network. The hosts are those
of an evaluation (`runtime.ray_hosts.StoredShelf`); only their model is one that makes payloads of a given size.
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
from aiflow_agents.runtime.ray_hosts import StoredShelf

SIZES = 1_000, 100_000, 1_000_000, 10_000_000


class Parcels:
    """A model that answers with as many random bytes as it is asked for, and says how many came with a request."""

    def exchange(self, requests: Sequence[Request], parcels: Mapping[str, bytes]) -> tuple[list[Reply | CallError], dict[str, bytes]]:
        there = str(sum(map(len, parcels.values())))
        made = {str(i): os.urandom(int(request.messages[0].content)) for i, request in enumerate(requests)}
        return [Reply(there, (), None, 0, 0) for _ in requests], made


def bench_fetch(sizes: Sequence[int] = SIZES, *, repeats: int = 20) -> dict[str, Any]:
    """Payloads of each size (bytes) from host to host, `repeats` times after a first that does not count.

    Returns `repeats, load, sizes: [{nbytes, call_ms, local_ms, fetch_ms, copy_ms, overhead_ms, spread_ms}]`, medians of measurements taken in turn:
    `call_ms` is a call without a payload; `local_ms` what it takes longer when its payload lies at the same host, which reads it from its store;
    `fetch_ms` what it takes longer when the payload lies with another host; `copy_ms` the same bytes once through a local TCP connection;
    `overhead_ms` is `fetch_ms - copy_ms`, with the quartiles `spread_ms` of what single fetches took. `load` is the machine's mean load of the last
    minute. Raises AIFlowError when a payload did not arrive whole, or was ever with the driver.
    """
    rows = []
    with _hosts() as (ray, a, b):

        def call(host: Any, nbytes: int, *held: Any) -> tuple[Any, Any]:
            """(answers, reference to the payload)"""
            return ray.get(host.answer.remote("parcels", [Request((Turn("user", str(nbytes)),))], list(held)))

        def answers(*held: Any) -> Any:
            return call(b, 0, *held)[0]

        for nbytes in sizes:
            took: dict[str, list[float]] = {"call": [], "fetch": [], "local": [], "copy": []}
            for _ in range(repeats + 1):
                _, held = call(a, nbytes)
                took["call"].append(_timed(answers)[0])
                for place in ("fetch", "local"):  # what was fetched is there when it is asked for again
                    seconds, (answer,) = _timed(answers, held)
                    took[place].append(seconds)
                    if int(answer.text) != nbytes:
                        raise AIFlowError(f"of a payload of {nbytes:,} bytes {answer.text} arrived")
                if with_driver(held):
                    raise AIFlowError(f"a payload of {nbytes:,} bytes came to the driver, which did not ask for it")
                took["copy"].append(_copy(nbytes))
            rows.append({"nbytes": nbytes, **_row({what: [1e3 * s for s in seconds[1:]] for what, seconds in took.items()})})
    return {"repeats": repeats, "load": os.getloadavg()[0], "sizes": rows}


def with_driver(held: Any) -> bool:
    """Whether this process holds a payload: as an object of its own (small ones come with the reply to their owner), or in the store of its node."""
    import ray

    mine = held.owner_address() == ray.put(b"").owner_address()
    return bool(mine or ray.get_runtime_context().get_node_id() in ray.experimental.get_object_locations([held])[held]["node_ids"])


def _row(took: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Milliseconds of single calls -> what each part takes."""
    call, fetch, local, copy = (statistics.median(took[what]) for what in ("call", "fetch", "local", "copy"))
    low, _, high = statistics.quantiles(took["fetch"], n=4, method="inclusive") if len(took["fetch"]) > 1 else [fetch] * 3
    fetched, spread = fetch - call, [low - call - copy, high - call - copy]
    return {"call_ms": call, "local_ms": local - call, "fetch_ms": fetched, "copy_ms": copy, "overhead_ms": fetched - copy, "spread_ms": spread}


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
        actor = ray.remote(num_cpus=1, max_restarts=0)(StoredShelf)
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
