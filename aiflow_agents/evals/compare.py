"""Arms of different runs, side by side on the tasks that they share: which is better, are they equally good, which is cheaper?

The unit is the task. What one side said to it in several repeats, or in several runs with other seeds, is averaged first: answers to one task
are no independent evidence. Nor are those to tasks of one cluster, where the suite declares some: then clusters are the unit (see `clusters`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aiflow_agents.errors import UserError
from aiflow_agents.evals import clusters, statistics, verdict
from aiflow_agents.evals.run_folder import read_samples, read_summary
from aiflow_agents.evals.verdict import p_text, percent, points

COSTS = {"wire_bytes": "bytes", "flops": "FLOPs", "latency_s": "milliseconds", "energy_j": "joules"}
COMMA = re.compile(r",(?![^()]*\))")  # one inside brackets belongs to an arm's name
Key = tuple[str, str]  # a task: its id and its question


@dataclass(frozen=True)
class Side:
    """One side of a comparison: an arm of one run or of several. `tasks`: per task [answers, 1 + costs], the score and then `COSTS`.
    `cluster`: that of each task, empty where there is none; `tags`: its tags."""

    name: str
    runs: tuple[str, ...]
    arms: tuple[str, ...]
    tasks: Mapping[Key, np.ndarray]
    cluster: Mapping[Key, str]
    tags: Mapping[Key, tuple[str, ...]]


def read_side(given: str) -> Side:
    """`RUN`, `RUN:ARM`, or several of them with commas between, which count as one side. Without an arm it is the run's best topology, or, where
    no topology was run, its best member. Raises UserError for what is no finished run, or has no such arm."""
    runs, arms = [], []
    found: dict[Key, list[list[float]]] = defaultdict(list)
    cluster: dict[Key, str] = {}
    tags: dict[Key, tuple[str, ...]] = {}
    for part in [given] if Path(given).exists() else COMMA.split(given):
        path, arm = _split(part.strip())
        summary = read_summary(path)
        arm = arm or (summary["best_topology"] or summary["best_member"])["arm"]
        if arm not in summary["arms"]:
            raise UserError(f"{path} has no arm '{arm}'; it has {', '.join(summary['arms'])}")
        for key, (rows, of, tagged) in _answers(path, arm).items():
            found[key] += rows
            cluster[key], tags[key] = of, tagged
        runs.append(path.name)
        arms.append(arm)
    name = "+".join(dict.fromkeys(arms))
    return Side(name, tuple(runs), tuple(arms), {key: np.array(rows) for key, rows in found.items()}, cluster, tags)


def _split(part: str) -> tuple[Path, str]:
    """A run folder and the arm named behind the last colon, "" for none; a colon in the name of a folder that exists is no arm's."""
    head, colon, tail = part.rpartition(":")
    path, arm = (Path(part), "") if not colon or Path(part).exists() else (Path(head), tail)
    return (path.parent if path.name in ("summary.json", "config.json") else path), arm


def _answers(path: Path, arm: str) -> dict[Key, tuple[list[list[float]], str, tuple[str, ...]]]:
    """What one arm said: task -> a row of score and costs for each repeat, and the task's cluster and tags."""
    found: dict[Key, tuple[list[list[float]], str, tuple[str, ...]]] = {}
    try:
        for (name, task, _), sample in read_samples(path).items():
            if name == arm:
                of = str(sample.get("cluster") or ""), tuple(map(str, sample.get("tags") or ()))
                rows, *_ = found.setdefault((task, str(sample["question"])), ([], *of))
                rows.append([float(sample["score"]), *(float(sample["usage"][cost]) for cost in COSTS)])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path / 'samples.jsonl'}: an answer of {arm} is without its question, score or costs, so it cannot be compared") from None
    if not found:
        raise UserError(f"{path} has no answers of {arm} in samples.jsonl, so they cannot be compared")
    return found


def compare_runs(given: Sequence[str], margin: float = 0.02, seed: int = 0, alpha: float = 0.05, *, tagged: bool = False) -> dict[str, Any]:
    """Each later side against the first one, on the tasks that all have.

    Returns `tasks, margin, sides, comparisons`. A side has `name, runs, arms, accuracy, ci95`, and mean `costs` per question. A comparison has
    `delta` (its accuracy minus the first one's), `ci95, p, p_holm, wins, losses, ties`; `equivalence` with its own `p` and `p_holm` (two
    one-sided tests, Holm over the comparisons); `tags` if `tagged`, see `by_tag`; `costs`, each a `ratio` to the first one's with its
    `ci95`, None where the first one's is 0; and `says`: better, worse, same (within the margin) or not shown, and a `sentence`. Right/wrong scores
    get exact McNemar and Tango, others permutations and the bootstrap over tasks, clustered ones what is in `clusters`. Raises UserError where there
    are fewer than two sides, or no common task.
    """
    if len(given) < 2:
        raise UserError("compare at least two runs: aiflow compare RUN RUN")
    if not 0 < margin < 1:
        raise UserError(f"--margin {margin:g}: a margin is a share between 0 and 1; 0.02 is 2 points")
    sides = [read_side(one) for one in given]
    names = _names(sides)
    first = sides[0]
    common = [key for key in first.tasks if all(key in side.tasks for side in sides[1:])]
    if not common:
        examples = ", ".join(f"{name} asks '{next(iter(side.tasks))[1][:40]}'" for name, side in zip(names, sides, strict=True) if side.tasks)
        raise UserError(f"these runs share no task (same id and question): {examples}; compare runs of one suite with one seed")
    tables = [np.array([side.tasks[key].mean(axis=0) for key in common]) for side in sides]  # each [tasks, 1 + costs]
    cluster = clusters.numbered([first.cluster[key] for key in common]) if any(first.cluster[key] for key in common) else None
    rows = [compare_scores(tables[0], table, margin, seed, cluster) for table in tables[1:]]
    tags = [first.tags[key] for key in common]
    for row, table in zip(rows, tables[1:], strict=True) if tagged else ():
        row["tags"] = by_tag(tables[0], table, tags, margin, seed, cluster)
    for kind in (rows, [row["equivalence"] for row in rows]):
        for row, p in zip(kind, statistics.holm([row["p"] for row in kind]).tolist(), strict=True):
            row["p_holm"] = p
    described = [_side(name, side, table, seed, cluster) for name, side, table in zip(names, sides, tables, strict=True)]
    for row, side in zip(rows, described[1:], strict=True):
        row |= {"first": described[0]["name"], "second": side["name"], "says": _says(row, alpha)}
        row["sentence"] = sentence(described[0], side, row, len(common), margin)
    return {"tasks": len(common), "margin": margin, "sides": described, "comparisons": rows}


def _names(sides: Sequence[Side]) -> list[str]:
    """Arms by name, with their runs where one name is there twice."""
    names = [side.name for side in sides]
    return [name if names.count(name) == 1 else f"{name} of {'+'.join(side.runs)}" for name, side in zip(names, sides, strict=True)]


def _side(name: str, side: Side, table: np.ndarray, seed: int, cluster: np.ndarray | None) -> dict[str, Any]:
    score = table[:, 0]
    binary = bool(np.isin(score, (0.0, 1.0)).all())
    interval = clusters.accuracy(score, cluster) if cluster is not None or binary else statistics.bootstrap_mean(score, seed)
    costs = dict(zip(COSTS, table[:, 1:].mean(axis=0).tolist(), strict=True))
    return {"name": name, "runs": list(side.runs), "arms": list(side.arms), "accuracy": float(score.mean()), "ci95": list(interval), "costs": costs}


def compare_scores(first: np.ndarray, second: np.ndarray, margin: float, seed: int, cluster: np.ndarray | None) -> dict[str, Any]:
    """One comparison. first, second: [tasks, 1 + costs], scores and then costs, or scores alone; cluster: [tasks], numbers, or None."""
    x, y = second[:, 0], first[:, 0]
    wins, losses, n = int((x > y).sum()), int((x < y).sum()), len(x)
    p, ci95 = paired(x, y, seed, cluster)
    if cluster is not None:
        same = clusters.equivalence(clusters.sums(x - y, cluster), np.bincount(cluster), margin)
        first, second = (np.stack([clusters.scaled(column, cluster) for column in side.T], 1) for side in (first, second))
    elif np.isin([x, y], (0.0, 1.0)).all():
        same = statistics.equivalence(wins, losses, n, margin)
    else:
        same = statistics.equivalence_graded(x - y, margin)
    costs: dict[str, Any] = {}
    for i, cost in zip(range(1, first.shape[1]), COSTS, strict=False):
        share = statistics.ratio(second[:, i], first[:, i], seed)
        costs[cost] = None if share is None else {"ratio": share[0], "ci95": list(share[1])}
    return {"delta": float((x - y).mean()), "ci95": list(ci95), "p": p, "wins": wins, "losses": losses, "ties": n - wins - losses,
            "equivalence": {"p": same}, "costs": costs}  # fmt: skip


def by_tag(
    first: np.ndarray, second: np.ndarray, tags: Sequence[Sequence[str]], margin: float, seed: int, cluster: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """The comparison on the tasks of each tag alone, by tag in the order in which they first come; arguments as of `compare_scores`, tags [tasks].

    Besides what that returns, without costs: `tasks`, the `accuracy` of the first and the second, and `p_holm` over the tags. Tags overlap.
    """
    rows: dict[str, dict[str, Any]] = {}
    for tag in dict.fromkeys(tag for of in tags for tag in of):
        here = np.array([tag in of for of in tags])
        a, b, own = first[here, :1], second[here, :1], None if cluster is None else clusters.numbered(cluster[here].tolist())
        row = compare_scores(a, b, margin, seed, own)
        row.pop("costs")
        rows[tag] = {"tasks": int(here.sum()), "accuracy": [float(a.mean()), float(b.mean())], **row}
    for row, p in zip(rows.values(), statistics.holm([row["p"] for row in rows.values()]).tolist() if rows else (), strict=True):
        row["p_holm"] = p
    return rows


def paired(x: np.ndarray, y: np.ndarray, seed: int, cluster: np.ndarray | None) -> tuple[float, tuple[float, float]]:
    """p and the interval of the mean of x - y, [tasks] each: exact where scores are right or wrong, by clusters where there are some."""
    whole = bool(np.isin([x, y], (0.0, 1.0)).all())
    if cluster is not None:
        found = clusters.sums(x - y, cluster)
        p = clusters.flips(found) if whole else statistics.paired_permutation(found, np.zeros(len(found)), seed)
        return p, clusters.interval(found, np.bincount(cluster))
    if whole:
        wins, losses = int((x > y).sum()), int((x < y).sum())
        return statistics.mcnemar_exact(wins, losses), statistics.tango(wins, losses, len(x))
    return statistics.paired_permutation(x, y, seed), statistics.bootstrap_mean(x - y, seed)


def _says(row: Mapping[str, Any], alpha: float) -> str:
    different = int(verdict.outcome(np.array(row["delta"]), np.array(row["p_holm"]), alpha))
    same = row["equivalence"]["p_holm"] <= alpha
    return "same" if same else {1: "better", 0: "not shown", -1: "worse"}[different]


def sentence(first: Mapping[str, Any], second: Mapping[str, Any], row: Mapping[str, Any], n: int, margin: float, alpha: float = 0.05) -> str:
    """A comparison in plain words: what was shown of the accuracy, and what each cost is as a multiple of the first side's."""
    difference = f"{points(row['delta'])} points (95 % interval {points(row['ci95'][0])} to {points(row['ci95'][1])})"
    real, within = row["p_holm"] <= alpha, f"within {points(margin)} points ({p_text(row['equivalence']['p_holm'])})"
    if row["says"] == "same":
        said = f"They are equally accurate {within}: the difference is {difference}{', which is real but so small' if real else ''}."
    elif real:
        said = f"The difference of {difference} is real ({p_text(row['p_holm'])}): {second['name']} is {row['says']}."
    else:
        said = f"Neither a difference ({p_text(row['p_holm'])}) nor equality {within} is shown: it is {difference}."
    found = {name: row["costs"][cost] for cost, name in COSTS.items() if row["costs"][cost] is not None}
    cheaper, dearer = ([name for name, cost in found.items() if cost["ci95"][1] < 1], [name for name, cost in found.items() if cost["ci95"][0] > 1])
    outcome = " and ".join(f"{word} in {', '.join(names)}" for word, names in (("cheaper", cheaper), ("dearer", dearer)) if names)
    times = ", ".join(f"{cost['ratio']:.3g} times the {name} ({cost['ci95'][0]:.3g} to {cost['ci95'][1]:.3g})" for name, cost in found.items())
    told = f" Per question it takes {times}." if times else ""
    whole = f" So: {'same accuracy' if row['says'] == 'same' else row['says'] if real else 'no difference shown'}, {outcome}." if outcome else ""
    return (f"{second['name']} answers {percent(second['accuracy'])} of {n:,} common questions, {first['name']} {percent(first['accuracy'])}. "
            f"{said}{told}{whole}")  # fmt: skip
