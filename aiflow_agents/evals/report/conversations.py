"""What `trace.jsonl` holds: who said what to whom, from when to when, and the graph that an arm's talking made.

Spans are kept of the first tasks of each arm only (`evals/runner.py`), so the graph is a mean over those.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiflow_agents import catalog
from aiflow_agents.errors import AIFlowError
from aiflow_agents.evals.report.samples import short
from aiflow_agents.net.network import Network

TEXT = 4000  # characters of one message that a page keeps
ALL = 12_000_000  # characters of all conversations; beyond, those of later tasks are left out


@dataclass
class Conversations:
    """spans[arm, task id]: the spans of one task, as the run left them."""

    spans: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Conversations:
        """The last row of an (arm, task) counts; what a kill tore, or what is no trace, is skipped."""
        found = cls()
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    try:
                        row = json.loads(line)
                        key, spans = (str(row["arm"]), str(row["task_id"])), [_span(span) for span in row["spans"]]
                    except (ValueError, KeyError, TypeError):
                        continue
                    found.spans[key] = spans
        return found

    def graphs(self, arms: Sequence[str]) -> list[dict[str, Any] | None]:
        """For each arm the graph as it ran: who spoke at which node, and on each edge the messages and bytes of a task, on average.

        An edge is a way from node to node, end to end; `wire_bytes` of the summary counts every link in between.
        """
        by_arm: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
        for (arm, _), spans in self.spans.items():
            by_arm[arm].append(spans)
        graphs: list[dict[str, Any] | None] = []
        for arm in arms:
            tasks = by_arm.get(arm)
            if not tasks:
                graphs.append(None)
                continue
            moves: Counter[tuple[str, str]] = Counter()
            nbytes: Counter[tuple[str, str]] = Counter()
            calls: Counter[tuple[str, str]] = Counter()
            for span in (span for spans in tasks for span in spans):
                if span["kind"] == "move":
                    moves[span["node"], span["to"]] += 1
                    nbytes[span["node"], span["to"]] += span["nbytes"]
                else:
                    calls[span["node"], span["who"]] += 1
            n = len(tasks)
            graphs.append({
                "tasks": n,
                "edges": [[src, dst, moves[src, dst] / n, nbytes[src, dst] / n] for src, dst in sorted(moves)],
                "members": [[node, who, count / n] for (node, who), count in sorted(calls.items())],
            })  # fmt: skip
        return graphs

    def columns(self, arms: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
        """The conversations for the page's scripts: every name once, each span a row of numbers, each message's text once.

        A row is [0 call | 1 move, who, node, start, end, message, to, heard, bytes, confidence]; names, nodes and messages are places in `names`.
        `left_out` counts conversations that would have made the page too large.
        """
        names: dict[str, int] = {}
        arm_of, task_of = {arm: i for i, arm in enumerate(arms)}, {task: i for i, task in enumerate(tasks)}

        def name(text: str) -> int:
            return names.setdefault(text, len(names))

        rows, size, left_out = [], 0, 0
        for arm, task in sorted(self.spans, key=lambda key: (task_of.get(key[1], len(task_of)), arm_of.get(key[0], len(arm_of)))):
            if arm not in arm_of or task not in task_of:
                continue
            spans: list[list[Any]] = []
            texts: dict[int, str] = {}
            for span in self.spans[arm, task]:
                texts.setdefault(name(span["message"]), short(span["text"], TEXT))
                spans.append([
                    int(span["kind"] == "move"), name(span["who"]), name(span["node"]), _digits(span["start_s"]), _digits(span["end_s"]),
                    name(span["message"]), name(span["to"]) if span["to"] else -1, [name(parent) for parent in span["heard"]], span["nbytes"],
                    span["confidence"],
                ])  # fmt: skip
            size += 60 * len(spans) + sum(len(text) for text in texts.values())
            if size > ALL:
                left_out += 1
                continue
            rows.append({"arm": arm_of[arm], "task": task_of[task], "spans": spans, "texts": texts})
        return {"names": list(names), "rows": rows, "left_out": left_out}

    def nodes(self) -> list[str]:
        """Every node that something happened on."""
        return sorted({node for spans in self.spans.values() for span in spans for node in (span["node"], span["to"]) if node})


def places(config: Mapping[str, Any], conversations: Conversations) -> dict[str, Any]:
    """{"home": node or None, "tiers": {node: device, edge, cloud, or "" where its network's file is not to be found}}."""
    nodes = conversations.nodes()
    try:
        network = Network.load(catalog.find("network", str(config["network"])).path)
    except (AIFlowError, KeyError, OSError):
        first = min((span for spans in conversations.spans.values() for span in spans), key=lambda span: span["start_s"], default=None)
        return {"home": first and first["node"], "tiers": dict.fromkeys(nodes, "")}
    return {"home": network.home, "tiers": {node: network.nodes[node].tier if node in network.nodes else "" for node in nodes}}


def _span(span: Mapping[str, Any]) -> dict[str, Any]:
    """A span, checked: what is drawn must be a number where numbers are wanted."""
    return {
        "kind": "move" if span["kind"] == "move" else "call", "who": str(span["who"]), "node": str(span["node"]), "start_s": float(span["start_s"]),
        "end_s": float(span["end_s"]), "message": str(span["message"]), "text": str(span.get("text") or ""), "to": str(span.get("to") or ""),
        "heard": [str(parent) for parent in span.get("heard") or ()], "nbytes": int(span.get("nbytes") or 0),
        "confidence": None if span.get("confidence") is None else float(span["confidence"]),
    }  # fmt: skip


def _digits(seconds: float) -> float:
    return float(f"{seconds:.6g}")
