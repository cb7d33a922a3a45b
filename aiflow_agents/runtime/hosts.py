"""Where models really compute: in this process (`InlineHosts`), or in Ray actors, one a core (`RayHosts`). Both give identical answers.

A host holds every model that was asked of it and uses one torch thread. A model's batch is cut into pieces that go to whichever host is free. A host
that dies is replaced and its piece is done again.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from aiflow_agents.errors import AIFlowError
from aiflow_agents.models.protocol import CallError, Model, Reply, Request

PIECE = 256  # requests in one piece: large enough for the engine, small enough to share out
Answers = list[Reply | CallError]
Batches = Mapping[str, Sequence[Request]]  # model key -> requests
Bundle = dict[str, bytes]  # digest -> coded payload


class Hosts(Protocol):
    """Answers batches for several models at once.

    Coded payloads (`models.protocol.Parcel`) stay with the hosts; who drives them knows names and sizes.
    """

    def generate(self, batches: Batches) -> dict[str, Answers]: ...

    def know(self, model: str, request: Request, reply: Reply) -> None:
        """Told of an answer that was remembered: the payload that came with it is made again from this call when somebody needs it."""

    def close(self) -> None: ...


class Shelf:
    """The models of one host, loaded when first asked."""

    def __init__(self, load: Callable[[str], Model] | None = None):
        self._load = load or load_model
        self._models: dict[str, Model] = {}

    def generate(self, model: str, requests: Sequence[Request], *bundles: Bundle) -> tuple[Answers, Bundle]:
        """Answers, and the payloads that came with them. `bundles` hold those that the requests go on from."""
        if model not in self._models:
            self._models[model] = self._load(model)
        loaded = self._models[model]
        if not hasattr(loaded, "exchange"):
            return loaded.generate(requests), {}
        return loaded.exchange(requests, {digest: coded for bundle in bundles for digest, coded in bundle.items()})


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


def load_model(key: str) -> Model:
    """Load what stands behind a key: a model folder with our own engine, or another backend. Torch has this process's one thread."""
    from aiflow_agents.models.backends import behind

    return behind(key).load()


class Origins:
    """Which call made which payload, so that one that is lost can be made again."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[str, Request]] = {}

    def note(self, model: str, requests: Sequence[Request], replies: Sequence[Reply | CallError]) -> None:
        for request, reply in zip(requests, replies, strict=True):
            if isinstance(reply, Reply) and reply.parcel is not None:
                self._calls[reply.parcel.digest] = model, request

    def restore(self, requests: Sequence[Request], held: Mapping[str, Any], generate: Callable[[Batches], Any]) -> None:
        """Make the payloads again that these requests need and nobody holds, from the calls that made them first, and those before."""
        lost: dict[str, list[Request]] = {}
        for request in requests:
            for parcel in request.parcels:
                if parcel.digest not in held:
                    model, call = self._calls[parcel.digest]
                    if call not in lost.setdefault(model, []):
                        lost[model].append(call)
        if lost:
            generate(lost)


class InlineHosts:
    """Everything in this process: for tests, debugging and small runs."""

    def __init__(self, load: Callable[[str], Model] | None = None):
        self._shelf: Shelf | None = None
        self._load = load
        self._origins, self._parcels = Origins(), Bundle()

    def generate(self, batches: Batches) -> dict[str, Answers]:
        if self._shelf is None:
            self._shelf = Shelf(self._load)
        found = {}
        for model, requests in batches.items():
            self._origins.restore(requests, self._parcels, self.generate)
            found[model], packed = self._shelf.generate(model, requests, self._parcels)
            self._parcels.update(packed)
            self._origins.note(model, requests, found[model])
        return found

    def know(self, model: str, request: Request, reply: Reply) -> None:
        self._origins.note(model, [request], [reply])

    def close(self) -> None:
        self._shelf = None


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


def open_hosts(runtime: str, *, address: str | None = None) -> Hosts:
    """`inline` or `ray`."""
    from aiflow_agents.errors import UnknownName

    if runtime == "inline":
        return InlineHosts()
    if runtime == "ray":
        return RayHosts(address=address)
    raise UnknownName("runtime", runtime, ("inline", "ray"))
