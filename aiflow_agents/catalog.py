"""Where definitions are found by name: teams, models, recipes, topologies, networks and suites.

A name is looked up as an explicit path, then under the current directory, then in each folder of AIFLOW_PATH, then in the folders of
installed plugins, then in the library that comes with the package. The first that has it wins. Nothing found here is ever imported.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Literal

from .errors import NotThere, UnknownName, UserError

Kind = Literal["team", "model", "recipe", "topology", "network", "suite"]
Origin = Literal["path", "here", "AIFLOW_PATH", "plugin", "library"]

PATH_VARIABLE = "AIFLOW_PATH"  # root folders, separated as in PATH, each with agents/, topologies/, evals/
PLUGIN_GROUP = "aiflow_agents.plugins"  # each entry point gives one more root: a path, or a module beside whose file the folders lie
FOLDERS = ("agents", "topologies", "evals")
IN_PYTHON = "python:"  # how config.json calls what no file holds


@dataclass(frozen=True)
class Layout:
    """Where the entries of a kind lie below a root: `<folder>/<name><suffix>`, or `<folder>/<name>/<inside>` for those that are folders."""

    folder: str
    suffix: str = ""
    inside: str = ""


LAYOUTS: dict[Kind, Layout] = {
    "team": Layout("agents", suffix=".yaml"),
    "model": Layout("agents/models", inside="config.json"),
    "recipe": Layout("agents/recipes", suffix=".yaml"),
    "topology": Layout("topologies", suffix=".py"),
    "network": Layout("topologies/networks", suffix=".yaml"),
    "suite": Layout("evals", inside="eval.yaml"),
}


@dataclass(frozen=True)
class Entry:
    """One definition. `path` is absolute: the file, for a suite its eval.yaml, for a model its folder."""

    kind: Kind
    name: str
    path: Path
    origin: Origin

    @property
    def whole(self) -> Path:
        """All that belongs to it: the folder of a suite or a model, the file of anything else."""
        return self.path.parent if self.kind == "suite" else self.path


def find(kind: Kind, name: str, *, base: Path | None = None) -> Entry:
    """The definition that a name or path means.

    What has a slash, a leading dot or tilde, or the suffix of a file, is a path, relative to `base` (default: the current directory).
    Raises UnknownName with the nearest names, NotThere for a path, UserError for what a run folder says was made in Python.
    """
    if name.startswith(IN_PYTHON):
        raise UserError(f"'{name}' was made in Python and is in no file: run it again, or go on with it, from there; see docs/python.md")
    if _is_path(kind, name):
        entry = _at(kind, Path(base or Path.cwd()) / Path(name).expanduser())
        if entry is None:
            raise NotThere(kind, name, (known.name for known in entries(kind)))
        return entry
    for root, origin in roots():
        entry = _scan(root, origin, kind).get(name)
        if entry is not None:
            return entry
    raise UnknownName(kind, name, (known.name for known in entries(kind)))


def entries(kind: Kind | None = None) -> list[Entry]:
    """Everything that `find` finds by name, by kind and name. What another entry of the same name hides is left out."""
    found: dict[tuple[Kind, str], Entry] = {}
    for root, origin in roots():
        for each in LAYOUTS if kind is None else (kind,):
            for name, entry in _scan(root, origin, each).items():
                found.setdefault((each, name), entry)
    order = list(LAYOUTS)
    return sorted(found.values(), key=lambda entry: (order.index(entry.kind), entry.name))


def describe(entry: Entry) -> str:
    """One line about it, read from the file: `description:`, the first line of a docstring, or what a model's card or config says."""
    try:
        if entry.kind == "model":
            return _model_line(entry.path)
        text = entry.path.read_text(encoding="utf-8")
        return _first_line(ast.get_docstring(ast.parse(text)) or "") if entry.kind == "topology" else _yaml_description(text)
    except SyntaxError as error:
        return f"(cannot be read: line {error.lineno}: {error.msg})"
    except (OSError, ValueError) as error:
        return f"(cannot be read: {_first_line(str(error))})"


def roots() -> Iterator[tuple[Path, Origin]]:
    """The folders that names are looked up in, in order, each once."""
    seen: set[Path] = set()
    for root, origin in _all_roots():
        real = root.resolve()
        if real not in seen:
            seen.add(real)
            yield root.absolute(), origin


def library() -> Path | None:
    """The root of the library: inside an installed wheel, or the checkout that the package lies in. None where neither is there."""
    package = Path(__file__).resolve().parent
    for root in (package / "library", package.parent):
        if all((root / folder).is_dir() for folder in FOLDERS):
            return root
    return None


# --- looking ---


def _all_roots() -> Iterator[tuple[Path, Origin]]:
    yield Path.cwd(), "here"
    for part in os.environ.get(PATH_VARIABLE, "").split(os.pathsep):
        if part:
            yield Path(part).expanduser(), "AIFLOW_PATH"
    for plugin in sorted(entry_points(group=PLUGIN_GROUP), key=lambda plugin: plugin.name):
        yield _plugin_root(plugin), "plugin"
    shipped = library()
    if shipped is not None:
        yield shipped, "library"


def _plugin_root(plugin: EntryPoint) -> Path:
    try:
        root = plugin.load()
    except Exception as error:  # whatever a foreign package does when it is imported
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"the plugin '{plugin.name}' ({plugin.value}) cannot be loaded: {why}; mend or uninstall it") from error
    if isinstance(root, ModuleType) and root.__file__:
        return Path(root.__file__).parent
    if isinstance(root, (str, Path)):
        return Path(root)
    raise UserError(f"the plugin '{plugin.name}' ({plugin.value}) gives {type(root).__name__}; expected a folder's path or a module")


def _scan(root: Path, origin: Origin, kind: Kind) -> dict[str, Entry]:
    layout = LAYOUTS[kind]
    try:
        listed = sorted((root / layout.folder).iterdir())
    except OSError:
        return {}
    found = {}
    for path in listed:
        if path.name.startswith((".", "_")):
            continue
        if layout.inside and (path / layout.inside).is_file():
            found[path.name] = Entry(kind, path.name, path / layout.inside if kind == "suite" else path, origin)
        elif layout.suffix and path.suffix == layout.suffix and path.is_file():
            found[path.stem] = Entry(kind, path.stem, path, origin)
    return found


def _is_path(kind: Kind, name: str) -> bool:
    layout = LAYOUTS[kind]
    separators = {os.sep, os.altsep or os.sep}
    return any(s in name for s in separators) or name.startswith((".", "~")) or name.endswith(layout.suffix or layout.inside)


def _at(kind: Kind, path: Path) -> Entry | None:
    layout = LAYOUTS[kind]
    path = Path(os.path.abspath(path))
    if layout.inside:
        folder = path.parent if path.name == layout.inside else path
        if os.path.isfile(folder / layout.inside):
            return Entry(kind, folder.name, folder / layout.inside if kind == "suite" else folder, "path")
    elif os.path.isfile(path):
        if path.suffix != layout.suffix:
            raise UserError(f"{path}: a {kind} is a {layout.suffix} file")
        return Entry(kind, path.stem, path, "path")
    elif os.path.isdir(path):
        raise UserError(f"{path} is a folder; a {kind} is a {layout.suffix} file")
    return None


# --- describing ---


def _yaml_description(text: str) -> str:
    import yaml  # only where something is described

    try:
        data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        return f"(cannot be read: {line}{error.problem})"
    except yaml.YAMLError as error:
        return f"(cannot be read: {_first_line(str(error))})"
    return _first_line(str(data.get("description") or "")) if isinstance(data, dict) else ""


def _model_line(folder: Path) -> str:
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        if text.startswith("---\n"):
            text = text.partition("\n---")[2].partition("\n")[2]  # the card's header is for machines
        for line in text.splitlines():
            if line.strip() and not line.startswith(("#", "|", "<", "!", "-", "```")):
                return line.strip()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    words = [config.get("model_type"), *(f"{config[key]} {word}" for key, word in _SHAPE_WORDS if key in config)]
    return ", ".join(str(word) for word in words if word)


_SHAPE_WORDS = (("num_hidden_layers", "layers"), ("hidden_size", "wide"), ("vocab_size", "tokens"))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
