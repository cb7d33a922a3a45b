"""What a run counts, as metrics of Ray: for the dashboard of a cluster, and for whatever scrapes its nodes (Prometheus).

    aiflow_tokens_total{member, node, way}      read and made by each member; `way` is in or out
    aiflow_link_bytes_total{link, to}           on each link of the network, towards each of its ends
    aiflow_tasks_total{arm, outcome}            that have ended: done, failed, or over budget

All are of one run on a cluster that was there before it (`--ray-address`); Ray publishes them where `ray[default]` is installed.
"""

from __future__ import annotations

from typing import Any

from aiflow_agents.runtime.hooks import Asked, Called, Hook, Run
from aiflow_agents.runtime.run import Result
from aiflow_agents.runtime.trace import Span

METRICS = {
    "aiflow_tokens_total": ("Tokens that members have read and made.", ("member", "node", "way")),
    "aiflow_link_bytes_total": ("Bytes on simulated links.", ("link", "to")),
    "aiflow_tasks_total": ("Tasks that have ended.", ("arm", "outcome")),
}


class RayMetrics(Hook):
    """A hook: `evaluate(..., hooks=[RayMetrics()])`. Ray must run when a run begins."""

    def on_run_start(self, run: Run) -> None:
        from ray.util.metrics import Counter

        self._of: dict[str, Any] = {name: Counter(name, description=said, tag_keys=tags) for name, (said, tags) in METRICS.items()}

    def on_call(self, task: Asked, call: Called) -> None:
        if call.usage is not None:
            for way, count in (("in", call.usage.tokens_in), ("out", call.usage.tokens_out)):
                self._count("aiflow_tokens_total", count, member=call.agent.name, node=call.agent.node, way=way)

    def on_move(self, task: Asked, move: Span) -> None:
        for hop in task.job.team.network.route(move.node, move.to):
            self._count("aiflow_link_bytes_total", move.nbytes, link=" - ".join(hop.link), to=hop.dst)

    def on_task_end(self, task: Asked, result: Result) -> None:
        outcome = "failed" if result.error else "over budget" if result.over else "done"
        self._count("aiflow_tasks_total", 1, arm=task.job.arm, outcome=outcome)

    def _count(self, name: str, count: int, **tags: str) -> None:
        if count:  # Ray refuses to count nothing
            self._of[name].inc(count, tags)
