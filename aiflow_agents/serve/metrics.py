"""What an operator watches: counters and one histogram, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

from aiflow_agents.runtime.ledger import Ledger

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
Labels = tuple[tuple[str, str], ...]

HELP = {
    "aiflow_requests_total": "Requests, by model and status.",
    "aiflow_tokens_total": "Tokens that members have read and made.",
    "aiflow_calls_total": "Calls of members.",
    "aiflow_link_bytes_total": "Bytes on links of the simulated network.",
    "aiflow_energy_joules_total": "Joules, by the network file.",
    "aiflow_flops_total": "FLOPs of all members.",
    "aiflow_batches_total": "Batches that went to the hosts.",
    "aiflow_batch_calls_total": "Calls in these batches.",
}


class Metrics:
    """To be used from one thread."""

    def __init__(self) -> None:
        self.counters: dict[str, Counter[Labels]] = {name: Counter() for name in HELP}
        self.buckets: dict[str, list[int]] = {}  # by model: requests of at most so many seconds, the last: of any
        self.seconds: Counter[str] = Counter()

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        self.counters[name][tuple(labels.items())] += by  # type: ignore[assignment]

    def answered(self, model: str, status: int, seconds: float) -> None:
        """A request is over. `model` is one of those that are served, or "": clients shall not invent labels."""
        self.count("aiflow_requests_total", model=model, status=str(status))
        self.buckets.setdefault(model, [0] * (len(BOUNDS_S) + 1))[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds[model] += seconds  # type: ignore[assignment]

    def spent(self, ledger: Ledger) -> None:
        """What one question has cost."""
        for member, spent in ledger.members.items():
            self.count("aiflow_calls_total", spent.calls, member=member)
            self.count("aiflow_tokens_total", spent.tokens_in, member=member, kind="in")
            self.count("aiflow_tokens_total", spent.tokens_out, member=member, kind="out")
        for (src, dst), nbytes in ledger.links.items():
            self.count("aiflow_link_bytes_total", nbytes, src=src, dst=dst)
        self.count("aiflow_energy_joules_total", ledger.energy_j)
        self.count("aiflow_flops_total", ledger.flops)

    def batch(self, calls: int, executed: int) -> None:
        self.count("aiflow_batches_total")
        self.count("aiflow_batch_calls_total", calls)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it. `gauges`: what is as it is now, by name."""
        return "\n".join([*self._counters(), *self._histogram(), *self._gauges(gauges)]) + "\n"

    def _counters(self) -> Iterator[str]:
        for name, series in self.counters.items():
            yield f"# HELP {name} {HELP[name]}"
            yield f"# TYPE {name} counter"
            for labels, value in series.items():
                yield f"{name}{_labels(labels)} {value:g}" if isinstance(value, float) else f"{name}{_labels(labels)} {value}"

    def _histogram(self) -> Iterator[str]:
        name = "aiflow_request_seconds"
        yield f"# HELP {name} Seconds from a request to the end of its answer."
        yield f"# TYPE {name} histogram"
        for model, buckets in self.buckets.items():
            so_far = 0
            for bound, more in zip((*map(str, BOUNDS_S), "+Inf"), buckets, strict=True):
                so_far += more
                yield f"{name}_bucket{_labels((('model', model), ('le', bound)))} {so_far}"
            yield f"{name}_sum{_labels((('model', model),))} {self.seconds[model]:.6f}"
            yield f"{name}_count{_labels((('model', model),))} {so_far}"

    def _gauges(self, gauges: Mapping[str, float]) -> Iterator[str]:
        for name, value in gauges.items():
            yield f"# TYPE {name} gauge"
            yield f"{name} {value}"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    inside = ",".join('{}="{}"'.format(key, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for key, value in labels)
    return f"{{{inside}}}"
