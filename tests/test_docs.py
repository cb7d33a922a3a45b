"""The code in docs/ and in the README runs as it stands.

A page is one notebook. Its ```python blocks are run in order, in a folder of their own; a ```text block right behind one is what that prints, where `...`
stands for anything. A block that begins with `# some/path` is that file. Lines of ```sh blocks that begin with `aiflow` are run, too.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"# ([\w.-]+/[\w./-]+\.(?:py|yaml))\n")


class Block(NamedTuple):
    language: str
    code: str
    line: int
    prints: str | None


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(encoding="utf-8"), []
    matches = list(re.finditer(r"^```(\w+)\n(.*?)^```\n", text, re.M | re.S))
    for match, after in zip(matches, [*matches[1:], None], strict=False):
        prints = after.group(2) if after and after.group(1) == "text" and not text[match.end() : after.start()].strip() else None
        found.append(Block(match.group(1), match.group(2), text.count("\n", 0, match.start()) + 2, prints))
    return found


PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if any(block.language == "python" for block in blocks(page))]


def as_printed(expected: str) -> str:
    """A pattern for a text in which `...` stands for anything."""
    return ".*".join(map(re.escape, expected.strip().split("...")))


def run(code: str, page: Path, line: int, names: dict[str, object]) -> str:
    """What a cell prints. Its lines count as those of the page."""
    tree = ast.increment_lineno(ast.parse(code), line - 1)
    compiled = compile(tree, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with redirect_stdout(io.StringIO()) as printed:
        made = eval(compiled, names)
        if inspect.iscoroutine(made):
            asyncio.run(made)
    return printed.getvalue()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a page's cells have in common; the current folder is an empty one."""
    module = ModuleType("aiflow_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIFLOW_PATH", raising=False)
    return module.__dict__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page: Path, names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    from aiflow_agents.cli.main import main

    ran = 0
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if file := FILE.match(block.code):
            Path(file.group(1)).parent.mkdir(parents=True, exist_ok=True)
            Path(file.group(1)).write_text(block.code)
        elif block.language == "python":
            printed = run(block.code, page, block.line, names)
            assert re.fullmatch(as_printed(block.prints or ""), printed.strip(), re.S), f"{where} prints:\n{printed}"
            ran += 1
        elif block.language == "sh":
            for line in block.code.splitlines():
                if line.startswith("aiflow "):
                    assert main(shlex.split(line)[1:]) == 0, f"{where}: {line}: {capsys.readouterr().err}"
    assert ran


def test_pages_are_found_and_lead_to_one_another() -> None:
    assert {"python", "topologies", "backends", "scorers", "hooks"} <= {page.stem for page in PAGES}
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", ["topologies", "backends", "scorers"])
def test_ten_lines_are_enough(page: str) -> None:
    """For a new topology, a new model and a new scorer: the first cell of its page has it whole, imports and all."""
    first = next(block for block in blocks(ROOT / "docs" / f"{page}.md") if block.language == "python")
    assert len([line for line in first.code.splitlines() if line.strip()]) <= 10


def test_the_readme_runs_as_it_stands(names: dict[str, object]) -> None:
    """Its first script is run by test_python_api. A class is shown without its imports, and must be the one of its file."""
    code = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    shown = [block for block in code if block.code.startswith("class ")]
    for block in shown:
        name = re.match(r"class (\w+)", block.code).group(1)  # type: ignore[union-attr]
        assert block.code.strip() in (ROOT / "topologies" / f"{name.lower()}.py").read_text()
    left = [block for block in code[1:] if block not in shown]
    assert left and len(left) + len(shown) + 1 == len(code)
    Path("agents").symlink_to(ROOT / "agents")
    for block in left:
        run(block.code, ROOT / "README.md", block.line, names)
    gap = names["family"].logits(names["ids"], exit=7) - names["logits"]  # type: ignore[attr-defined]
    assert gap.abs().max() <= 1e-5  # as the README says


def test_what_a_page_prints_is_really_compared() -> None:
    assert re.fullmatch(as_printed("588   [12 calls, ... ms]\n"), "588   [12 calls, 7.5 ms]") and not re.fullmatch(as_printed("588 ..."), "589 x")
    assert not re.fullmatch(as_printed(""), "anything")
