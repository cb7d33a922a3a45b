from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import typer

from aiflow_agents import __version__, catalog
from aiflow_agents.cli import Interrupted
from aiflow_agents.cli import main as door
from aiflow_agents.errors import ConfigError
from tests.conftest import put


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory beside a library of one of each."""
    library, here = tmp_path / "library", tmp_path / "here"
    put(library, "agents/friends.yaml", "description: Four friends\nmembers: []\n")
    put(library, "agents/models/ada/config.json", '{"model_type": "qwen3"}')
    put(library, "agents/models/ada/README.md", "# Ada\n\nKnows sums.\n")
    put(library, "agents/recipes/ada.yaml", "description: Makes ada\n")
    put(library, "topologies/debate.py", '"""Everyone answers, then again."""\n')
    put(library, "topologies/networks/home.yaml", "description: Wi-Fi\n")
    put(library, "evals/friends/eval.yaml", "description: Are they any good?\n")
    put(library, "evals/friends/data.jsonl", "{}\n")
    put(library, "evals/friends/__pycache__/scorer.pyc", "x")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("AIFLOW_PATH", raising=False)
    monkeypatch.setattr(catalog, "library", lambda: library)
    monkeypatch.setattr(catalog, "entry_points", lambda group: [])
    return here


def test_list_says_what_there_is_and_where_it_comes_from(place: Path, aiflow: Any) -> None:
    put(place, "topologies/debate.py", '"""Mine."""\n')
    code, out, err = aiflow("list")
    rows = [line.split(maxsplit=3) for line in out.splitlines()]
    assert code == 0 and not err
    assert rows == [
        ["team", "friends", "library", "Four friends"],
        ["model", "ada", "library", "Knows sums."],
        ["recipe", "ada", "library", "Makes ada"],
        ["topology", "debate", "here", "Mine."],
        ["network", "home", "library", "Wi-Fi"],
        ["suite", "friends", "library", "Are they any good?"],
    ]
    for word in ("topology", "topologies", "topologys"):
        assert aiflow("list", word)[1] == "topology  debate  here  Mine.\n"


def test_list_as_json(place: Path, aiflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = aiflow("list", "--json", "models")
    (record,) = json.loads(out)
    assert Path(record.pop("path")).name == "ada"
    assert record == {"kind": "model", "name": "ada", "origin": "library", "description": "Knows sums."}
    monkeypatch.setenv("AIFLOW_LIST_JSON", "1")
    assert json.loads(aiflow("list", "models")[1])[0]["name"] == "ada"


def test_show_prints_all_that_a_name_means(place: Path, aiflow: Any) -> None:
    _, out, _ = aiflow("show", "friends")
    assert "# team friends (library)" in out and "members: []" in out and "# suite friends" in out and "any good?" in out
    _, out, _ = aiflow("show", "friends", "--kind", "suite")
    assert "any good?" in out and "members" not in out
    _, out, _ = aiflow("show", "ada", "--kind", "model")
    assert "Knows sums." in out
    records = json.loads(aiflow("show", "friends", "--json")[1])
    assert [r["kind"] for r in records] == ["team", "suite"] and records[0]["text"].startswith("description: Four")


def test_a_path_means_the_kind_whose_folder_it_lies_in(place: Path, aiflow: Any) -> None:
    file = put(place, "networks/mine.yaml", "description: x\n")
    assert "# network mine (path)" in aiflow("show", str(file))[1]
    assert "# topology d (path)" in aiflow("show", str(put(place, "d.py")))[1]
    code, _, err = aiflow("show", str(put(place, "notes.txt")))
    assert code == 2 and "is a .yaml file" in err


def test_copy_gives_an_editable_file_that_is_then_found(place: Path, aiflow: Any) -> None:
    code, out, _ = aiflow("copy", "debate", ".")
    assert (code, out) == (0, "./debate.py\nuse it with: --topology ./debate.py\n")
    assert catalog.find("topology", "./debate.py").path == place / "debate.py"
    assert aiflow("copy", "debate", "topologies/mine.py")[0] == 0
    assert catalog.find("topology", "mine").origin == "here"
    assert aiflow("copy", "home")[1].endswith("--network ./home.yaml\n") and (place / "home.yaml").is_file()


def test_copy_takes_the_whole_folder_of_a_suite(place: Path, aiflow: Any) -> None:
    code, out, _ = aiflow("copy", "friends", "--kind", "suite")
    assert code == 0 and out.endswith("aiflow eval ./friends\n")
    assert sorted(p.name for p in (place / "friends").iterdir()) == ["data.jsonl", "eval.yaml"]
    assert catalog.find("suite", "./friends").path == place / "friends/eval.yaml"


def test_copy_overwrites_only_when_told(place: Path, aiflow: Any) -> None:
    aiflow("copy", "debate")
    mine = put(place, "debate.py", "mine")
    code, _, err = aiflow("copy", "debate")
    assert code == 2 and "exists already" in err and "--force" in err and mine.read_text() == "mine"
    assert aiflow("copy", "debate", "--force")[0] == 0 and mine.read_text() != "mine"
    code, _, err = aiflow("copy", "./debate.py", ".", "--force")
    assert code == 2 and "itself" in err and mine.read_text()
    (place / "home.yaml").mkdir()
    put(place, "home.yaml/home.yaml/x")
    code, _, err = aiflow("copy", "home", ".", "--force")
    assert code == 2 and "is a folder" in err


def test_copy_asks_when_a_name_means_two_things(place: Path, aiflow: Any) -> None:
    code, out, err = aiflow("copy", "friends")
    assert (code, out) == (2, "") and "a team and a suite" in err and "--kind" in err and not list(place.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("show", "debat"), "did you mean debate?"),
        (("copy", "debate", "--kind", "topolgy"), "did you mean topology?"),
        (("list", "modles"), "did you mean model?"),
        (("list", "--jsn"), "--json"),
        (("lst",), "'list'"),
        (("show",), "name"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(place: Path, aiflow: Any, args: tuple[str, ...], words: str) -> None:
    code, out, err = aiflow(*args)
    assert code == 2 and not out and words in err
    assert err.startswith("aiflow: ") and err.count("\n") == 1


# --- the door itself ---


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Registers a function, or a typer app, as `aiflow probe`."""

    def register(function: Any) -> None:
        module = ModuleType("aiflow_probe")
        module.probe = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "aiflow_probe", module)
        monkeypatch.setitem(door.COMMANDS, "probe", ("aiflow_probe:probe", "Probes."))

    return register


def raising(error: BaseException) -> Callable[[], None]:
    def probe() -> None:
        raise error

    return probe


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("expected a number", file="t.yaml", line=3, key="rounds"), 2, "aiflow: t.yaml:3: rounds: expected a number\n"),
        (ConfigError("two\nlines"), 2, "aiflow: two lines\n"),
        (Interrupted("aiflow eval --resume logs/x"), 130, "aiflow: interrupted; continue with: aiflow eval --resume logs/x\n"),
        (KeyboardInterrupt(), 130, "aiflow: interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device", "logs/x"), 2, "aiflow: the disk is full while writing logs/x;"),
        (RuntimeError("sqlite: database or disk is full"), 2, "aiflow: the disk is full;"),
        (OSError(errno.EROFS, "Read-only file system", "/ro/x"), 2, "aiflow: /ro/x cannot be used: Read-only file system; name another place"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "aiflow: /root/x cannot be used: Permission denied"),
        (typer.Exit(1), 1, ""),
        (typer.BadParameter("no"), 2, "aiflow: Invalid value: no"),
    ],
)
def test_each_error_has_its_line_and_its_code(command: Any, aiflow: Any, error: BaseException, code: int, line: str) -> None:
    command(raising(error))
    got, out, err = aiflow("probe")
    assert got == code and out == "" and err.startswith(line) and err.count("\n") == bool(line)


def test_our_own_bugs_keep_their_traceback(command: Any, aiflow: Any) -> None:
    for error in (ValueError("bug"), OSError(errno.EACCES, "denied")):
        command(raising(error))
        with pytest.raises(type(error)):
            aiflow("probe")


def test_options_come_from_variables_and_the_return_value_is_the_code(command: Any, aiflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(max_tokens: Annotated[int, typer.Option()] = 3) -> int:
        return max_tokens

    command(probe)
    assert aiflow("probe")[0] == 3
    monkeypatch.setenv("AIFLOW_PROBE_MAX_TOKENS", "7")
    assert aiflow("probe")[0] == 7
    assert aiflow("probe", "--max-tokens", "5")[0] == 5
    assert "AIFLOW_PROBE_MAX_TOKENS" in aiflow("probe", "--help")[1]
    monkeypatch.setenv("AIFLOW_PROBE_MAX_TOKENS", "many")
    code, _, err = aiflow("probe")
    assert code == 2 and "max-tokens" in err and err.count("\n") == 1


def test_an_app_of_subcommands(command: Any, aiflow: Any) -> None:
    app = typer.Typer()
    app.command("engine")(lambda: typer.echo("fast"))
    app.command("overhead")(lambda: typer.echo("small"))
    command(app)
    assert aiflow("probe", "overhead")[:2] == (0, "small\n")
    code, out, _ = aiflow("probe", "--help")
    assert code == 0 and "engine" in out and "overhead" in out


def test_help_lists_every_command_without_loading_any(aiflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("aiflow_agents.cli.") and name != "aiflow_agents.cli.main":
            monkeypatch.delitem(sys.modules, name)
    code, out, _ = aiflow("--help")
    assert code == 0 and all(f"  {name} " in out and about in out for name, (_, about) in door.COMMANDS.items())
    assert not [name for name in sys.modules if name.startswith("aiflow_agents.cli.") and name != "aiflow_agents.cli.main"]
    assert aiflow("--version")[1] == f"aiflow {__version__}\n"
    assert aiflow()[0] == 2


WITH_PACKAGE = {**os.environ, "PYTHONPATH": str(Path(catalog.__file__).parents[1])}


def test_help_imports_nothing_heavy() -> None:
    heavy = "torch transformers ray vllm rich pydantic yaml numpy scipy jinja2 httpx"
    code = (
        "import sys; from aiflow_agents.cli.main import main; code = main(['--help'])\n"
        f"print([name for name in {heavy!r}.split() if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=WITH_PACKAGE)
    assert done.returncode == 0 and done.stderr.strip() == "[]"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    for i in range(40):
        put(tmp_path, f"agents/team-{i}.yaml", f"description: {'x' * 5000}\n")
    code = "import sys; from aiflow_agents.cli.main import main; sys.exit(main(['list', '--json']))"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=WITH_PACKAGE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 141


def test_telemetry_is_off_unless_the_user_says_otherwise(command: Any, aiflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    for name in ("VLLM_NO_USAGE_STATS", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    command(lambda: None)
    aiflow("probe")
    assert [os.environ[name] for name in door.TELEMETRY_OFF] == ["1", "1", "1"]
