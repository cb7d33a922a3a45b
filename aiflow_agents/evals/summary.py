"""What a run's samples come to: a row for each arm, measures, verdicts; and the oracle, whose samples nobody has made.

All of it follows from marks, usage and traces, so a run that is marked again is summarised by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np

from aiflow_agents.evals import clusters, measures, verdict
from aiflow_agents.evals.run_folder import FAILED, OK, OVER_BUDGET, RunFolder, Sample
from aiflow_agents.runtime.decoding import per_token


def judge_samples(
    rows: Mapping[str, Sequence[Sequence[Sample]]], kinds: Mapping[str, str], *, best_member: str, best_topology: str | None, seed: int,
    folder: RunFolder, capacity: Mapping[str, Any], fidelity: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a summary says by marks and traces alone: `arms`, `measures` (of all members) and `verdicts`.

    rows[arm][task] are the samples of its repeats; `capacity` has the Information Capacity of members, `fidelity` how true an arm is to one of them.
    """
    scores = {name: np.array([np.mean([s["score"] for s in repeats]) for repeats in per_task]) for name, per_task in rows.items()}
    cluster = clustered([repeats[0] for repeats in rows[best_member]])
    verdicts = verdict.judge(scores, kinds, best_member=best_member, best_topology=best_topology, oracle="oracle", seed=seed, cluster=cluster)
    flat = {name: [sample for repeats in per_task for sample in repeats] for name, per_task in rows.items()}
    members = [name for name in kinds if kinds[name] == "member"]
    measured = measures.measure(flat, members, best_member, measures.read_traces(folder.path / "trace.jsonl"))
    for name in kinds:
        measured[name]["information_capacity"] = capacity.get(name)
    arms = {name: _arm(kinds[name], flat[name], scores[name], cluster) | {"measures": measured[name]} for name in kinds}
    for name, how in fidelity.items():
        arms[name]["fidelity"] = how
    grouped = {} if cluster is None else {"n_clusters": int(cluster.max()) + 1}
    return {**grouped, "arms": arms, "measures": measures.of_members(flat, members), "verdicts": [asdict(row) for row in verdicts]}


def clustered(samples: Sequence[Sample]) -> np.ndarray | None:
    """Of one sample for each task, the task's cluster as a number; None where the suite declares no clusters."""
    names = [sample.get("cluster") for sample in samples]
    return clusters.numbered(names) if any(names) else None


def _arm(kind: str, samples: Sequence[Sample], scores: np.ndarray, cluster: np.ndarray | None) -> dict[str, Any]:
    """One arm's row: accuracy with its interval (Wilson over tasks, or over what clusters are worth), and mean cost per question."""
    usage = [s["usage"] for s in samples]

    def mean(key: str) -> float:
        return float(np.mean([u[key] for u in usage]))

    latency = np.array([u["latency_s"] for u in usage])
    came = [s["delivery"] for s in samples if s.get("delivery")]
    answered = [s for s in samples if s["status"] != FAILED]  # an answer that came at once has its first token at its end
    first = np.array([s["delivery"]["first_token_s"] if s.get("delivery") else s["usage"]["latency_s"] for s in answered])
    delivery = {"first_token_s": _percentiles(first), "ms_per_token": float(np.mean([d["ms_per_token"] for d in came]))} if came else {}
    return {
        "kind": kind,
        "n": len(samples),
        "n_failed": sum(s["status"] == FAILED for s in samples),
        "n_over_budget": sum(s["status"] == OVER_BUDGET for s in samples),
        "accuracy": float(scores.mean()),
        "ci95": list(clusters.accuracy(scores, cluster)),
        "flops": mean("flops"),
        "tokens_in": mean("tokens_in"),
        "tokens_out": mean("tokens_out"),
        "calls": mean("calls"),
        "wire_bytes": mean("wire_bytes"),
        "latency_s": _percentiles(latency),
        **delivery,
        **_decoded(samples),
        "energy_j": mean("energy_j"),
    }


def _decoded(samples: Sequence[Sample]) -> dict[str, Any]:
    """What decoding took per token, where samples tell, and how many answers nobody has verified."""
    told = [sample for sample in samples if sample.get("decoding")]
    unverified = sum(sample.get("mark") == "unverified" for sample in samples)
    found: dict[str, Any] = {"decoding": per_token([s["decoding"] for s in told], [s["usage"] for s in told])} if told else {}
    return found | ({"n_unverified": unverified} if unverified else {})


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95))}


def oracle(members: Sequence[str], tasks: Sequence[str], repeats: int, folder: RunFolder) -> list[Sample]:
    """The oracle's samples: right where any member is. Nobody could run it, so it has no cost, and it does not fail.

    Only those that are new or other than in the folder: on a resume a member that had failed may have answered by now.
    """
    rows = []
    for task in tasks:
        for repeat in range(repeats):
            best = max((folder.samples[name, task, repeat] for name in members), key=lambda s: s["score"])
            row = best | {"arm": "oracle", "usage": dict.fromkeys(best["usage"], 0), "confidence": None, "status": OK, "error": None}
            row.pop("delivery", None)
            if folder.samples.get(("oracle", task, repeat)) != row:
                rows.append(row)
    return rows
