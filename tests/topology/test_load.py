"""From a name or a path to a topology with its parameters; and every mistake in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aiflow_agents.errors import ConfigError, UnknownName, UserError
from aiflow_agents.topology.load import load_class, load_topology

ECHO = '''"""The first member answers."""

from aiflow_agents.topology.base import Topology


class Echo(Topology):
    times: int = {times}

    async def run(self, task, team):
        return await next(iter(team)).ask(task.question)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "topologies").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIFLOW_PATH", raising=False)
    return tmp_path


def test_by_name_by_path_and_with_parameters_as_text(here: Path, stage: Any) -> None:
    (here / "topologies/echo.py").write_text(ECHO.format(times=2))
    (here / "other.py").write_text(ECHO.format(times=3))
    found: list[Any] = [load_topology("echo"), load_topology("./other.py"), load_topology("echo", {"times": "7"})]
    assert [(topology.name(), topology.times) for topology in found] == [("echo", 2), ("echo", 3), ("echo", 7)]
    assert type(load_topology("echo")) is type(found[0])  # one class a file, so that equal topologies are equal
    assert stage.run(found[0], stage.team(ann="phone"))[0].answer == "ann:question"


def test_an_edited_file_is_read_anew(here: Path) -> None:
    file = here / "topologies/echo.py"
    file.write_text(ECHO.format(times=2))
    first: Any = load_topology("echo")
    file.write_text(ECHO.format(times=5))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000))
    second: Any = load_topology("echo")
    assert (first.times, second.times) == (2, 5)


def test_the_last_topology_written_in_a_file_is_meant(here: Path) -> None:
    (here / "two.py").write_text(ECHO.format(times=1) + "\n\nclass Loud(Echo):\n    pass\n\n\nfrom aiflow_agents.evals.rivals import SelfTalk\n")
    assert load_class(here / "two.py").__name__ == "Loud"


def test_unknown_names_and_parameters_offer_the_nearest(here: Path) -> None:
    with pytest.raises(UnknownName, match="no topology named 'debat'; did you mean debate"):
        load_topology("debat")
    with pytest.raises(UserError, match="no parameter of topology 'debate' named 'round'; did you mean rounds"):
        load_topology("debate", {"round": 3})


def test_a_value_of_the_wrong_kind_is_named_with_what_was_expected(here: Path) -> None:
    with pytest.raises(UserError, match=r"^topology 'debate', parameter rounds: expected a valid integer.* \(got 'many'\)$"):
        load_topology("debate", {"rounds": "many"})
    with pytest.raises(UserError, match="parameter threshold"):
        load_topology("cascade", {"threshold": "low"})


def test_files_that_define_nothing_or_cannot_be_read(here: Path) -> None:
    (here / "empty.py").write_text("from aiflow_agents.topology.base import Topology\n")
    with pytest.raises(ConfigError, match=r"empty.py: defines no Topology: expected `class Name\(Topology\)`"):
        load_topology("./empty.py")
    (here / "torn.py").write_text("x = 1\ndef run(:\n")
    with pytest.raises(ConfigError, match=r"torn.py:2: not valid Python: "):
        load_topology("./torn.py")
    (here / "broken.py").write_text("import json\n1 / 0\n")
    for _ in range(2):  # and it is not half-remembered
        with pytest.raises(ConfigError, match=r"broken.py:2: ZeroDivisionError: division by zero"):
            load_topology("./broken.py")


def test_a_loaded_topology_cannot_be_changed() -> None:
    topology: Any = load_topology("debate")
    with pytest.raises(ValueError, match="frozen"):
        topology.rounds = 7
    assert topology.model_copy(update={"rounds": 7}).rounds == 7
