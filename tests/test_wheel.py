"""The wheel as a stranger gets it: built, installed where nothing else of ours is, and used from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import aiflow_agents

CHECKOUT = Path(aiflow_agents.__file__).resolve().parents[1]
FOLDERS = ("agents", "topologies", "evals")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHECKOUT / "pyproject.toml").is_file(), reason="needs the checkout to build from"),
]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout into which secrets, caches and checkpoints have crept."""
    source = tmp_path_factory.mktemp("source")
    for name in ("aiflow_agents", *FOLDERS):
        shutil.copytree(CHECKOUT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(CHECKOUT / name, source / name)
    for stray in STRAYS:
        (source / stray).parent.mkdir(parents=True, exist_ok=True)
        (source / stray).write_text("secret")
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


STRAYS = (
    "agents/.env",
    "agents/models/.env.local",
    "agents/models/half-trained/checkpoints/step-100.safetensors",
    "agents/models/half-trained/checkpoint-5/model.safetensors",
    "agents/models/half-trained/state.pt",
    "evals/__pycache__/scorer.cpython-311.pyc",
    "topologies/.ipynb_checkpoints/debate.py",
    "aiflow_agents/.env",
)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment holding our wheel, and what we depend on from the running one. A checkout installed there is out of sight:
    Python follows no .pth file of a folder that is itself named in one."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site.stdout.strip()) / "dependencies.pth").write_text("\n".join(sorted(folders)))
    return home


def run(home: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "AIFLOW", "VIRTUAL_ENV"))}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([home / "bin" / command[0], *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done


def test_the_wheel_holds_all_that_is_read_and_nothing_that_is_private(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("aiflow_agents", *FOLDERS):
        target = "" if folder == "aiflow_agents" else "aiflow_agents/library/"
        files = [file.relative_to(CHECKOUT) for file in (CHECKOUT / folder).rglob("*") if file.suffix in (".py", ".yaml", ".safetensors", ".j2", ".css", ".js")]
        wanted = {target + file.as_posix() for file in files if not any(part.startswith(("__", "checkpoint", ".")) for part in file.parts[:-1])}
        assert wanted <= held, f"missing from the wheel: {sorted(wanted - held)}"
    assert not [name for name in held for word in (".env", "__pycache__", "checkpoints/", "checkpoint-", ".ipynb", ".pt") if word in name]
    assert not [name for name in held if name.startswith(FOLDERS)]  # other packages own these names
    assert any(name.endswith("licenses/LICENSE") for name in held) and f"-{aiflow_agents.__version__}-" in wheel.name


def test_it_lists_its_library_from_another_folder(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "python", "-c", "import aiflow_agents; print(aiflow_agents.__file__)").stdout
    assert Path(where.strip()).is_relative_to(installed)
    listed = json.loads(run(installed, tmp_path, "aiflow", "list", "--json").stdout)
    assert all(entry["origin"] == "library" and Path(entry["path"]).is_relative_to(installed) for entry in listed)
    here = json.loads(run(installed, CHECKOUT, "aiflow", "list", "--json").stdout)
    assert {(e["kind"], e["name"]) for e in listed} == {(e["kind"], e["name"]) for e in here} and {e["origin"] for e in here} <= {"here"}
    for topology in [entry for entry in listed if entry["kind"] == "topology"][:1]:
        run(installed, tmp_path, "aiflow", "copy", topology["name"], ".", "--kind", "topology")
        assert (tmp_path / f"{topology['name']}.py").is_file()


@pytest.mark.skipif(
    not all((CHECKOUT / path).is_file() for path in ("evals/specialists/eval.yaml", "agents/specialists.yaml", "aiflow_agents/cli/evaluate.py")),
    reason="there is no suite 'specialists' yet",
)
def test_it_evaluates_a_team_from_another_folder(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "aiflow", "eval", "specialists", "--limit", "20", "--runtime", "inline")
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = (tmp_path / "logs").rglob("summary.json")
    told = json.loads(summary.read_text())
    assert told["suite"] == "specialists" and told["n_tasks"] == 20 and told["arms"] and told["verdicts"]
