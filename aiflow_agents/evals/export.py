"""A run for other tools: its samples as a table (CSV), or one log of inspect_ai for each arm.

Inspect's log is `EvalLog` version 2 as JSON (https://inspect.aisi.org.uk/eval-logs.html), written without inspect; its format is not frozen, so our
own files stay the source. An arm is a model there, a repeat an epoch, our costs are metadata of a sample.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from aiflow_agents.errors import UnknownName, UserError
from aiflow_agents.evals.run_folder import FAILED, OVER_BUDGET, Sample, read_samples, read_summary

USAGE = ("flops", "tokens_in", "tokens_out", "calls", "wire_bytes", "latency_s", "energy_j")
COLUMNS = ("run_id", "suite", "team", "network", "seed", "arm", "kind", "task_id", "repeat", "tags", "status", "score", "correct", "confidence",
           *USAGE, "question", "expected", "answer", "error")  # fmt: skip
RISKY = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula at the beginning of a cell


def to_csv(run: Path, arms: Sequence[str] = ()) -> str:
    """One line for each arm, task and repeat, with its costs; sorted, so that equal runs give equal tables. Numbers keep all their digits."""
    summary, samples = _read(run, arms)
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for sample in samples:
        row = {key: summary.get(key) for key in ("run_id", "suite", "team", "network")} | sample | sample["usage"]
        row |= {"kind": summary["arms"][sample["arm"]]["kind"], "tags": "|".join(sample["tags"])}
        writer.writerow({key: _cell(row.get(key)) for key in COLUMNS})
    return table.getvalue()


def _cell(value: Any) -> Any:
    """A value as a cell; text that a spreadsheet would run is quoted as it wants it, numbers in text are left alone."""
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(RISKY) and not re.fullmatch(r"[-+]?[\d.,]+", value):
        return f"'{value}"
    return str(value).lower() if isinstance(value, bool) else value


def to_inspect(run: Path, arms: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The logs by arm. Raises UserError where the run is not finished."""
    summary, samples = _read(run, arms)
    by_arm: dict[str, list[Sample]] = {}
    for sample in samples:
        by_arm.setdefault(sample["arm"], []).append(sample)
    began, ended = _times(run)
    return {arm: _log(summary, arm, rows, began, ended) for arm, rows in by_arm.items()}


def log_name(log: Mapping[str, Any], arm: str) -> str:
    """A file name for an arm's log: inspect lists only files that begin with a time."""
    clean = (re.sub(r"[^A-Za-z0-9@.-]+", "-", part).strip("-.") or "arm" for part in (log["eval"]["task"], arm))
    return f"{'_'.join((log['eval']['created'].replace(':', '-'), *clean))}.json"


def _read(run: Path, arms: Sequence[str]) -> tuple[dict[str, Any], list[Sample]]:
    summary, samples = read_summary(run), read_samples(run)
    for arm in arms:
        if arm not in summary["arms"]:
            raise UnknownName("arm of this run", arm, summary["arms"])
    wanted = list(arms or summary["arms"])
    kept = [sample for key, sample in sorted(samples.items()) if key[0] in wanted]
    if not kept:
        raise UserError(f"{run} has no samples; go on with it: aiflow eval --resume {run}")
    return summary, sorted(kept, key=lambda sample: wanted.index(sample["arm"]))


def _times(run: Path) -> tuple[str, str]:
    """When a run began and ended, by its files."""
    began, ended = (datetime.fromtimestamp((run / name).stat().st_mtime, UTC) for name in ("config.json", "summary.json"))
    return began.isoformat(timespec="seconds"), ended.isoformat(timespec="seconds")


def _log(summary: Mapping[str, Any], arm: str, samples: Sequence[Sample], began: str, ended: str) -> dict[str, Any]:
    row, model = summary["arms"][arm], f"aiflow/{summary['team']}/{arm}"
    graded = any(sample["score"] not in (0, 1) for sample in samples)
    usage = {model: _tokens(sum(s["usage"]["tokens_in"] for s in samples), sum(s["usage"]["tokens_out"] for s in samples))}
    tasks = list(dict.fromkeys(sample["task_id"] for sample in samples))
    name = "graded" if graded else "correct"
    about = {key: summary.get(key) for key in ("team", "network", "seed", "split", "git", "best_member", "best_topology")}
    spread = {"accuracy": row["accuracy"], "ci95_low": row["ci95"][0], "ci95_high": row["ci95"][1]}
    verdicts = [verdict for verdict in summary["verdicts"] if verdict["arm"] == arm]
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": _short(summary["run_id"], arm),
            "run_id": summary["run_id"],
            "created": began,
            "task": summary["suite"],
            "task_id": _short(summary["suite"]),
            "task_version": 0,
            "task_display_name": f"{summary['suite']}: {arm}",
            "task_attribs": {},
            "task_args": {},
            "tags": [row["kind"]],
            "dataset": {"name": summary["suite"], "samples": len(tasks), "sample_ids": tasks, "shuffled": False},
            "model": model,
            "model_args": {},
            "config": {"epochs": summary["repeats"]},
            "packages": summary["packages"],
            "metadata": about | {"kind": row["kind"]},
        },
        "plan": {"name": arm, "steps": [{"solver": arm, "params": summary.get("learned", {}).get(arm, {})}], "config": {}},
        "results": {
            "total_samples": len(samples),
            "completed_samples": sum(sample["status"] != FAILED for sample in samples),
            "scores": [
                {
                    "name": name,
                    "scorer": name,
                    "params": {},
                    "metrics": {key: {"name": key, "value": value, "params": {}} for key, value in spread.items()},
                    "metadata": {"verdicts": verdicts},
                }
            ],
        },
        "stats": {"started_at": began, "completed_at": ended, "model_usage": usage},
        "samples": [_sample(sample, model, name, graded) for sample in samples],
    }


def _sample(sample: Sample, model: str, name: str, graded: bool) -> dict[str, Any]:
    answer, used = sample["answer"], sample["usage"]
    said = {"role": "assistant", "content": sample.get("text") or answer or "", "source": "generate", "model": model}
    tokens = _tokens(used["tokens_in"], used["tokens_out"])
    value = sample["score"] if graded else "C" if sample["correct"] else "I"
    found = {
        "id": sample["task_id"],
        "epoch": sample["repeat"] + 1,
        "input": sample["question"],
        "target": sample["expected"] or "",
        "messages": [{"role": "user", "content": sample["question"], "source": "input"}, said],
        "output": {
            "model": model,
            "choices": [{"message": said, "stop_reason": "stop" if answer is not None else "unknown"}],
            "completion": said["content"],
            "usage": tokens,
            "time": used["latency_s"],
        },
        "scores": {name: {"value": value, "answer": answer}},
        "metadata": {"tags": sample["tags"], "confidence": sample["confidence"], "seed": sample["seed"], "usage": used},
        "store": {},
        "events": [],
        "model_usage": {model: tokens},
        "total_time": used["latency_s"],
        "attachments": {},
    }
    if sample["status"] == OVER_BUDGET:  # answered, if not with all that it wanted: no error of inspect's
        found["metadata"]["over_budget"] = sample["error"]
    elif sample["error"]:
        found["error"] = {"message": sample["error"], "traceback": "", "traceback_ansi": ""}
    return found


def _tokens(tokens_in: int, tokens_out: int) -> dict[str, int]:
    return {"input_tokens": tokens_in, "output_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


def _short(*parts: str) -> str:
    return blake2b("/".join(parts).encode(), digest_size=11).hexdigest()


def as_json(log: Mapping[str, Any]) -> Iterator[str]:
    """A log's text in parts: a large one need not be held twice."""
    yield from json.JSONEncoder(ensure_ascii=False, indent=1, allow_nan=False).iterencode(log)
