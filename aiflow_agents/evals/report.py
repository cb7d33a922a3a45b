"""The outcome of a run, drawn: one self-contained HTML page, and the same tables for a terminal.

`write_report` reads what a run left in its folder (`summary.json`, `samples.jsonl`, `config.json`) and nothing else. The page needs no network and no
script: the cost axis of the scatter is chosen by radio buttons and CSS. Samples are streamed and only aggregates and a few examples are
embedded, so 10,000 tasks times 20 arms give a page of some hundred kilobytes. Costs of an arm are means per question, as in `summary.json`.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiflow_agents.evals.verdict import MEMBERS, p_text, percent, points, quantity, sentence

KINDS = ("member", "rival", "topology", "placebo")
EXAMPLES, FAILURES, TAGS = 8, 50, 60  # at most so many of each kind are embedded
COSTS = (("flops", "FLOPs", ""), ("tokens", "tokens", ""), ("wire_bytes", "bytes on the wire", "B"),
         ("latency", "median latency", "s"), ("energy_j", "energy", "J"))


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run's folder and return its path; an older one is replaced in one step.

    Raises FileNotFoundError where the folder has no `summary.json`. Without `samples.jsonl` the page has no skills and no examples.
    """
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    samples = _Samples.read(run_folder / "samples.jsonl")
    scores = samples.scores()
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                           trim_blocks=True, lstrip_blocks=True).get_template("report.html.j2")
    page = template.render(
        summary=summary, sentence=sentence(summary), headline=_headline(summary), team_row=_team_row(summary), groups=_groups(summary),
        chosen={_chosen(summary, role): role for role in ("best_member", "best_topology")}, reference=_reference(summary),
        plots=[_scatter(summary, *cost) for cost in COSTS], verdicts=_forest(summary),
        heat=_heat(summary, samples, scores), examples=_examples(summary, samples, scores), failures=_failures(samples),
        command=f"aiflow eval --config {shlex.quote(str(run_folder / 'config.json'))}", config=_config(run_folder),
        percent=percent, points=points, p_text=p_text, quantity=quantity, cost=_cost, share=_share)
    target = run_folder / "report.html"
    draft = target.with_suffix(".html.part")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, target)
    return target


# --- what is in samples.jsonl -------------------------------------------------------------------------------------------------------


@dataclass
class _Samples:
    """Scores of every (arm, task), and where in the file each record lies: 200,000 records must not be held in memory."""

    path: Path
    last: dict[tuple[str, str, int], tuple[float, int]] = field(default_factory=dict)  # (arm, task, repeat) -> score, offset of the line
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by task
    failed: dict[tuple[str, str, int], str] = field(default_factory=dict)  # the reason

    @classmethod
    def read(cls, path: Path) -> _Samples:
        """One pass. A resumed run repeats what had failed: the last record counts. A line torn by a kill is skipped."""
        samples = cls(path)
        if not path.exists():
            return samples
        offset = 0
        with path.open("rb") as lines:
            for line in lines:
                start, offset = offset, offset + len(line)
                try:
                    record = json.loads(line)
                    key = (sys.intern(record["arm"]), sys.intern(str(record["task_id"])), int(record.get("repeat") or 0))
                except (ValueError, KeyError, TypeError):
                    continue
                samples.last[key] = (float(record.get("score") or 0.0), start)
                samples.tags.setdefault(key[1], tuple(sys.intern(str(tag)) for tag in record.get("tags") or ()))
                if record.get("error"):
                    samples.failed[key] = str(record["error"])
                else:
                    samples.failed.pop(key, None)
        return samples

    def scores(self) -> dict[str, dict[str, float]]:
        """arm -> task -> mean score over repeats."""
        collected: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for (arm, task, _), (score, _) in self.last.items():
            collected[arm][task].append(score)
        return {arm: {task: sum(values) / len(values) for task, values in tasks.items()} for arm, tasks in collected.items()}

    def records(self, keys: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """The records of some (arm, task), first repeat, read again from the file."""
        with self.path.open("rb") as lines:
            for arm, task in keys:
                if (found := self.last.get((arm, task, 0))) is not None:
                    lines.seek(found[1])
                    yield json.loads(lines.readline())


# --- the parts of the page ----------------------------------------------------------------------------------------------------------


def _chosen(summary: Mapping[str, Any], role: str) -> str | None:
    return (summary.get(role) or {}).get("arm")


def _team_row(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    team = _chosen(summary, "best_topology")
    return next((v for v in summary["verdicts"] if v["arm"] == team and v["against"] == MEMBERS), None)


def _headline(summary: Mapping[str, Any]) -> str:
    row = _team_row(summary)
    if row is None:
        return f"{summary['suite']}: no team was run" if _chosen(summary, "best_topology") is None else f"{summary['suite']}: no verdict"
    return {"beats": f"{row['arm']} beats every member of its team", "loses": f"{row['arm']} loses to its best member",
            "not shown": f"{row['arm']}: not shown to beat its best member"}[row["says"]]


def _reference(summary: Mapping[str, Any]) -> float | None:
    best = _chosen(summary, "best_member")
    return None if best is None else summary["arms"][best]["accuracy"]


def _is_ceiling(name: str) -> bool:
    return name.startswith("oracle")


def _sorted_arms(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """By kind, then the best first."""
    order = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(summary["arms"].items(), key=lambda item: (order.get(item[1]["kind"], len(KINDS)), -item[1]["accuracy"], item[0]))


def _groups(summary: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Mapping[str, Any]]]]]:
    titles = {"member": "Members alone", "rival": "Rivals", "topology": "Topologies", "placebo": "Placebos"}
    grouped: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, arm in _sorted_arms(summary):
        grouped.setdefault(titles.get(arm["kind"], arm["kind"]), []).append((name, arm))
    return list(grouped.items())


def _cost(arm: Mapping[str, Any], key: str) -> float | None:
    if key == "tokens":
        parts = (arm.get("tokens_in"), arm.get("tokens_out"))
        return None if None in parts else sum(parts)  # type: ignore[arg-type]
    return (arm.get("latency_s") or {}).get("p50") if key == "latency" else arm.get(key)


def _share(capture: Any) -> str:
    """A verdict's capture, (share, (low, high)), in words; "-" where there is none."""
    return f"{100 * capture[0]:.0f} % ({100 * capture[1][0]:.0f} to {100 * capture[1][1]:.0f})" if capture else "-"


def _forest(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict rows in two groups, the half-width of the axis their intervals are drawn on, and the placebos that beat the members."""
    rows = summary["verdicts"]
    ends = [abs(x) for v in rows for x in (*(v["ci95"] or ()), v["delta"])]
    groups = [("Against every member of the team", [v for v in rows if v["against"] == MEMBERS]),
              ("Best topology against each rival", [v for v in rows if v["against"] != MEMBERS])]
    placebos = [v["arm"] for v in rows if v["says"] == "beats" and summary["arms"].get(v["arm"], {}).get("kind") == "placebo"]
    return {"groups": [group for group in groups if group[1]], "reach": max([0.01, *ends]) * 1.05, "placebos": placebos}


def _heat(summary: Mapping[str, Any], samples: _Samples, scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Mean score per tag and arm: rows of (tag, n tasks, [share or None per arm], best share of an arm that could be run)."""
    arms = [name for name, _ in _sorted_arms(summary)]
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for arm in arms:
        for task, score in scores.get(arm, {}).items():
            for tag in samples.tags[task]:
                cell = sums[tag, arm]
                cell[0] += score
                cell[1] += 1
    counts = Counter(tag for tags in samples.tags.values() for tag in tags)
    shown = sorted(tag for tag, _ in counts.most_common(TAGS))
    rows = []
    for tag in shown:
        cells = {arm: sums[tag, arm][0] / sums[tag, arm][1] for arm in arms if sums[tag, arm][1]}
        best = max((share for arm, share in cells.items() if not _is_ceiling(arm)), default=None)
        rows.append((tag, counts[tag], [(arm, cells.get(arm)) for arm in arms], best))
    return {"arms": arms, "rows": rows, "left_out": len(counts) - len(shown)}


def _examples(summary: Mapping[str, Any], samples: _Samples, scores: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """A few tasks on which the best topology fixed, and broke, the best member's answer; taken in turn from different skills."""
    team, member = _chosen(summary, "best_topology"), _chosen(summary, "best_member")
    if team is None or member is None or team not in scores or member not in scores:
        return []
    own, other = scores[team], scores[member]
    shown = [name for name, arm in _sorted_arms(summary) if arm["kind"] == "member"] + [team]
    examples = []
    for title, sign in (("Fixed by the team", 1), ("Broken by the team", -1)):
        tasks = sorted(task for task in own if task in other and (own[task] - other[task]) * sign > 0)
        picked = []
        for task in _in_turn(tasks, samples.tags)[:EXAMPLES]:
            records = list(samples.records((arm, task) for arm in shown))
            answers = [{"arm": r["arm"], "answer": _short(r.get("answer")), "score": r.get("score") or 0.0, "team": r["arm"] == team}
                       for r in records]
            picked.append({"task": _short(records[0].get("question") or task), "tags": samples.tags[task],
                           "expected": _short(records[0].get("expected")), "answers": answers})
        examples.append({"title": title, "n": len(tasks), "tasks": picked})
    return examples


def _in_turn(tasks: Sequence[str], tags: Mapping[str, tuple[str, ...]]) -> list[str]:
    """One task of each first tag, then a second of each, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for task in tasks:
        tag = (tags[task] or ("",))[0]
        ranked.append((seen[tag], tag, task))
        seen[tag] += 1
    return [task for *_, task in sorted(ranked)]


def _failures(samples: _Samples) -> dict[str, Any]:
    listed = sorted(samples.failed.items())
    return {"n": len(listed), "rows": [(arm, task, _short(reason)) for (arm, task, _), reason in listed[:FAILURES]]}


def _short(value: Any, limit: int = 300) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _config(run_folder: Path) -> str | None:
    path = run_folder / "config.json"
    if not path.exists():
        return None
    return _short(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=2, ensure_ascii=False), 20_000)


# --- the scatter: geometry here, drawing in the template ------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 430, 52, 24, 16, 50  # of the drawing and its margins, in SVG units
ZERO = 46  # on a logarithmic axis, room for arms that cost nothing


def _scatter(summary: Mapping[str, Any], key: str, title: str, unit: str) -> dict[str, Any]:
    """Accuracy against one cost: points, ticks, labels that do not overlap, and the frontier (nothing cheaper is better)."""
    arms = [(name, arm, cost) for name, arm in _sorted_arms(summary) if not _is_ceiling(name) and (cost := _cost(arm, key)) is not None]
    ceiling = next(((name, arm["accuracy"]) for name, arm in summary["arms"].items() if _is_ceiling(name)), None)
    heights = [y for _, arm, _ in arms for y in (arm["ci95"] or [arm["accuracy"]])] + ([ceiling[1]] if ceiling else [])
    y_ticks = _linear_ticks(min(heights, default=0.0), max(heights, default=1.0))
    x_of, x_ticks = _cost_axis([cost for *_, cost in arms], unit)
    low, high = y_ticks[0], y_ticks[-1]

    def y_of(accuracy: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - accuracy) / (high - low)

    marked = {_chosen(summary, "best_member"), _chosen(summary, "best_topology")}
    dots = [{"name": name, "kind": arm["kind"], "x": x_of(cost), "y": y_of(arm["accuracy"]), "marked": name in marked,
             "whisker": [y_of(end) for end in arm["ci95"]] if arm["ci95"] else None,
             "title": f"{name}: {percent(arm['accuracy'])} at {quantity(cost, unit)}"} for name, arm, cost in arms]
    _place_labels(dots)
    dots.sort(key=lambda dot: dot["marked"])  # what is drawn last lies on top
    return {"key": key, "title": title, "dots": dots, "frontier": _frontier(dots), "x_ticks": x_ticks,
            "y_ticks": [(y_of(t), f"{100 * t:.0f}") for t in y_ticks],
            "ceiling": (y_of(ceiling[1]), f"{ceiling[0]} {percent(ceiling[1])}") if ceiling else None,
            "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}


def _linear_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers that enclose [low, high]."""
    span = max(high - low, 1e-9)
    scale = 10.0 ** math.floor(math.log10(span / wanted))
    step = next((scale * m for m in (1, 2, 5, 10) if span / (scale * m) <= wanted), scale * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _cost_axis(costs: Sequence[float], unit: str):  # -> (position of a cost, [(position, label)])
    """Logarithmic where costs span more than a factor of eight; zeros then sit apart, at the left."""
    positive = [cost for cost in costs if cost > 0]
    start, stop = LEFT, WIDTH - RIGHT
    if not positive or max(positive) / min(positive) <= 8:
        ticks = _linear_ticks(0.0, max(positive, default=1.0))
        return (lambda c: start + (stop - start) * c / ticks[-1]), [(start + (stop - start) * t / ticks[-1], quantity(t, unit)) for t in ticks]
    labels = []
    if len(positive) < len(costs):
        labels, start = [(start + ZERO / 2, "0")], start + ZERO
    low, high = math.log10(min(positive)) - 0.1, math.log10(max(positive)) + 0.1
    steps = (1, 2, 5) if high - low < 3 else (1,)
    every = max(1, math.ceil((high - low) / 8))

    def x_of(cost: float) -> float:
        return start - ZERO / 2 if cost <= 0 else start + (stop - start) * (math.log10(cost) - low) / (high - low)

    for decade in range(math.floor(low), math.ceil(high) + 1):
        for m in steps:
            if low <= decade + math.log10(m) <= high and decade % every == 0:
                labels.append((x_of(m * 10.0**decade), quantity(m * 10.0**decade, unit)))
    return x_of, labels


def _frontier(dots: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Corners of the stair that no arm beats at its cost or less; placebos aside. y grows downwards."""
    stair: list[tuple[float, float]] = []
    for dot in sorted((d for d in dots if d["kind"] != "placebo"), key=lambda d: (d["x"], d["y"])):
        if not stair or dot["y"] < stair[-1][1]:
            if stair:
                stair.append((dot["x"], stair[-1][1]))
            stair.append((dot["x"], dot["y"]))
    return stair


def _place_labels(dots: list[dict[str, Any]]) -> None:
    """Give each dot a label where one fits without covering another; the best arms choose first. Where none fits, hovering still names it."""
    taken = [(d["x"] - 6, d["y"] - 6, d["x"] + 6, d["y"] + 6) for d in dots]
    for i in sorted(range(len(dots)), key=lambda i: (not dots[i]["marked"], dots[i]["y"])):
        dot, width = dots[i], 6.7 * len(dots[i]["name"])
        dot["label"] = None
        for dx, dy, anchor in ((10, 4, "start"), (-10, 4, "end"), (0, -11, "middle"), (0, 20, "middle"),
                               (8, -8, "start"), (8, 16, "start"), (-8, -8, "end"), (-8, 16, "end")):
            left = dot["x"] + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, dot["y"] + dy - 11, left + width, dot["y"] + dy + 3)
            inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            clear = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for j, t in enumerate(taken) if j != i)
            if inside and clear:
                dot["label"] = (dot["x"] + dx, dot["y"] + dy, anchor)
                taken.append(box)
                break


# --- the same for a terminal ----------------------------------------------------------------------------------------------------------


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """The arms, by kind and then accuracy. Costs are means per question."""
    table = Table(title=f"{summary['suite']}, {summary['n_tasks']:,} questions", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for header, justify in (("arm", "left"), ("kind", "left"), ("right", "right"), ("95 %", "left"), ("FLOPs", "right"), ("tokens", "right"),
                            ("bytes", "right"), ("p50", "right"), ("p95", "right"), ("energy", "right")):
        table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    some_failed = any(arm.get("n_failed") for arm in summary["arms"].values())
    if some_failed:
        table.add_column("failed", justify="right", no_wrap=True)
    marked = {_chosen(summary, "best_member"), _chosen(summary, "best_topology")}
    arms, latest = _sorted_arms(summary), None
    for name, arm in arms:
        if latest not in (None, arm["kind"]):
            table.add_section()
        latest = arm["kind"]
        interval = f"{100 * arm['ci95'][0]:.1f}-{100 * arm['ci95'][1]:.1f}" if arm["ci95"] else "-"
        table.add_row(Text(name), arm["kind"], percent(arm["accuracy"]), interval, quantity(arm.get("flops")), quantity(_cost(arm, "tokens")),
                      quantity(arm.get("wire_bytes"), "B"), quantity((arm.get("latency_s") or {}).get("p50"), "s"),
                      quantity((arm.get("latency_s") or {}).get("p95"), "s"), quantity(arm.get("energy_j"), "J"),
                      *([f"{arm['n_failed']:,}" if arm.get("n_failed") else ""] if some_failed else []), style="bold" if name in marked else None)
    return table


def verdict_table(summary: Mapping[str, Any]) -> Table:
    """The verdict rows, in points; p as adjusted by Holm's method, which is what `says` follows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header, justify in (("arm", "left"), ("", "left"), ("against", "left"), ("points", "right"), ("95 %", "left"), ("p (Holm)", "left"),
                            ("could show", "right"), ("won/lost/tied", "right"), ("capture", "left")):
        table.add_column(header, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    style = {"beats": "green", "loses": "red", "not shown": "dim"}
    for v in summary["verdicts"]:
        interval = f"{points(v['ci95'][0])} to {points(v['ci95'][1])}" if v["ci95"] else "-"
        table.add_row(Text(v["arm"]), Text(v["says"], style[v["says"]]), Text(v["against"]), points(v["delta"]), interval,
                      p_text(v["p_holm"])[2:].removeprefix("= "), points(v["mde"]) if v["mde"] is not None else "-",
                      f"{v['wins']:,}/{v['losses']:,}/{v['ties']:,}", _share(v["capture"]))
    return table


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print the arms, the verdicts and the sentence."""
    console.print(terminal_table(summary))
    if summary["verdicts"]:
        console.print()
        console.print(verdict_table(summary))
    console.print()
    console.print(sentence(summary), highlight=False, markup=False)
