"""Hosts in Ray: one actor a core. A model's batch is cut into pieces that go to whichever host is free.

A host that dies is replaced and its piece is done again.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from aiflow_agents.errors import AIFlowError
from aiflow_agents.models.protocol import Model, Reply, Request
from aiflow_agents.runtime.hosts import Answers, Batches, Bundle, Origins, Shelf

PIECE = 256  # requests in one piece: large enough for the engine, small enough to share out


class StoredShelf(Shelf):
    """A host in Ray, whose payloads lie in the object store of its own node and belong to it: who drives it has references and nothing else.

    (What a call returns belongs to the caller, and comes along with the reply when it has less than 100 kB.)
    """

    def answer(self, model: str, requests: Sequence[Request], held: Sequence[Any]) -> tuple[Answers, Any]:
        """Answers, and a reference to the payloads that came with them, if any did. `held` are references to those that the requests go on from.

        Raises Ray's ObjectLostError when the host that made one of them is gone.
        """
        import ray

        answers, made = self.generate(model, requests, *map(_unpacked, ray.get(list(held))))
        return answers, ray.put(_packed(made)) if made else None


def _packed(bundle: Bundle) -> tuple[dict[str, int], Any]:
    """Lengths by digest, and all bytes in one array: Ray reads and writes arrays in place, and would copy `bytes` into its pickle."""
    import numpy as np

    return {digest: len(coded) for digest, coded in bundle.items()}, np.frombuffer(b"".join(bundle.values()), np.uint8)


def _unpacked(packed: tuple[dict[str, int], Any]) -> Bundle:
    lengths, data = packed
    ends = accumulate(lengths.values())
    return {digest: data[end - length : end].tobytes() for (digest, length), end in zip(lengths.items(), ends, strict=True)}


class RayHosts:
    """One Ray actor a core (or `count`). A Ray that was running before is never shut down."""

    def __init__(self, count: int | None = None, address: str | None = None, load: Callable[[str], Model] | None = None):
        import ray

        self._ray, self._load = ray, load
        self._started = not ray.is_initialized()
        if self._started:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it would announce its default at every start
            here: dict[str, Any] = {} if address else {"num_cpus": count or _cores(), "include_dashboard": False}
            ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **here)
        self._count = count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._actor_class = ray.remote(num_cpus=1, max_restarts=0)(StoredShelf)
        self._origins = Origins()
        self._bundles: dict[str, Any] = {}  # digest -> reference to the bundle that holds it
        self._actors = [self._new_actor(index) for index in range(self._count)]
        self.restarts = 0

    def _new_actor(self, index: int) -> Any:
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
        return self._actor_class.options(runtime_env=environment).remote(self._load)

    def generate(self, batches: Batches) -> dict[str, Answers]:
        """Raises AIFlowError when one piece has killed three hosts, and what a host raises. Ctrl-C is noticed within half a second."""
        pieces = deque((model, start) for model, requests in batches.items() for start in range(0, len(requests), _piece(len(requests), self._count)))
        size = {model: _piece(len(requests), self._count) for model, requests in batches.items()}
        answers: dict[str, list[Any]] = {model: [None] * len(requests) for model, requests in batches.items()}
        for requests in batches.values():
            self._origins.restore(requests, self._bundles, self.generate)
        flying: dict[Any, tuple[int, tuple[str, int]]] = {}
        free = deque(range(self._count))
        deaths: dict[tuple[str, int], int] = {}
        while pieces or flying:
            while pieces and free:
                host, piece = free.popleft(), pieces.popleft()
                model, start = piece
                part = list(batches[model][start : start + size[model]])
                # the bundles go from host to host: what comes here is answers and references
                needed = dict.fromkeys(self._bundles[parcel.digest] for request in part for parcel in request.parcels)
                flying[self._actors[host].answer.remote(model, part, list(needed))] = (host, piece)
            done, _ = self._ray.wait(list(flying), timeout=0.5)
            for reference in done:
                host, piece = flying.pop(reference)
                model, start = piece
                part = list(batches[model][start : start + size[model]])
                try:
                    made, bundle = self._ray.get(reference)
                    answers[model][start : start + size[model]] = made
                    self._origins.note(model, part, made)
                    self._bundles.update({reply.parcel.digest: bundle for reply in made if isinstance(reply, Reply) and reply.parcel is not None})
                except self._ray.exceptions.ObjectLostError:  # a bundle went with the host that held it
                    for request in part:
                        for parcel in request.parcels:
                            self._bundles.pop(parcel.digest, None)
                    self._origins.restore(part, self._bundles, self.generate)
                    pieces.appendleft(piece)
                except self._ray.exceptions.RayActorError as error:
                    deaths[piece] = deaths.get(piece, 0) + 1
                    if deaths[piece] >= 3:
                        raise AIFlowError(f"three hosts died over the same {len(part)} calls to {model}: {error}") from error
                    self.restarts += 1
                    self._ray.kill(self._actors[host])  # one that is only out of reach would keep its core
                    self._actors[host] = self._new_actor(host)
                    pieces.appendleft(piece)
                except self._ray.exceptions.RayTaskError as error:
                    # ours are one line to the user; Ray would put the host's traceback into it
                    raise (error.cause if isinstance(error.cause, AIFlowError) else error.as_instanceof_cause()) from None
                free.append(host)
        return answers

    def know(self, model: str, request: Request, reply: Reply) -> None:
        self._origins.note(model, [request], [reply])

    def processes(self) -> list[int]:
        """Process ids of the hosts, for those who want to watch or kill one."""
        return self._ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in self._actors])

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._started:
            self._ray.shutdown()


def _piece(requests: int, hosts: int) -> int:
    """Small batches are not worth cutting; large ones go in pieces of `PIECE`; between them every host gets its share."""
    return PIECE if requests >= PIECE * hosts else max(32, -(-requests // hosts))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
