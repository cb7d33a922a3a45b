"""Where models really compute: in this process (`InlineHosts`), or in Ray actors, one a core (`RayHosts`). Both give identical answers.

A host holds every model that was asked of it and uses one torch thread. A model's batch is cut into pieces that go to whichever host is free. A host
that dies is replaced and its piece is done again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from aiflow_agents.errors import AIFlowError
from aiflow_agents.models.protocol import CallError, Model, Reply, Request

PIECE = 256  # requests in one piece: large enough for the engine, small enough to share out
Answers = list[Reply | CallError]
Batches = Mapping[str, Sequence[Request]]  # model key -> requests


class Hosts(Protocol):
    """Answers batches for several models at once."""

    def generate(self, batches: Batches) -> dict[str, Answers]: ...

    def close(self) -> None: ...


class Shelf:
    """The models of one host, loaded when first asked."""

    def __init__(self, load: Callable[[str], Model] | None = None):
        self._load = load or load_model
        self._models: dict[str, Model] = {}

    def generate(self, model: str, requests: Sequence[Request]) -> Answers:
        if model not in self._models:
            self._models[model] = self._load(model)
        return self._models[model].generate(requests)


def load_model(folder: str) -> Model:
    """Load a model folder with our own engine, which has this process's one torch thread."""
    import torch

    from aiflow_agents.models.family.model import FamilyModel

    torch.set_num_threads(1)
    return FamilyModel.load(Path(folder))


class InlineHosts:
    """Everything in this process: for tests, debugging and small runs."""

    def __init__(self, load: Callable[[str], Model] | None = None):
        self._shelf: Shelf | None = None
        self._load = load

    def generate(self, batches: Batches) -> dict[str, Answers]:
        if self._shelf is None:
            self._shelf = Shelf(self._load)
        return {model: self._shelf.generate(model, requests) for model, requests in batches.items()}

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
            here: dict[str, Any] = {} if address else {"num_cpus": count or _cores(), "include_dashboard": False}
            ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **here)
        self._count = count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._actor_class = ray.remote(num_cpus=1, max_restarts=0)(Shelf)
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
        flying: dict[Any, tuple[int, tuple[str, int]]] = {}
        free = deque(range(self._count))
        deaths: dict[tuple[str, int], int] = {}
        while pieces or flying:
            while pieces and free:
                host, piece = free.popleft(), pieces.popleft()
                model, start = piece
                part = list(batches[model][start : start + size[model]])
                flying[self._actors[host].generate.remote(model, part)] = (host, piece)
            done, _ = self._ray.wait(list(flying), timeout=0.5)
            for reference in done:
                host, piece = flying.pop(reference)
                model, start = piece
                try:
                    answers[model][start : start + size[model]] = self._ray.get(reference)
                except self._ray.exceptions.RayActorError as error:
                    deaths[piece] = deaths.get(piece, 0) + 1
                    if deaths[piece] >= 3:
                        calls = len(batches[model][start : start + size[model]])
                        raise AIFlowError(f"three hosts died over the same {calls} calls to {model}: {error}") from error
                    self.restarts += 1
                    self._ray.kill(self._actors[host])  # one that is only out of reach would keep its core
                    self._actors[host] = self._new_actor(host)
                    pieces.appendleft(piece)
                except self._ray.exceptions.RayTaskError as error:
                    # ours are one line to the user; Ray would put the host's traceback into it
                    raise (error.cause if isinstance(error.cause, AIFlowError) else error.as_instanceof_cause()) from None
                free.append(host)
        return answers

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
