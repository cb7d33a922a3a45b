from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator

from aiflow_agents.config import _read, dump_yaml, load_yaml, parse_yaml
from aiflow_agents.errors import ConfigError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Member(Strict):
    model: str = Field(description="a name from `aiflow list`")
    tier: Literal["device", "edge", "cloud"] = "device"
    weight: float = 1.0


class Wifi(Strict):
    kind: Literal["wifi"]
    rate_bps: int


class Wire(Strict):
    kind: Literal["wire"]
    metres: int


class Team(Strict):
    members: dict[str, Member]
    rounds: int = 2
    spare: list[str | Member] = []
    links: list[Annotated[Wifi | Wire, Field(discriminator="kind")]] = []

    @field_validator("rounds")
    @classmethod
    def odd(cls, value: int) -> int:
        if value < 0:
            raise ValueError("rounds cannot be negative")
        return value


def broken(text: str, model: type[BaseModel] = Team) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, model, file="t.yaml")
    assert caught.value.file == "t.yaml" and "\n" not in str(caught.value)
    return caught.value


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("members:\n  ada: {model: m1, weight: 1e-3}\n  no: {model: 010x}\n")
    team = load_yaml(path, Team)
    assert team.members["ada"].weight == 0.001 and set(team.members) == {"ada", "no"}
    assert parse_yaml(dump_yaml(team), Team) == team


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("members:\n  ada:\n    model: m1\n    teir: edge\n", 4, "members.ada.teir", ["unknown key", "'tier'"]),
        ("membrs:\n  ada: {model: m1}\n", 1, "membrs", ["'members'", "1 more"]),
        ("members: {}\nzzz: 1\n", 2, "zzz", ["expected one of links, members, rounds, spare"]),
        ("members:\n  ada:\n    tier: edge\n", 2, "members.ada.model", ["missing; expected a name from `aiflow list`"]),
        ("members:\n  ada: {model: m1}\nrounds: many\n", 3, "rounds", ["valid integer", "found 'many'"]),
        ("members:\n  ada:\n    model: m1\n    tier: moon\n", 4, "members.ada.tier", ["expected 'device', 'edge' or 'cloud'", "'moon'"]),
        ("members: {}\nrounds: -1\n", 2, "rounds", ["rounds cannot be negative"]),
        ("members: [1]\n", 1, "members", ["expected keys and values", "[1]"]),
        ("members: {}\nspare:\n  - m1\n  - model: m2\n    teir: edge\n", 5, "spare[1].teir", ["'tier'"]),
        ("members: {}\nlinks:\n  - kind: wifi\n    rate: 3\n", 4, "links[0].rate", ["'rate_bps'"]),
        ("members: {}\nlinks:\n  - kind: smoke\n", 3, "links[0]", ["smoke", "'wifi', 'wire'"]),
        ("- 1\n", 1, None, ["keys and values"]),
        ("", 1, "members", ["missing"]),
    ],
)
def test_every_mistake_has_line_key_and_what_was_expected(text: str, line: int, key: str | None, words: list[str]) -> None:
    error = broken(text)
    assert (error.line, error.key) == (line, key), str(error)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("members:\n  a: b: c\n", 2, "mapping values"),
        ("members: {}\nrounds: 1\nrounds: 2\n", 3, "'rounds' stands twice, first in line 2"),
        ("members:\n  ada: {model: a, model: b}\n", 2, "'model' stands twice"),
        ("members: {}\ntrue: 1\nTRUE: 2\n", 3, "stands twice"),
        ("members: [1\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ("members: {}\nrounds: !!python/name:os.system\n", 2, "not valid YAML"),
        ("rounds: !!int many\n", 1, "int cannot be read"),
        ("a: 1\nrounds: " + "9" * 5000, 2, "int cannot be read"),
        ("? [a]\n: 1\n", 1, "unhashable"),
        ("a: 1\nb: \x07\n", 2, "special characters"),
        ("[" * 800, None, "nested too deeply"),
    ],
)
def test_what_is_not_yaml(text: str, line: int | None, words: str) -> None:
    error = broken(text)
    assert error.line == line and words in str(error)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_yaml(path, Team)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"a: 1\nb: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"b\.yaml:2: .*UTF-8"):
        load_yaml(binary, Team)


def test_merged_keys_are_located_where_they_stand() -> None:
    text = "base: &base\n  model: m\n  tier: moon\nmembers:\n  ada:\n    <<: *base\n    weight: heavy\n"

    class WithBase(Team):
        base: dict[str, str]

    error = broken(text, WithBase)
    assert (error.line, error.key) == (3, "members.ada.tier") and "1 more" in str(error)
    assert broken(text.replace("moon", "edge"), WithBase).line == 7


def test_aliases_are_walked_once() -> None:
    laughs = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert broken(laughs + "a0: 1\n").line == 31


def test_validators_learn_the_file() -> None:
    class Here(Strict):
        path: str

        @field_validator("path")
        @classmethod
        def join(cls, value: str, info) -> str:  # type: ignore[no-untyped-def]
            return f"{info.context['file']}/{value}"

    assert parse_yaml("path: x", Here, file="t.yaml").path == "t.yaml/x"


def test_root_models_and_lists() -> None:
    class Many(RootModel[list[Member]]):
        pass

    error = broken("- model: a\n- model: b\n  wieght: 2\n", Many)
    assert (error.line, error.key) == (3, "[1].wieght") and "'weight'" in str(error)


def test_scalars_follow_yaml_1_2() -> None:
    data, _ = _read("[no, on, 12:30, 2024-01-01, 1e-3, 010, 0o10, 0x10, 1_000, ~, null, true, .5, 5., -.inf, '7']")
    assert data == ["no", "on", "12:30", "2024-01-01", 0.001, 10, 8, 16, "1_000", None, None, True, 0.5, 5.0, -math.inf, "7"]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.from_regex(r"[-+0-9.:eExob_]{1,8}", fullmatch=True)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=12)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=6), trees, max_size=4))
@example({"a": "1e-3", "b": "012", "c": "0o7", "d": "12:30", "<<": "<<", "no": "yes"})
def test_what_is_dumped_is_read_back(data: dict[str, object]) -> None:
    read, _ = _read(dump_yaml(data))
    assert read == data


@settings(max_examples=100, deadline=None)
@given(st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=8, unique=True), st.data())
def test_the_line_of_an_unknown_key_is_its_line(names: list[str], data: st.DataObject) -> None:
    bad = data.draw(st.sampled_from(names))
    lines = [f"  m{name}: {{model: x{', zzzz: 1' if name == bad else ''}}}" for name in names]
    error = broken("\n".join(["members:", *lines]))
    assert error.line == names.index(bad) + 2 and error.key == f"members.m{bad}.zzzz"


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#\n \t,?%@`1", max_size=40))
def test_any_text_is_either_data_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, Team, file="t.yaml")
    except ConfigError as error:
        assert str(error).startswith("t.yaml") and "\n" not in str(error)
        assert error.line is None or 1 <= error.line <= text.count("\n") + 1


def test_plain_documents_agree_with_pyyaml() -> None:
    text = "a: 1\nb: [x, 2.5, true, null]\nc: |\n  two\n  lines\nd: {e: 'f'}\n"
    assert _read(text)[0] == yaml.safe_load(text)
