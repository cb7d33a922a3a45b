from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import aiflow_agents
from aiflow_agents import catalog
from aiflow_agents.cli import doctor as doctor_module
from aiflow_agents.cli import main as door
from aiflow_agents.cli.doctor import Finding, check_backends, check_engine, check_library, check_models, weights_fault
from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import CallError, Reply, Request


def put_model(folder: Path, *, tokenizer: bool = True) -> Path:
    """A model folder whose weights are written by hand, by the published layout of the format."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"__metadata__": {"a": "b"}, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    if tokenizer:
        (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "library"
    for folder in catalog.FOLDERS:
        (root / folder).mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("AIFLOW_PATH", raising=False)
    monkeypatch.setattr(catalog, "library", lambda: root)
    return root


def test_a_sound_model_has_no_fault(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = put_model(tmp_path / "m")
    with safe_open(folder / "model.safetensors", "np") as file:
        assert list(file.keys()) == ["w"]  # the fixture is what the library itself reads
    assert weights_fault(folder) is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: f.unlink(), "no weights: model.safetensors is missing"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "cut off: "),
        (lambda f: f.write_bytes(f.read_bytes()[:20]), "cut off"),
        (lambda f: f.write_bytes(b""), "cut off"),
        (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"), "no safetensors file"),
        (lambda f: f.write_bytes(struct.pack("<Q", 4) + b"[1] "), "no safetensors file"),
        (lambda f: (f.parent / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: Path(f"{f}.index.json").write_text('{"weight_map": {"a": "other.safetensors"}}'), "other.safetensors is missing"),
        (lambda f: Path(f"{f}.index.json").write_text("{"), "cannot be read"),
    ],
)
def test_faults_of_model_folders(library: Path, spoil: Any, words: str) -> None:
    folder = put_model(library / "agents/models/m")
    spoil(folder / "model.safetensors")
    assert words in str(weights_fault(folder))
    (finding,) = check_models()
    assert finding.state == "broken" and words in finding.detail and finding.remedy


def test_models_and_library_when_all_is_well(library: Path) -> None:
    put_model(library / "agents/models/m")
    assert [f.state for f in (*check_models(), *check_library())] == ["ok", "ok"]


def test_the_library_is_missed_and_its_files_are_read(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (library / "agents/t.yaml").write_text("a: b: c")
    monkeypatch.setenv("AIFLOW_PATH", str(tmp_path / "absent"))
    assert [f.state for f in check_library()] == ["ok", "warning", "broken"]
    monkeypatch.setattr(catalog, "library", lambda: None)
    assert next(check_library()).state == "broken"


def test_a_broken_torchvision_is_found_with_the_line_that_removes_it(tmp_path: Path) -> None:
    """In a process of its own: a library that has been imported once cannot be taken back."""
    for name, text in (
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"),
        ("torchaudio", "__version__ = '1'"),
        ("torch", "set_num_threads = lambda n: None\nget_num_threads = lambda: 1\nclass cuda:\n    is_available = lambda: False\n"),
        ("transformers", "__version__ = '0'"),
        ("ray", "raise ImportError('no ray')"),
        ("torchcodec", "__version__ = '1'"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    look = "import dataclasses, json; from aiflow_agents.cli.doctor import check_libraries as check; print(json.dumps([dataclasses.asdict(f) for f in check()]))"
    path = os.pathsep.join(map(str, (tmp_path, Path(aiflow_agents.__file__).parents[1], *filter(None, [os.environ.get("PYTHONPATH")]))))
    said = subprocess.run([sys.executable, "-c", look], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    found = {finding["name"]: finding for finding in json.loads(said.stdout)}
    assert set(found) == {"torch", "torchvision", "torchaudio", "torchcodec", "transformers", "ray"}
    assert {name for name, finding in found.items() if finding["state"] == "broken"} == {"torchvision", "ray"}
    assert "nms does not exist" in found["torchvision"]["detail"]
    assert found["torchvision"]["remedy"].startswith("pip uninstall -y torchvision torchaudio torchcodec")
    assert "inline" in found["ray"]["remedy"]


def test_a_transformers_that_imports_but_has_no_models_is_found(tmp_path: Path) -> None:
    """As it is with a torchvision for CUDA beside a CPU torch: `import transformers` is well, and no model can be had."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "transformers.py").write_text("__version__ = '0'\ndef __getattr__(name):\n    import torchvision\n")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("__version__ = '9'\ndef __getattr__(name):\n    raise OSError('libcuda.so.1: cannot open\\nmore')\n")
    look = "import dataclasses, json; from aiflow_agents.cli.doctor import check_backends as check; print(json.dumps([dataclasses.asdict(f) for f in check()]))"
    path = os.pathsep.join(map(str, (tmp_path, Path(aiflow_agents.__file__).parents[1], *filter(None, [os.environ.get("PYTHONPATH")]))))
    said = subprocess.run([sys.executable, "-c", look], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    theirs, vllm, backends = json.loads(said.stdout)
    assert (theirs["name"], theirs["state"], backends["state"], backends["detail"]) == ("backend transformers", "broken", "ok", "family, http")
    assert "nms does not exist" in theirs["detail"] and theirs["remedy"].startswith("pip uninstall -y torchvision")
    assert (vllm["name"], vllm["state"], vllm["detail"]) == ("backend vllm", "broken", "OSError: libcuda.so.1: cannot open")


def test_what_is_not_installed_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "vllm" else found(name, *more))
    (backends,) = check_backends()
    assert backends.state == "ok" and backends.detail.startswith("family, transformers, http; vllm is not installed (pip install 'aiflow-agents[vllm]'")


class Engine:
    """Answers by the request alone, or, when `spoilt`, by the size of the batch too."""

    spoilt: bool | str = False

    @classmethod
    def load(cls, path: Path) -> Engine:
        return cls()

    def generate(self, requests: Sequence[Request]) -> list[Reply | CallError]:
        if self.spoilt == "refuses":
            return [CallError("failed", "out of luck") for _ in requests]
        extra = len(requests) if self.spoilt else 0
        return [Reply("x", (len(r.messages[0].content), extra), None, 1, 2) for r in requests]


@pytest.mark.parametrize(
    ("spoilt", "state", "words"),
    [(False, "ok", "the same"), (True, "broken", "24 of 24"), ("refuses", "broken", "out of luck")],
)
def test_the_engine_must_not_mind_its_batch(
    library: Path, monkeypatch: pytest.MonkeyPatch, spoilt: bool | str, state: str, words: str
) -> None:
    put_model(library / "agents/models/m")
    module = ModuleType("aiflow_agents.models.family.model")
    module.FamilyModel = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Engine, "spoilt", spoilt)
    (finding,) = check_engine()
    assert finding.state == state and words in finding.detail


def test_no_model_is_a_warning_only(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("aiflow_agents.models.family.model")
    module.FamilyModel = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (finding,) = check_engine()
    assert finding.state == "warning"


def fine() -> Iterator[Finding]:
    yield Finding("one", "ok", "well")


def failing() -> Iterator[Finding]:
    yield Finding("two", "warning", "so so", "do this")
    raise ZeroDivisionError("a\nb")


def mistaken() -> Iterator[Finding]:
    yield from map(mistake, [None])


def mistake(_: None) -> Finding:
    raise UserError("mend it")


def test_the_exit_code_and_what_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor_module, "CHECKS", (fine,))
    assert door.main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok       one: well\nall is well\n"
    monkeypatch.setattr(doctor_module, "CHECKS", (fine, failing, mistaken, fine))
    assert door.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(f["state"], f["detail"]) for f in found] == [
        ("ok", "well"),
        ("warning", "so so"),
        ("broken", "ZeroDivisionError: a"),
        ("broken", "mend it"),
        ("ok", "well"),
    ]
    assert door.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "         -> do this\n" in out and out.endswith("2 broken\n")


def test_machine_python_and_telemetry_are_looked_at() -> None:
    found = [f for check in (doctor_module.check_python, doctor_module.check_machine) for f in check()]
    assert [f.name for f in found][:2] == ["python", "disk"] and found[-1].name == "cores" and int(found[-1].detail) >= 1
