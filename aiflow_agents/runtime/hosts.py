"""Where models really compute: in this process (`InlineHosts`), or in Ray actors (`ray_hosts.RayHosts`). Both give identical answers.

A host holds every model that was asked of it and uses one torch thread.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.models.protocol import CallError, Model, Reply, Request, Told

Answers = list[Reply | CallError]
Batches = Mapping[str, Sequence[Request]]  # model key -> requests
Bundle = dict[str, bytes]  # digest -> coded payload
ToldOf = Callable[[str, int, int, tuple[int, ...], str], None]  # a `Told` of a model, by its key
OBJECT = "python:"  # the key of a model that is an object begins so


class Hosts(Protocol):
    """Answers batches for several models at once.

    Coded payloads (`models.protocol.Parcel`) stay with the hosts; who drives them knows names and sizes.
    """

    def generate(self, batches: Batches) -> dict[str, Answers]: ...

    def know(self, model: str, request: Request, reply: Reply) -> None:
        """Told of an answer that was remembered: the payload that came with it is made again from this call when somebody needs it."""

    def close(self) -> None: ...


class LiveHosts(Hosts, Protocol):
    """Hosts that may be asked from several threads, and for longer than payloads can be kept."""

    def generate(self, batches: Batches, told: ToldOf | None = None) -> dict[str, Answers]:
        """`told` hears, in whichever thread, the tokens of models that stream, while they make them; perhaps twice, where a host has died."""
        ...

    @property
    def at_once(self) -> int:
        """How many batches are worked on at the same time."""
        ...

    def warm(self, models: Sequence[str]) -> None:
        """Load these models now."""

    def forget(self, digests: Iterable[str]) -> None:
        """Nobody needs these payloads any more: one digest for every call that made one."""


class Shelf:
    """The models of one host, loaded when first asked."""

    def __init__(self, load: Callable[[str], Model] | None = None):
        self._load = load or load_model
        self._models: dict[str, Model] = {}

    def generate(self, model: str, requests: Sequence[Request], *bundles: Bundle, told: Told | None = None) -> tuple[Answers, Bundle]:
        """Answers, and the payloads that came with them. `bundles` hold those that the requests go on from; `told` hears a model that streams."""
        if model not in self._models:
            self._models[model] = self._load(model)
        loaded = self._models[model]
        more: dict[str, Any] = {"told": told} if told is not None and getattr(loaded, "streams", False) else {}
        if not hasattr(loaded, "exchange"):
            return _whole(loaded.generate(requests, **more), requests, model), {}
        return loaded.exchange(requests, {digest: coded for bundle in bundles for digest, coded in bundle.items()}, **more)


def _whole(answers: Answers, requests: Sequence[Request], model: str) -> Answers:
    """These answers. Raises UserError where a model of one's own gives others than one for each request."""
    if isinstance(answers, list) and len(answers) == len(requests) and all(isinstance(answer, Reply | CallError) for answer in answers):
        return answers
    found = f"{len(answers)} {' and '.join(sorted({type(a).__name__ for a in answers}))}" if isinstance(answers, list) else type(answers).__name__
    raise UserError(f"the model {model} gave {found} for {len(requests)} requests; expected a list with a Reply or a CallError for each")


def load_model(key: str) -> Model:
    """Load what stands behind a key: a model folder with our own engine, or another backend. Torch has this process's one thread."""
    from aiflow_agents.models.backends import behind

    if key.startswith(OBJECT):
        raise UserError(f"the model {key} is an object in Python, which these hosts do not have; let them be opened for the team, or use `Lent`")
    return behind(key).load()


class Lent:
    """Loads models for hosts that are opened for a team, some of whose `models` are objects of this process. To hosts in Ray they go by Ray's own
    pickle. Raises UserError for one that cannot.
    """

    def __init__(self, models: Mapping[str, Model], *, away: bool = False):
        self.models = models
        for model in models.values() if away else ():
            _can_travel(model)

    def __call__(self, key: str) -> Model:
        return self.models[key] if key in self.models else load_model(key)


def _can_travel(model: Model) -> None:
    """A class of a notebook, a script or a module that is not installed goes along with its objects."""
    from ray import cloudpickle

    module = sys.modules.get(type(model).__module__)
    file = getattr(module, "__file__", None)
    if file and "site-packages" not in Path(file).parts and not type(model).__module__.startswith("aiflow_agents."):
        cloudpickle.register_pickle_by_value(module)
    try:
        cloudpickle.dumps(model)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"the model {model.info.name} cannot be sent to hosts in Ray ({why}); use the runtime 'inline', or load what it needs at its "
                        "first `generate`") from error  # fmt: skip


class Origins:
    """Which call made which payload, so that one that is lost can be made again."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[str, Request]] = {}
        self._made: Counter[str] = Counter()

    def note(self, model: str, requests: Sequence[Request], replies: Sequence[Reply | CallError]) -> None:
        for request, reply in zip(requests, replies, strict=True):
            if isinstance(reply, Reply) and reply.parcel is not None:
                self._calls[reply.parcel.digest] = model, request
                self._made[reply.parcel.digest] += 1

    def forget(self, digest: str) -> bool:
        """One of the calls that made this payload needs it no more. True where no other does."""
        self._made[digest] -= 1
        last = self._made[digest] <= 0
        if last:
            self._made.pop(digest, None)
            self._calls.pop(digest, None)
        return last

    def restore(self, requests: Sequence[Request], held: Mapping[str, Any], generate: Callable[[Batches], Any]) -> None:
        """Make the payloads again that these requests need and nobody holds, from the calls that made them first, and those before."""
        lost: dict[str, list[Request]] = {}
        again: set[str] = set()
        for request in requests:
            for parcel in request.parcels:
                if parcel.digest not in held:
                    again.add(parcel.digest)
                    model, call = self._calls[parcel.digest]
                    if call not in lost.setdefault(model, []):
                        lost[model].append(call)
        if lost:
            generate(lost)
            self._made.subtract(again)  # these were counted when they were made first


class InlineHosts:
    """Everything in this process: for tests, debugging and small runs."""

    def __init__(self, load: Callable[[str], Model] | None = None):
        self._shelf: Shelf | None = None
        self._load = load
        self._origins, self._parcels = Origins(), Bundle()
        self.at_once = 1

    def generate(self, batches: Batches, told: ToldOf | None = None) -> dict[str, Answers]:
        if self._shelf is None:
            self._shelf = Shelf(self._load)
        found = {}
        for model, requests in batches.items():
            self._origins.restore(requests, self._parcels, self.generate)
            needed = {parcel.digest: self._parcels[parcel.digest] for request in requests for parcel in request.parcels}
            found[model], packed = self._shelf.generate(model, requests, needed, told=told and partial(told, model))
            self._parcels.update(packed)
            self._origins.note(model, requests, found[model])
        return found

    def warm(self, models: Sequence[str]) -> None:
        self.generate({model: [] for model in models})

    def forget(self, digests: Iterable[str]) -> None:
        for digest in digests:
            if self._origins.forget(digest):
                self._parcels.pop(digest, None)

    def know(self, model: str, request: Request, reply: Reply) -> None:
        self._origins.note(model, [request], [reply])

    def close(self) -> None:
        self._shelf = None


def open_hosts(
    runtime: str, *, address: str | None = None, models: Mapping[str, Model] | None = None, host_gpus: float = 0.0,
    note: Callable[[str], None] = lambda line: None,
) -> LiveHosts:  # fmt: skip
    """`inline` or `ray`. `models`, by key, are objects that the hosts shall have (`Team.objects`); the rest is for Ray, see `RayHosts`.


    Raises UserError for an object that cannot get there.
    """
    load = Lent(models, away=runtime == "ray") if models else None
    if runtime == "inline":
        return InlineHosts(load)
    if runtime == "ray":
        from aiflow_agents.runtime.ray_hosts import RayHosts

        return RayHosts(address=address, load=load, host_gpus=host_gpus, note=note)
    raise UnknownName("runtime", runtime, ("inline", "ray"))
