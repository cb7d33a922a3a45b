"""What an answer is worth by the bytes that each camera sends for it: features coded in many ways, pictures as JPEG, and text, side by side.

It is an evaluation like any other, so it can be killed and gone on with. What is its own: codecs that no model ships are fitted on scenes of the
train split and laid beside a copy of the model; and arms are laid out by bytes.

    folder/  views.json  what was asked     models/  that copy     team.yaml  the suite's team, with it     run/  a run folder
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aiflow_agents import catalog
from aiflow_agents.config import dump_yaml, load_yaml
from aiflow_agents.errors import UserError
from aiflow_agents.evals import statistics
from aiflow_agents.evals.compare import by_tag, compare_scores
from aiflow_agents.evals.evaluate import evaluate
from aiflow_agents.evals.run_folder import read_config, read_samples, read_summary, write_whole
from aiflow_agents.evals.runner import Silence, Watcher, arm_name
from aiflow_agents.evals.suite import Suite, load_suites
from aiflow_agents.evals.summary import clustered
from aiflow_agents.runtime.team import TeamFile

STEPS = 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6  # of klt by=output: from 100 bytes a camera down to what text has
CODECS = (
    "float16", "int8", "int4+range", "klt:step=0.5+range", "klt:step=1.5+range", "klt:step=3+range",
    *(f"klt:step={step:g},by=output,places=36+range" for step in STEPS),
    "merge:step=0.5", "merge:step=1", "merge:step=2", "merge:step=3", "merge:step=0.5,spread=0.3", "merge:step=3,spread=0.45",
)  # fmt: skip
SHARES = 0.75, 0.5  # of a picture's patches that stay apart, where their number is fixed
BUDGETS = 60, 120, 240, 480, 960
TEXTS: tuple[tuple[str, dict[str, Any]], ...] = (  # captions with as many letters a place as owl was taught
    ("joint-view", {"send": "text"}), *(("joint-view", {"send": "captions", "letters": letters}) for letters in (1, 4)),
)  # fmt: skip
ALONE = ("joint-view", {"placebo": "nothing"})  # the edge by itself: what it costs to ask and to answer
REFERENCE = "int8"
Pattern = tuple[str, Mapping[str, Any]]


class Point(NamedTuple):
    """One arm on the curve. `kind`: features, jpeg or text; `what`: its codec, its budget or its parameters; bytes that a camera sends a question."""

    arm: str
    kind: str
    what: str
    nbytes: float
    accuracy: float
    ci95: tuple[float, float]
    tags: dict[str, float]  # accuracy on the tasks of each tag


class Views(NamedTuple):
    """What to run. `suite` must let pictures leave where there are budgets."""

    suite: str = "open-views"
    codecs: tuple[str, ...] = ()
    budgets: tuple[int, ...] = BUDGETS
    texts: tuple[Pattern, ...] = TEXTS
    seed: int = 0
    limit: int | None = None
    scenes: int = 1000  # that codecs are fitted on


def bench_views(folder: Path, asked: Views | None, *, runtime: str = "inline", margin: float = 0.02, watch: Watcher | None = None) -> dict[str, Any]:
    """Run it all in a new folder, or with `asked` None go on with an old one. Returns `suite, seed, tasks, points, against_features, against_int8`.

    `against_features`: for every JPEG and text the features with at most as many bytes that come nearest to it (where there are none, the smallest),
    `delta` being their accuracy minus its, and `tags` the same on the tasks of each tag alone (`evals.compare.by_tag`). `against_int8`: every other
    codec against int8, with a test of equivalence within `margin`. Intervals and tests respect the suite's clusters; p-values are Holm's in each of
    the two. Raises UserError for what cannot be run.
    """
    watch, told = watch or Silence(), folder / "views.json"
    if asked is None:
        if not told.is_file():
            raise UserError(f"{folder} holds no such run: it has no views.json")
        asked = Views(**json.loads(told.read_text(encoding="utf-8")))
    elif told.exists():
        raise UserError(f"{folder} already holds a run; go on with it: aiflow bench views --resume {folder}")
    (suite,) = load_suites(asked.suite)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(told, json.dumps(asked._asdict(), indent=2) + "\n")
    team, codecs = _team(folder, suite, asked, watch)
    patterns = [{"joint-view": {"codec": stem}} for stem in codecs] + [{"pictures": {"picture_bytes": budget}} for budget in asked.budgets]
    patterns += [{name: dict(parameters)} for name, parameters in (*asked.texts, ALONE)]
    run = folder / "run"
    begun = (run / "config.json").exists()
    evaluate(suite, str(team), patterns, runtime=runtime, path=run, resume=begun, watch=watch, seed=asked.seed, limit=asked.limit)
    return curve(run, codecs, margin)


def stem(spec: str) -> str:
    """A codec's name as that of a file: `klt:step=0.5+range` -> `klt-step=0.5`."""
    return spec.removesuffix("+range").replace(":", "-").replace(",", "-")


def _team(folder: Path, suite: Suite, asked: Views, watch: Watcher) -> tuple[Path, dict[str, str]]:
    """The suite's team with a model that has all codecs, and these: name -> spec. What is there already is not made again."""
    from aiflow_agents.models.family.info import weights_hash
    from aiflow_agents.models.family.model import FamilyModel
    from aiflow_agents.training.feature_sample import feature_sample, needed_draws
    from aiflow_agents.wire import calibration
    from aiflow_agents.wire.codecs import fit, needs_fitting, parse

    given = load_yaml(catalog.find("team", suite.file.team, base=suite.folder).path, TeamFile)
    models = {member.model for member in given.members.values()}
    if len(models) > 1:
        raise UserError(f"team '{suite.file.team}' has several models ({', '.join(sorted(models))}); this bench takes teams of one that sees")
    original = Path(models.pop())
    model = FamilyModel.load(original)
    if model.eyes is None:
        raise UserError(f"model '{original.name}' of team '{suite.file.team}' does not see")
    patches = model.eyes.config.patches
    fixed = [f"merge:step=1.5,spread=0,centres={max(round(share * patches), 1)}" for share in SHARES]
    specs = dict.fromkeys(parse(spec).text for spec in asked.codecs or (*CODECS, *fixed))
    copy = folder / "models" / original.name
    if not copy.exists():
        part = copy.with_name(copy.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(original, part, ignore=shutil.ignore_patterns("codecs"))
        part.rename(copy)
    (copy / "codecs").mkdir(exist_ok=True)
    fitted = {stem(spec): spec for spec in specs if needs_fitting(spec)}
    missing = {name: spec for name, spec in fitted.items() if not (copy / "codecs" / f"{name}.safetensors").exists()}
    watch.stage("codecs", len(missing))
    sample = feature_sample(model, asked.scenes, asked.seed, needed_draws(missing.values())) if missing else {}
    for name, spec in missing.items():
        calibration.save(fit(spec, sample), copy / "codecs" / f"{name}.safetensors", weights_hash(copy))
        watch.advance(1)
    members = {name: member.model_copy(update={"model": str(copy.absolute())}) for name, member in given.members.items()}
    write_whole(folder / "team.yaml", dump_yaml(given.model_copy(update={"members": members})))
    return folder / "team.yaml", {stem(spec): spec for spec in specs}


def curve(run: Path, codecs: Mapping[str, str], margin: float = 0.02) -> dict[str, Any]:
    """What a finished run says, see `bench_views`. `codecs`: name -> spec.

    Bytes of a camera: all that links carried for a question beyond what they carry where the edge answers by itself, by the number of cameras.
    """
    summary, samples = read_summary(run), read_samples(run)
    arms, alone = summary["arms"], summary["arms"][arm_name(*ALONE)]["wire_bytes"]
    cameras = len(load_suites(read_config(run).suite)[0].file.cameras)
    points = []
    for entry in read_config(run).topologies:
        ((path, parameters),) = entry.items()
        name = Path(path).stem
        arm = arms[arm_name(path, parameters)]
        if arm["kind"] != "topology":
            continue
        coded = name == "joint-view" and set(parameters) == {"codec"}
        kind = "features" if coded else "jpeg" if name == "pictures" else "text"
        said = ", ".join(f"{key}={value}" for key, value in parameters.items())
        what = codecs[parameters["codec"]] if coded else f"{parameters['picture_bytes']} bytes" if kind == "jpeg" else said
        nbytes = (arm["wire_bytes"] - alone) / cameras
        low, high = arm["ci95"]
        points.append(Point(arm_name(path, parameters), kind, what, nbytes, arm["accuracy"], (low, high), {}))
    points.sort(key=lambda point: point.nbytes)
    tasks = list(dict.fromkeys(task for name, task, _ in samples if name == points[0].arm))
    scores = {point.arm: np.array([[samples[point.arm, task, 0]["score"]] for task in tasks]) for point in points}
    tags = [samples[points[0].arm, task, 0].get("tags") or [] for task in tasks]
    having = {tag: [tag in of for of in tags] for tag in dict.fromkeys(tag for of in tags for tag in of)}
    points = [point._replace(tags={tag: float(scores[point.arm][here].mean()) for tag, here in having.items()}) for point in points]
    cluster = clustered([samples[points[0].arm, task, 0] for task in tasks])

    def pair(first: Point, second: Point) -> dict[str, Any]:
        """How much better the second is."""
        found = compare_scores(scores[first.arm], scores[second.arm], margin, summary["seed"], cluster)
        found.pop("costs")
        return {"arm": second.what, "against": first.what, "bytes": [second.nbytes, first.nbytes], **found}

    features = [point for point in points if point.kind == "features"]
    rows = []
    for point in points if features else ():
        if point.kind != "features":
            lighter = [one for one in features if one.nbytes <= point.nbytes]
            best = lighter[-1] if lighter else features[0]  # points come by bytes
            rows.append(pair(point, best) | {"tags": by_tag(scores[point.arm], scores[best.arm], tags, margin, summary["seed"], cluster)})
    reference = next((point for point in features if point.what == REFERENCE), None)
    same = [pair(reference, point) for point in features if point is not reference] if reference else []
    for family in (rows, same, [row["equivalence"] for row in same]):
        for row, p in zip(family, statistics.holm([row["p"] for row in family]).tolist() if family else (), strict=True):
            row["p_holm"] = p
    return {
        "suite": summary["suite"], "seed": summary["seed"], "tasks": summary["n_tasks"], "clusters": summary.get("n_clusters"), "margin": margin,
        "alone": arms[arm_name(*ALONE)]["accuracy"], "points": [point._asdict() for point in points], "against_features": rows, "against_int8": same,
        "folder": str(run),
    }  # fmt: skip
