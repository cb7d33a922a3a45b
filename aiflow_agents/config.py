"""The user's files: YAML into typed models, Python into modules, and every mistake in them into one line: file, line, key, what was expected.

Scalars are read by the YAML 1.2 core schema, not PyYAML's 1.1: `no` and `12:30` and `2024-01-01` are text, `1e-3` is a number, `010` is ten.
A key given twice is refused, where PyYAML silently keeps the last one.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, RootModel, ValidationError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .errors import ConfigError

T = TypeVar("T", bound=BaseModel)
Loc = tuple[int | str, ...]

_TAG = "tag:yaml.org,2002:"
_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)
_RESOLVERS: dict[Any, list[tuple[str, re.Pattern[str]]]] = {}
for _name, _pattern, _first in _CORE_SCHEMA:
    for _letter in _first:
        _RESOLVERS.setdefault(_letter, []).append((_TAG + _name, re.compile(rf"(?:{_pattern})\Z")))


def load_yaml(path: Path, model: type[T]) -> T:
    """Read one YAML file as a `model`.

    Raises ConfigError with file, line and key: no such file, not YAML, a key twice, an unknown key (with the nearest known one), a missing
    key, a value of the wrong kind. Validators of the model see `info.context["file"]`.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}; expected a YAML file", file=path) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("this is not UTF-8 text", file=path, line=raw.count(b"\n", 0, error.start) + 1) from None
    return parse_yaml(text, model, file=path)


def parse_yaml(text: str, model: type[T], *, file: str | Path | None = None) -> T:
    """The same for text that is already in memory; `file` is the name that errors give it."""
    try:
        data, root = _read(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "cannot be parsed"
        raise ConfigError(f"not valid YAML: {what}", file=file, line=mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"not valid YAML: {error.reason}", file=file, line=line) from None
    except RecursionError:
        raise ConfigError("not valid YAML: nested too deeply", file=file) from None
    try:
        return model.model_validate({} if data is None else data, context={"file": file})
    except ValidationError as error:
        raise _config_error(error, model, root, file) from None


def line_of(path: Path, *keys: int | str) -> int:
    """The line of a key in a file that `load_yaml` has read, for mistakes that show only later; of the last one on the way that is there."""
    return _locate(_read(path.read_bytes().decode("utf-8-sig"))[1], keys)[0]


def dump_yaml(value: BaseModel | Mapping[str, Any] | Sequence[Any]) -> str:
    """YAML text that `load_yaml` reads back as the same value; keys keep their order."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


# --- reading ---


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, AttributeError, TypeError) as error:  # `!!int abc`, `!!bool 7`, a number of 5,000 digits
            raise ConstructorError(None, None, f"{node.tag.removeprefix(_TAG)} cannot be read: {error}", node.start_mark) from None

    def read_int(self, node: ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text.startswith(("0x", "0o")) else int(text, 10)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS  # so that it quotes exactly what the loader would not read as text

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def write_text(self, text: str) -> ScalarNode:
        # YAML 1.1 breaks lines at these three as well, and quotes other than double ones do not keep them
        return self.represent_scalar(_TAG + "str", text, style='"' if any(c in text for c in "\x85\u2028\u2029") else None)


_Loader.add_constructor(_TAG + "int", _Loader.read_int)
_Dumper.add_representer(str, _Dumper.write_text)


def _read(text: str) -> tuple[Any, Node | None]:
    """The plain data, and the tree of nodes that knows where each part stands."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, None
        _refuse_duplicates(loader, root)
        return loader.construct_document(root), root
    finally:
        loader.dispose()


def _refuse_duplicates(loader: _Loader, root: Node) -> None:
    """Walks every node once, however often aliases repeat it."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            waiting += node.value
        elif isinstance(node, MappingNode):
            lines: dict[Hashable, int] = {}
            for key, value in node.value:
                waiting += [key, value]
                if not isinstance(key, ScalarNode):
                    continue  # a list or a mapping as a key: the constructor refuses it with its place
                name = ("<<",) if key.tag == _TAG + "merge" else loader.construct_object(key)
                if name in lines:
                    raise ConstructorError(None, None, f"the key '{key.value}' stands twice, first in line {lines[name]}", key.start_mark)
                lines[name] = key.start_mark.line + 1


# --- explaining ---


def _config_error(error: ValidationError, model: type[BaseModel], root: Node | None, file: str | Path | None) -> ConfigError:
    """The most telling of pydantic's complaints: a misspelt key explains the missing one beside it, so unknown keys come first."""
    found = error.errors(include_url=False)
    first = min(found, key=lambda e: e["type"] != "extra_forbidden")
    line, path = _locate(root, first["loc"])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return ConfigError(_message(first, model) + more, file=file, line=line, key=key or None)


def _message(error: Any, model: type[BaseModel]) -> str:
    kind, loc = error["type"], error["loc"]
    if kind == "extra_forbidden":
        known = sorted({name for owner in _models_at(model, loc[:-1]) for name in _keys(owner)})
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        return f"unknown key; did you mean '{near[0]}'?" if near else f"unknown key; expected one of {', '.join(known) or 'none'}"
    if kind == "missing":
        owners = _models_at(model, loc[:-1])
        fields = [field for owner in owners for name, field in _keys(owner).items() if name == loc[-1]]
        return "this key is missing" + next((f"; expected {wanted}" for field in fields if (wanted := _wanted(field))), "")
    if kind in ("value_error", "assertion_error"):
        return str(error["msg"]).partition(", ")[2] or str(error["msg"])
    expected = str(error["msg"]).replace("Input should be", "expected").replace(" or instance of ", " or ")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        expected = "expected keys and values"
    shown = repr(error["input"])
    return f"{expected}, found {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _wanted(field: Any) -> str:
    """What a key is for, or else the words it may have."""
    words = [repr(word) for word in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
    return field.description or (f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words))


def _locate(root: Node | None, loc: Iterable[int | str]) -> tuple[int, Loc]:
    """(line, key path) of a pydantic location. Parts that name a branch of a union and not a place in the file are left out."""
    line, node, path = 1, root, []
    parts = list(loc)
    for i, part in enumerate(parts):
        step = _step(node, part)
        if step is not None:
            path.append(part)
            line, node = step
        elif i == len(parts) - 1 and part != "[key]" and (root is None or isinstance(node, MappingNode)):
            path.append(part)  # a missing key: the line of the mapping that lacks it
    return line, tuple(path)


def _step(node: Node | None, part: int | str) -> tuple[int, Node] | None:
    if isinstance(node, SequenceNode) and isinstance(part, int) and 0 <= part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    if isinstance(node, MappingNode):
        for key, value in reversed(node.value):  # merged keys stand first, a mapping's own ones override them
            if isinstance(key, ScalarNode) and key.value == str(part):
                return key.start_mark.line + 1, value
    return None


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _models_at(kind: Any, loc: Loc) -> list[type[BaseModel]]:
    """The models that may stand at a location below an annotation: several where there is a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if issubclass(kind, RootModel):
            return _models_at(kind.model_fields["root"].annotation, loc)
        if not loc:
            return [kind]
        fields = _keys(kind)
        # what is no field here is the name of a union's branch, which stands in the location and not in the file
        return _models_at(fields[str(loc[0])].annotation if loc[0] in fields else kind, loc[1:])
    origin = get_origin(kind)
    if origin is None or origin is Literal:
        return []
    if isinstance(origin, type) and issubclass(origin, Iterable):  # a list, a tuple, a dict: its index or key is one part
        return [found for inner in get_args(kind) for found in _models_at(inner, loc[1:])] if loc else []
    return [found for inner in get_args(kind) for found in _models_at(inner, loc)]


def load_python(path: Path, name: str) -> ModuleType:
    """Run a Python file, which is the user's own code, as the module `name`. Raises ConfigError with the line where it fails.

    The module is in `sys.modules` from then on, as what it defines can be pickled or described only so.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError("no such file", file=path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            raise ConfigError(f"not valid Python: {error.msg}", file=path, line=error.lineno) from None
        if not isinstance(error, Exception):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise ConfigError(f"{type(error).__name__}: {error}", file=path, line=lines[-1] if lines else None) from error
    return module
