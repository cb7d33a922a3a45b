"""Where a benchmark's rows come from: a file, a folder of files one or more a split, or a data set of the Hugging Face hub.

Files are JSONL, JSON (a list of objects), CSV with a header, or parquet. In a folder the names of files say the split, as in the hub's repositories:
`main/test-00000-of-00001.parquet`, `train.jsonl`. A single file is taken whole, whatever its name.
"""

from __future__ import annotations

import csv
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiflow_agents.errors import ConfigError, UserError

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "dev", "test": "test"}
HUB = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")  # owner/name, and which configuration of it
LARGEST_CELL = 2**24  # characters; csv's own limit is a bad answer to a long text


class Row(NamedTuple):
    """One row, and where it stands: for mistakes that show later. `line` is None where a file has none; then `number` counts rows from 0."""

    data: dict[str, Any]
    file: str
    line: int | None
    number: int


Source = Mapping[str, Callable[[], list[Row]]]  # split -> its rows, read when called


def open_source(place: str, base: Path, home: str = "") -> Source:
    """The splits at a place: a path, relative to `base`, or `owner/name:configuration` on the hub.

    `home` is the name that the data set has on the hub: where a folder holds several configurations, the one named there is meant. Raises UserError,
    in one line and with the remedy, where nothing can be read.
    """
    path = (base / Path(place).expanduser()).absolute()
    if path.is_file():
        return {"test": lambda: list(_read(path))}
    if path.is_dir():
        inner = path / home.partition(":")[2]
        return _folder(inner if home and inner.is_dir() else path)
    if HUB.fullmatch(place) and not place.startswith((".", "~")) and Path(place).suffix not in _READERS:
        return _hub(place)
    raise UserError(f"there is no file or folder {path}; give one with the data set's own columns: --data PATH")


def _folder(path: Path) -> Source:
    """The files of a folder and its folders, by the split in their names."""
    found: dict[str, list[Path]] = {}
    files = [file for file in sorted(path.rglob("*")) if file.suffix in _READERS and file.is_file() and not file.name.startswith((".", "_"))]
    files = [file for file in files if file.name not in ("dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json")]
    for file in files:
        words = re.split(r"[^a-z]+", str(file.relative_to(path).with_suffix("")).lower())[::-1]  # the file's own name before that of its folder
        split = next((SPLITS[word] for word in words if word in SPLITS), "test" if len(files) == 1 else None)
        if split and "auxiliary" not in words:
            found.setdefault(split, []).append(file)
    for split, of_split in found.items():
        if len(folders := {file.parent for file in of_split}) > 1:
            names = ", ".join(sorted(str(folder.relative_to(path)) for folder in folders))
            raise UserError(f"{path} has {split} files in several folders ({names}); name the one that is meant with --data")
    if not found:
        kinds, names = ", ".join(_READERS), "train, validation, dev or test"
        raise UserError(f"{path} has no data files whose names say {names} ({kinds}); rename them, or give one file with --data")
    return {split: lambda of_split=of_split: [row for file in of_split for row in _read(file)] for split, of_split in found.items()}  # type: ignore[misc]


def _hub(place: str) -> Source:
    """A data set by its name on the hub, or from the cache that `datasets` keeps."""
    name, _, configuration = place.partition(":")
    remedy = f"give a local file or folder with the columns of {name}: --data PATH"
    try:
        import datasets
    except ImportError:
        raise UserError(f"there is no file or folder '{place}', and to load it from the Hugging Face hub takes `pip install 'aiflow-agents[data]'`; "
                        f"or {remedy}") from None
    if not _reachable():
        cached = "set HF_HUB_OFFLINE=1 if it was loaded here before"
        raise UserError(f"there is no file or folder '{place}', and the Hugging Face hub cannot be reached from here; {remedy}, or {cached}")
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # whatever its backends raise: no network, no such name, a gate
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise UserError(f"{place} cannot be loaded from the Hugging Face hub ({type(error).__name__}: {why[:200].rstrip('.')}); {remedy}") from None
    return {SPLITS[split]: lambda split=split: _rows(loaded[split], place) for split in loaded if split in SPLITS}  # type: ignore[misc]


def _reachable() -> bool:
    """False where the hub has no address, which `datasets` would find out in half a minute of retries. Proxies and caches are left to it."""
    if any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        return bool(socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname, 443))
    except OSError:
        return False


def _rows(items: Any, file: str) -> list[Row]:
    return [Row(item, file, None, number) for number, item in enumerate(items)]


# --- files ---


def _read(path: Path) -> Iterator[Row]:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path}: a data file is one of {', '.join(_READERS)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError:
        raise ConfigError("this is not UTF-8 text", file=path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", file=path) from None


def _jsonl(path: Path) -> Iterator[Row]:
    number = 0
    for line, text in enumerate(path.read_bytes().split(b"\n"), 1):  # not splitlines(): a text may hold other line separators
        if text.strip():
            try:
                data = json.loads(text)
            except UnicodeDecodeError:
                raise ConfigError("this is not UTF-8 text", file=path, line=line) from None
            except ValueError as error:
                raise ConfigError(f"not valid JSON: {getattr(error, 'msg', error)}", file=path, line=line) from None
            if not isinstance(data, dict):
                raise ConfigError("expected an object, a value for each column", file=path, line=line)
            yield Row(data, str(path), line, number)
            number += 1


def _json(path: Path) -> Iterator[Row]:
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # lines of JSON under the name of one
            yield from _jsonl(path)
            return
        raise ConfigError(f"not valid JSON: {error.msg}", file=path, line=error.lineno) from None
    if isinstance(items, dict) and len(items) == 1 and isinstance(next(iter(items.values())), list):
        items = next(iter(items.values()))
    for number, data in enumerate(items if isinstance(items, list) else [items]):
        if not isinstance(data, dict):
            raise ConfigError(f"row {number + 1}: expected an object, a value for each column", file=path)
        yield Row(data, str(path), None, number)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LARGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            line = 2
            for number, data in enumerate(reader):
                if None in data or None in data.values():
                    raise ConfigError(f"this row has not the {len(reader.fieldnames or ())} columns of the header", file=path, line=line)
                yield Row(data, str(path), line, number)
                line = reader.line_num + 1
        except csv.Error as error:
            raise ConfigError(f"not valid CSV: {error}", file=path, line=reader.line_num) from None


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        remedy = "or give the same columns as JSONL, JSON or CSV"
        raise UserError(f"{path}: reading parquet takes `pip install 'aiflow-agents[data]'`; {remedy}") from None
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ConfigError(f"not valid parquet: {str(error).splitlines()[0]}", file=path) from None
    yield from _rows(table.to_pylist(), str(path))


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
