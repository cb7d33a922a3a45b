"""`report.html`: put together from what a run left in its folder, and from nothing else.

The page is one file that requests nothing: styles and scripts are inlined, and its policy lets only that very script run (by its hash). Tables and
the scatter are drawn here, so they are there without scripts too; what can be played and browsed is drawn by the scripts from columns that are
embedded as JSON. Costs of an arm are means per question, as in `summary.json`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aiflow_agents import __version__
from aiflow_agents.evals.report.arms import COSTS, capacities, capture_text, chosen, cost, is_ceiling, sorted_arms
from aiflow_agents.evals.report.conversations import Conversations, places
from aiflow_agents.evals.report.curves import budget_plot
from aiflow_agents.evals.report.samples import Samples, short
from aiflow_agents.evals.report.scatter import FRAMES, scatter
from aiflow_agents.evals.report.sweep import sweep_map
from aiflow_agents.evals.run_folder import CURVES, SWEEP, read_curves, read_sweep
from aiflow_agents.evals.verdict import MEMBERS, p_text, percent, points, quantity, sentence

FORMAT = 4  # of the page: one of another format, or by another version, is not current
TAGS, FAILURES = 60, 50  # at most so many are listed
SOURCES = ("summary.json", "samples.jsonl", "trace.jsonl", "config.json", CURVES, SWEEP)
SCRIPTS = ("elements.js", "run.js", "theme.js", "figure.js", "changes.js", "graph.js", "conversation.js", "timeline.js", "browser.js", "main.js")
HERE = Path(__file__).parent


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run's folder and return its path; an older one is replaced in one step.

    Raises FileNotFoundError where the folder has no `summary.json`. What needs `samples.jsonl` or `trace.jsonl` is left out where they are missing.
    """
    summary = json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))
    config = _config(run_folder)
    samples, conversations = Samples.read(run_folder / "samples.jsonl"), Conversations.read(run_folder / "trace.jsonl")
    scores = samples.scores()
    data, script = _data(summary, config, samples, scores, conversations), _script()
    template = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                           trim_blocks=True, lstrip_blocks=True).get_template("page.html.j2")
    page = template.render(
        generator=_generator(), script=Markup(script), script_hash=_hash(script), style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        data=embedded(data), cut=data["cut"], left_out=data["conversations"]["left_out"],
        has_traces=bool(conversations.spans), has_tasks=bool(samples.tasks), summary=summary, sentence=sentence(summary),
        headline=_headline(summary), team_row=_team_row(summary), groups=_groups(summary),
        chosen={chosen(summary, role): role for role in ("best_member", "best_topology")}, reference=_reference(summary),
        plots=[{"key": key, "title": title, "frames": [scatter(summary, key, title, unit, frame) for frame in FRAMES]} for key, title, unit in COSTS],
        capacities=capacities(summary), curves=[budget_plot(curve) for curve in read_curves(run_folder).values()],
        verdicts=_forest(summary), heat=_heat(summary, samples, scores), failures=_failures(samples),
        command=f"aiflow eval --config {shlex.quote(str(run_folder / 'config.json'))}", config=config and _shown(config),
        decoded=[(name, arm) for name, arm in sorted_arms(summary) if arm.get("fidelity")],
        sweep=sweep_map(read_sweep(run_folder)),
        some_stream=any(arm.get("ms_per_token") is not None for arm in summary["arms"].values()),
        some_over=any(arm.get("n_over_budget") for arm in summary["arms"].values()),
        percent=percent, points=points, p_text=p_text, quantity=quantity, cost=cost, share=capture_text)
    target = run_folder / "report.html"
    draft = target.with_suffix(".html.part")
    draft.write_text(page, encoding="utf-8", errors="backslashreplace")  # a half of a surrogate pair, which a model may put out, is no text
    os.replace(draft, target)
    return target


def is_current(run_folder: Path) -> bool:
    """Whether the folder's `report.html` is there, of this version, and younger than all that it is drawn from."""
    page = run_folder / "report.html"
    if not page.is_file():
        return False
    with page.open(encoding="utf-8", errors="replace") as lines:
        if f'content="{_generator()}"' not in lines.read(2000):
            return False
    written = page.stat().st_mtime_ns
    return all((run_folder / name).stat().st_mtime_ns <= written for name in SOURCES if (run_folder / name).exists())


def embedded(data: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it ends that element, or begins a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _generator() -> str:
    return f"aiflow-agents {__version__}, page {FORMAT}"


def _script() -> str:
    """All scripts in one scope of their own. Nothing of a run is in them."""
    parts = [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _data(summary: Mapping[str, Any], config: Mapping[str, Any], samples: Samples, scores: Mapping[str, Mapping[int, float]],
          conversations: Conversations) -> dict[str, Any]:
    """What the scripts draw from; see `run.js`."""
    arms = [name for name, _ in sorted_arms(summary)]
    place: dict[str | None, int] = {name: i for i, name in enumerate(arms)}
    return {
        "arms": [{"name": name, "kind": arm["kind"], "ceiling": is_ceiling(name)} for name, arm in sorted_arms(summary)],
        "best_member": place.get(chosen(summary, "best_member")),
        "best_topology": place.get(chosen(summary, "best_topology")),
        **samples.columns(arms, scores),
        **places(config, conversations),
        "graphs": conversations.graphs(arms),
        "conversations": conversations.columns(arms, samples.tasks),
    }


# --- the parts of the page that need no script ---------------------------------------------------------------------------------------


def _team_row(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    team = chosen(summary, "best_topology")
    return next((v for v in summary["verdicts"] if v["arm"] == team and v["against"] == MEMBERS), None)


def _headline(summary: Mapping[str, Any]) -> str:
    row = _team_row(summary)
    if row is None:
        return f"{summary['suite']}: no team was run" if chosen(summary, "best_topology") is None else f"{summary['suite']}: no verdict"
    return {"beats": f"{row['arm']} beats every member of its team", "loses": f"{row['arm']} loses to its best member",
            "not shown": f"{row['arm']}: not shown to beat its best member"}[row["says"]]


def _reference(summary: Mapping[str, Any]) -> float | None:
    best = chosen(summary, "best_member")
    return None if best is None else summary["arms"][best]["accuracy"]


def _groups(summary: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Mapping[str, Any]]]]]:
    titles = {"member": "Members alone", "rival": "Rivals", "topology": "Topologies", "placebo": "Placebos"}
    grouped: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, arm in sorted_arms(summary):
        grouped.setdefault(titles.get(arm["kind"], arm["kind"]), []).append((name, arm))
    return list(grouped.items())


def _forest(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict rows in two groups, the half-width of the axis their intervals are drawn on, and the placebos that beat the members."""
    rows = summary["verdicts"]
    ends = [abs(x) for v in rows for x in (*(v["ci95"] or ()), v["delta"])]
    groups = [("Against every member of the team", [v for v in rows if v["against"] == MEMBERS]),
              ("Best topology against each rival", [v for v in rows if v["against"] != MEMBERS])]
    placebos = [v["arm"] for v in rows if v["says"] == "beats" and summary["arms"].get(v["arm"], {}).get("kind") == "placebo"]
    return {"groups": [group for group in groups if group[1]], "reach": max([0.01, *ends]) * 1.05, "placebos": placebos}


def _heat(summary: Mapping[str, Any], samples: Samples, scores: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Mean score per tag and arm: rows of (tag, n tasks, [share or None per arm], best share of an arm that could be run)."""
    arms = [name for name, _ in sorted_arms(summary)]
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for arm in arms:
        for task, score in scores.get(arm, {}).items():
            for tag in samples.tags[task]:
                cell = sums[tag, arm]
                cell[0] += score
                cell[1] += 1
    counts = Counter(tag for tags in samples.tags for tag in tags)
    shown = sorted(tag for tag, _ in counts.most_common(TAGS))
    rows = []
    for tag in shown:
        cells = {arm: sums[tag, arm][0] / sums[tag, arm][1] for arm in arms if sums[tag, arm][1]}
        best = max((share for arm, share in cells.items() if not is_ceiling(arm)), default=None)
        rows.append((tag, counts[tag], [(arm, cells.get(arm)) for arm in arms], best))
    return {"arms": arms, "rows": rows, "left_out": len(counts) - len(shown)}


def _failures(samples: Samples) -> dict[str, Any]:
    listed = samples.failures()
    return {"n": len(listed), "rows": [(arm, task, short(reason, 300)) for arm, task, reason in listed[:FAILURES]]}


def _config(run_folder: Path) -> dict[str, Any]:
    path = run_folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _shown(config: Mapping[str, Any]) -> str:
    return short(json.dumps(config, indent=2, ensure_ascii=False), 20_000)
