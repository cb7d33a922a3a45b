"""A report as tables for other libraries: one row an arm, or one row a sample; pandas and pyarrow are taken where they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.evals.run_folder import read_samples

What = Literal["arms", "samples"]
COSTS = ("flops", "tokens_in", "tokens_out", "calls", "wire_bytes", "energy_j")
SAMPLE = ("arm", "kind", "task_id", "repeat", "question", "expected", "answer", "score", "correct", "status", "error", "confidence", "tags")
USAGE = ("flops", "tokens_in", "tokens_out", "calls", "wire_bytes", "latency_s", "energy_j")


def rows(what: What, summary: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """`arms`: accuracy with its interval, mean costs a question, and what is said of each against all members. `samples`: each answer with its costs.

    Every row has every column; what does not apply is None. Raises UnknownName for another table.
    """
    if what == "arms":
        return [_arm(name, summary) for name in summary["arms"]]
    if what == "samples":
        return [_sample(sample, summary) for _, sample in sorted(read_samples(folder).items())]
    raise UnknownName("table", what, ("arms", "samples"))


def _arm(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    arm = summary["arms"][name]
    verdict: Mapping[str, Any] = next((v for v in summary["verdicts"] if (v["arm"], v["against"]) == (name, "members")), {})
    low, high = verdict.get("ci95") or (None, None)
    return {
        "arm": name,
        "kind": arm["kind"],
        "best": name in [(summary[role] or {}).get("arm") for role in ("best_member", "best_topology")],
        "n": arm["n"],
        "n_failed": arm["n_failed"],
        "n_over_budget": arm["n_over_budget"],
        "accuracy": arm["accuracy"],
        "accuracy_low": arm["ci95"][0],
        "accuracy_high": arm["ci95"][1],
        **{cost: arm[cost] for cost in COSTS},
        "latency_p50_s": arm["latency_s"]["p50"],
        "latency_p95_s": arm["latency_s"]["p95"],
        "first_token_p50_s": (arm.get("first_token_s") or {}).get("p50"),
        "ms_per_token": arm.get("ms_per_token"),
        "says": verdict.get("says"),
        "gain": verdict.get("delta"),
        "gain_low": low,
        "gain_high": high,
        "p_holm": verdict.get("p_holm"),
    }


def _sample(sample: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    told = {**sample, "kind": summary["arms"][sample["arm"]]["kind"]}
    return {key: told[key] for key in SAMPLE} | {"cluster": sample.get("cluster")} | {key: sample["usage"][key] for key in USAGE}


def to_pandas(table: list[dict[str, Any]]) -> Any:
    """A `pandas.DataFrame`. Raises UserError where there is no pandas."""
    try:
        import pandas
    except ImportError:
        raise UserError("to_pandas() takes pandas, which is not installed: pip install pandas") from None
    return pandas.DataFrame(table)


def to_arrow(table: list[dict[str, Any]]) -> Any:
    """A `pyarrow.Table`. Raises UserError where there is no pyarrow."""
    try:
        import pyarrow
    except ImportError:
        raise UserError("to_arrow() takes pyarrow, which is not installed: pip install pyarrow") from None
    return pyarrow.Table.from_pylist(table)
