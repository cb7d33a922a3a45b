"""The cluster files of docs/cluster: they parse, their tiers are those of the networks, and Ray knows the options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from aiflow_agents.runtime.placement import TIER
from aiflow_agents.runtime.team import MemberFile

FOLDER = Path(__file__).parents[1] / "docs" / "cluster"
TIERS = set(get_args(MemberFile.model_fields["tier"].annotation))


def options() -> set[str]:
    """What `ray start` takes."""
    from ray.scripts.scripts import start

    return {option.removeprefix("--") for parameter in start.params for option in parameter.opts}


def test_the_launcher_file_starts_labelled_nodes() -> None:
    import json

    import jsonschema
    import ray

    read: dict[str, Any] = yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(read, schema)
    (command,) = (line for line in read["worker_start_ray_commands"] if line.startswith("ray start"))
    assert f"{TIER}=" in command
    for line in read["head_start_ray_commands"] + read["worker_start_ray_commands"]:
        assert {word.removeprefix("--").partition("=")[0] for word in re.findall(r"--[\w-]+", line)} <= options()


def test_kuberay_has_a_group_for_each_tier() -> None:
    read: dict[str, Any] = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    spec = read["spec"]
    groups = {group["groupName"]: group["rayStartParams"]["labels"] for group in spec["workerGroupSpecs"]}
    assert groups == {tier: f"{TIER}={tier}" for tier in TIERS}
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert set(group["rayStartParams"]) <= options()


def test_the_page_names_options_that_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from aiflow_agents.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")
    page, known = (FOLDER.parent / "cluster.md").read_text(), options()
    for command in ("eval", "bench kills"):
        main([*command.split(), "--help"])
        known |= set(re.findall(r"--([\w-]+)", capsys.readouterr().out))
    told = set(re.findall(r"(?<![\w-])--([a-z][\w-]+)", page))
    assert {"place", "ray-address", "host-gpus", "labels", "resources"} <= told <= known
