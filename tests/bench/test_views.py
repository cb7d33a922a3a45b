"""Accuracy by bytes: one small run through the terminal, and its numbers found again in what the run left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from aiflow_agents.bench import views as bench
from aiflow_agents.bench.views import Views, bench_views, curve, stem
from aiflow_agents.bench.views_plot import family
from aiflow_agents.cli.main import main
from aiflow_agents.errors import UserError
from aiflow_agents.evals import clusters
from aiflow_agents.evals.rescore import rescore
from aiflow_agents.evals.run_folder import read_samples, read_summary
from aiflow_agents.wire import calibration

ASKED = ["bench", "views", "--limit", "14", "--seed", "5", "--codec", "int8", "--codec", "merge:step=2", "--codec", "float16", "--budget", "200", "--scenes", "40",
         "--arm", "joint-view send=text decide=majority", "--runtime", "inline", "--display", "none", "--json"]  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patched:
        import io
        import sys

        patched.setattr(sys, "stdout", io.StringIO())
        assert main([*ASKED, "--log-dir", str(folder)]) == 0
        return json.loads(sys.stdout.getvalue())


def test_points_are_what_the_run_left(found: dict[str, Any]) -> None:
    run = Path(found["folder"])
    samples = read_samples(run)
    assert [point["what"] for point in found["points"] if point["kind"] == "features"] == ["merge:step=2", "int8", "float16"]
    assert {point["what"] for point in found["points"]} > {"200 bytes", "send=text, decide=majority"} and found["tasks"] == 14 and found["clusters"] == 2
    spans: dict[str, list[dict[str, Any]]] = {}
    for line in (run / "trace.jsonl").read_text().splitlines():
        row = json.loads(line)
        spans.setdefault(row["arm"], []).extend(row["spans"])
    for point in found["points"]:
        scores = [sample["score"] for (arm, _, _), sample in samples.items() if arm == point["arm"]]
        assert len(scores) == 14 and point["accuracy"] == pytest.approx(np.mean(scores)) and point["ci95"][0] <= point["accuracy"] <= point["ci95"][1]
        if point["kind"] != "text":  # what cameras sent, by the trace: frames, and the hellos of both sides
            sent = [span["nbytes"] for span in spans[point["arm"]] if span["kind"] == "move" and (span["who"] not in ("user", "hub"))]
            assert point["nbytes"] == pytest.approx(sum(sent) / 14 / 4, rel=0.01, abs=1)


def test_comparisons_are_at_no_more_bytes_or_say_so(found: dict[str, Any]) -> None:
    nbytes = {point["what"]: point["nbytes"] for point in found["points"]}
    assert {row["against"] for row in found["against_features"]} == {"200 bytes", "send=text, decide=majority"}
    for row in found["against_features"]:
        lighter = [what for what, n in nbytes.items() if what in ("merge:step=2", "int8", "float16") and n <= nbytes[row["against"]]]
        assert row["arm"] == max(lighter, key=nbytes.__getitem__, default="merge:step=2") and row["bytes"] == [nbytes[row["arm"]], nbytes[row["against"]]]
        right = {point["what"]: point["accuracy"] for point in found["points"]}
        assert row["delta"] == pytest.approx(right[row["arm"]] - right[row["against"]]) and row["p_holm"] >= row["p"]
    assert {row["arm"] for row in found["against_int8"]} == {"merge:step=2", "float16"} and all("p_holm" in row["equivalence"] for row in found["against_int8"])


def test_a_picture_shows_every_point(found: dict[str, Any]) -> None:
    root = ElementTree.parse(Path(found["folder"]).parent / "views.svg").getroot()
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(title.partition(": ")[0] if "merge" not in title else "merge" for title in titles) == sorted(
        "merge" if "merge" in point["what"] else point["what"] for point in found["points"])  # fmt: skip
    assert [family({"kind": "features", "what": what}) for what in ("float16", "int4+range", "klt:step=1+range")] == ["float", "int", "klt"]


def test_it_goes_on_where_it_was(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is fitted or asked again, and what is said is the same."""
    from aiflow_agents.training import feature_sample as fitting

    folder = Path(found["folder"]).parent
    monkeypatch.setattr(fitting, "feature_sample", lambda *_: pytest.fail("fitted again"))
    assert main(["bench", "views", "--resume", str(folder), "--runtime", "inline", "--display", "none"]) == 0
    said = capsys.readouterr().out
    assert "merge:step=2" in said and "against int8" in said and "14 questions in 2 clusters" in said
    again = curve(Path(found["folder"]), {stem(spec): spec for spec in ("int8", "merge:step=2", "float16")})
    assert json.loads(json.dumps(again)) == found
    shipped = {file.stem: calibration.load(file).spec for file in (folder / "models" / "owl" / "codecs").iterdir()}
    assert shipped == {"int8": "int8", "merge-step=2": "merge:step=2"}
    with pytest.raises(UserError, match="already holds a run; go on with it"):
        bench_views(folder, Views())


def test_the_run_is_judged_by_scenes_and_marked_again_so(found: dict[str, Any]) -> None:
    run = Path(found["folder"])
    summary, samples = read_summary(run), read_samples(run)
    best = summary["best_member"]["arm"]
    for row in summary["verdicts"]:
        other = best if row["against"] == "members" else row["against"]
        gain: dict[str, list[float]] = {}
        for (arm, task, repeat), sample in samples.items():
            if arm == row["arm"]:
                gain.setdefault(sample["cluster"], []).append(sample["score"] - samples[other, task, repeat]["score"])
        sizes = list(map(len, gain.values()))
        assert sorted(sizes) == [5, 9]
        assert row["ci95"] == pytest.approx(clusters.interval([sum(one) for one in gain.values()], sizes)) and row["p"] >= 0.5  # two scenes show nothing
    assert summary["n_clusters"] == 2 and rescore(run).after["verdicts"] == summary["verdicts"]


def test_what_cannot_be_run_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--runtime", "inline", "--display", "none", "--log-dir", str(tmp_path)]
    for args, said in ((["--arm", "send=text"], "expected a topology"), (["--resume", str(tmp_path)], "no views.json"), (["--codec", "zip"], "no codec named 'zip'"),
                       (["specialists"], "several models"), (["controls-copies"], "does not see"), (["--plot", "nowhere/a.svg"], "is no folder")):  # fmt: skip
        assert main(["bench", "views", *args, *options]) == 2, args
        assert said in capsys.readouterr().err
    assert bench.stem("klt:step=0.5+range") == "klt-step=0.5" != bench.stem("klt:step=0.5,by=output+range")
