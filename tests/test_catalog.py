from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiflow_agents import catalog
from aiflow_agents.catalog import Entry, describe, entries, find
from aiflow_agents.errors import UnknownName, UserError
from tests.conftest import put


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Four empty roots, one for each origin, and nothing else on the machine."""
    roots = {name: tmp_path / name for name in ("here", "AIFLOW_PATH", "plugin", "library")}
    for root in roots.values():
        root.mkdir()
    monkeypatch.chdir(roots["here"])
    monkeypatch.setenv("AIFLOW_PATH", os.pathsep.join([str(tmp_path / "absent"), "", str(roots["AIFLOW_PATH"])]))
    monkeypatch.setattr(catalog, "library", lambda: roots["library"])
    plugins(monkeypatch, tmp_path, f"where = {str(roots['plugin'])!r}\n")
    return roots


def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, value: str = "aiflow_test_plugin:where") -> None:
    put(tmp_path, "site/aiflow_test_plugin.py", source)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "aiflow_test_plugin", raising=False)
    point = importlib.metadata.EntryPoint("extra", value, catalog.PLUGIN_GROUP)
    monkeypatch.setattr(catalog, "entry_points", lambda group: [point])


def test_the_first_root_that_has_it_wins(places: dict[str, Path]) -> None:
    order = ["here", "AIFLOW_PATH", "plugin", "library"]
    for origin in reversed(order):
        file = put(places[origin], "topologies/debate.py")
        assert find("topology", "debate") == Entry("topology", "debate", file, origin)  # type: ignore[arg-type]
        assert [e.origin for e in entries("topology")] == [origin]


def test_a_path_comes_before_every_root_and_only_looks_like_one(places: dict[str, Path]) -> None:
    put(places["library"], "topologies/debate.py")
    mine = put(places["here"], "debate.py")
    assert find("topology", "debate").origin == "library"  # ./debate.py is no topologies/debate.py
    for name in ("debate.py", "./debate.py", str(mine)):
        assert find("topology", name) == Entry("topology", "debate", mine, "path")
    elsewhere = put(places["plugin"], "teams/t.yaml")
    assert find("team", "t.yaml", base=elsewhere.parent).path == elsewhere


def test_each_kind_lies_where_it_should(places: dict[str, Path]) -> None:
    files = {
        "team": put(places["library"], "agents/a.yaml"),
        "recipe": put(places["library"], "agents/recipes/a.yaml"),
        "model": put(places["library"], "agents/models/a/config.json", "{}").parent,
        "topology": put(places["library"], "topologies/a.py"),
        "network": put(places["library"], "topologies/networks/a.yaml"),
        "suite": put(places["library"], "evals/a/eval.yaml"),
    }
    for noise in ("agents/_b.yaml", "agents/.c.yaml", "topologies/__init__.py", "agents/models/empty/readme", "evals/notes.yaml", "topologies/b.txt"):
        put(places["library"], noise)
    assert {e.kind: e.path for e in entries()} == files and len(entries()) == len(files)
    assert [e.kind for e in entries()] == list(catalog.LAYOUTS)
    assert find("suite", "a").whole == files["suite"].parent
    for kind, path in files.items():
        assert find(kind, "a").path == path and find(kind, str(path)).path == path and find(kind, str(path)).name == "a"  # type: ignore[arg-type]
    assert find("suite", str(files["suite"].parent)).path == files["suite"]


def test_unknown_names_get_the_nearest(places: dict[str, Path]) -> None:
    put(places["library"], "topologies/debate.py")
    put(places["here"], "topologies/star.py")
    with pytest.raises(UnknownName, match="no topology named 'debat'; did you mean debate"):
        find("topology", "debat")
    with pytest.raises(UnknownName, match="there is no topology at ./debate.py; did you mean debate"):
        find("topology", "./debate.py")
    with pytest.raises(UnknownName, match="known: debate, star"):
        find("topology", "zzzzzzzz")
    for name in ("", "x" * 5000, "a\0b", "a/" + "x" * 5000):
        with pytest.raises(UnknownName):
            find("topology", name)


def test_paths_of_the_wrong_sort(places: dict[str, Path]) -> None:
    put(places["here"], "a/t.txt")
    with pytest.raises(UserError, match=r"a team is a \.yaml file"):
        find("team", "a/t.txt")
    with pytest.raises(UserError, match="is a folder"):
        find("team", "./a")
    with pytest.raises(UnknownName):
        find("model", "./a")


def test_the_same_root_twice_is_listed_once(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "library", lambda: places["here"])
    monkeypatch.setenv("AIFLOW_PATH", str(places["here"]))
    assert [origin for _, origin in catalog.roots()] == ["here", "plugin"]


def test_a_plugin_may_give_a_module_and_a_broken_one_is_named(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins(monkeypatch, tmp_path, "", value="aiflow_test_plugin")
    put(tmp_path, "site/agents/mine.yaml")
    assert find("team", "mine").origin == "plugin"
    for source, words in (("where = 3", "gives int"), ("raise RuntimeError('boom')", "RuntimeError: boom")):
        plugins(monkeypatch, tmp_path, source)
        with pytest.raises(UserError, match=f"plugin 'extra' .*{words}"):
            entries()


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        ("topologies/a.py", '"""\nEveryone talks.\n\nMore."""\nraise SystemExit("imported")\n', "Everyone talks."),
        ("topologies/a.py", "x = 1\n", ""),
        ("topologies/a.py", "x = (\n", "(cannot be read: line 1"),
        ("agents/a.yaml", "description: >\n  Four\n  friends\nmembers: []\n", "Four friends"),
        ("agents/a.yaml", "a: b: c\n", "(cannot be read: line 1"),
        ("agents/a.yaml", "- 1\n", ""),
        ("agents/a.yaml", "a: \x07\n", "(cannot be read"),
        ("evals/a/eval.yaml", "description: all of them\n", "all of them"),
        ("agents/models/a/config.json", '{"model_type": "qwen3", "num_hidden_layers": 4, "hidden_size": 128}', "qwen3, 4 layers, 128 wide"),
        ("agents/models/a/config.json", "{", "(cannot be read"),
    ],
)
def test_descriptions(places: dict[str, Path], path: str, text: str, line: str) -> None:
    put(places["library"], path, text)
    (entry,) = entries()
    said = describe(entry)
    assert said.startswith(line) and bool(said) == bool(line) and "\n" not in said


def test_a_model_speaks_through_its_card(places: dict[str, Path]) -> None:
    put(places["library"], "agents/models/a/config.json", "{}")
    put(places["library"], "agents/models/a/README.md", "---\nlicense: x\n---\n\n# A\n\nKnows how to sort.\n")
    assert describe(find("model", "a")) == "Knows how to sort."


def test_the_library_of_a_checkout_is_the_repository() -> None:
    root = catalog.library()
    assert root is not None and (root / "aiflow_agents").is_dir() or root == Path(catalog.__file__).parent / "library"


def test_importing_the_ground_floor_is_light() -> None:
    heavy = "('torch', 'ray', 'transformers', 'pydantic', 'yaml')"
    code = f"import sys, aiflow_agents.catalog, aiflow_agents.errors; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
