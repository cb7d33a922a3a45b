"""A suite: questions with known answers in a dev and a test split, how they are marked, and who answers them by default."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from aiflow_agents import catalog
from aiflow_agents.config import line_of, load_yaml
from aiflow_agents.errors import ConfigError, UnknownName, UserError
from aiflow_agents.evals.benchmarks import Columns, benchmark_tasks, share
from aiflow_agents.evals.scorer import Scorer, load_scorer, own_scorer
from aiflow_agents.evals.source import open_source
from aiflow_agents.runtime.extraction import Named, Pattern
from aiflow_agents.runtime.inputs import RELEASED, at_cameras
from aiflow_agents.runtime.task import Task
from aiflow_agents.runtime.team import MAX_TOKENS
from aiflow_agents.skills.scenes import CORNERS, KINDS, exam
from aiflow_agents.skills.splits import balanced, skill

Count = Annotated[int, Field(gt=0)]
Given = Task | Mapping[str, Any]  # a task made in Python: an object, or what a line of a data file holds
HELD_OUT = 0.2


def _known_skill(name: str) -> str:
    try:
        skill(name)
    except UnknownName as error:
        raise ValueError(str(error)) from None
    return name


def _known_kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(str(UnknownName("kind of question about a scene", name, KINDS)))
    return name


class Counts(BaseModel):
    model_config = ConfigDict(extra="forbid")
    dev: Count
    test: Count


class SuiteFile(BaseModel):
    """evals/<name>/eval.yaml.

    Tasks come from `skills` (drawn anew for every seed); from `scenes`: kinds of questions about what four cameras see, at the nodes that `cameras`
    names (`releases` says what may leave these: answers and features, and with `picture` the pictures themselves); or from `data`: a JSONL file with
    id, question, answer, split, tags, or, with `columns`, a benchmark in its own columns, in a file, a folder or on the Hugging Face hub (see
    `source`). `extract` says what of a text is the answer (see `runtime.extraction`), `max_tokens` how long answers may be of members whose team file
    does not say it. `cluster` says what tasks may share, so that intervals and tests respect it: the `scene`, or a key of each line of a JSONL file.
    `tags`: further tags that questions of some skills or kinds have, such as `joint: [most, twins]`, by which arms can be compared.

    An entry of `topologies` is a name, or a name with its parameters, of which `budget` is one that each has: `debate: {budget: {bytes: 500}}`.

    With `suites` it is a group: running it runs each of them.
    """

    model_config = ConfigDict(extra="forbid")
    description: str = ""
    suites: tuple[str, ...] = ()
    team: str = ""
    network: str | None = None
    topologies: tuple[str | dict[str, dict[str, Any]], ...] = ()
    skills: tuple[Annotated[str, AfterValidator(_known_skill)], ...] = ()
    data: str | None = None
    scenes: tuple[Annotated[str, AfterValidator(_known_kind)], ...] = ()
    cameras: tuple[str, ...] = ()
    releases: tuple[Literal["answer", "features", "picture"], ...] = RELEASED
    tags: dict[str, tuple[str, ...]] = {}
    columns: Columns | None = None
    cluster: str | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] = HELD_OUT
    extract: Named | Pattern = "text"
    max_tokens: Count = MAX_TOKENS
    tasks: Counts = Counts(dev=500, test=1000)
    scorer: str = "exact"

    @model_validator(mode="after")
    def _whole(self) -> SuiteFile:
        if not self.suites:
            if not self.team:
                raise ValueError("a suite names its default team: `team: <name>`")
            if bool(self.skills) + bool(self.data) + bool(self.scenes) != 1:
                raise ValueError("tasks come from `skills` or from `data`, or from `scenes`: give one of them")
            if len(set(self.cameras)) != (len(CORNERS) if self.scenes else 0):
                raise ValueError(f"scenes are seen by {len(CORNERS)} cameras: `cameras` names their nodes")
        drawn = (*self.skills, *self.scenes)
        if unknown := [kind for kinds in self.tags.values() for kind in kinds if kind not in drawn]:
            raise ValueError(f"`tags` are for kinds of questions that the suite asks ({', '.join(drawn) or 'none'}), not {unknown[0]}")
        if self.cluster and (self.skills or self.columns or self.scenes and self.cluster != "scene"):
            raise ValueError("`cluster` is `scene` where questions are about scenes, or a key of the lines of a JSONL file")
        if "releases" in self.model_fields_set and not self.scenes:
            raise ValueError("`releases` says what may leave the cameras of `scenes`: give both")
        if self.columns and not self.data:
            raise ValueError("`columns` says how `data` is read: give both")
        for entry in self.topologies:
            if not isinstance(entry, str) and len(entry) != 1:
                raise ValueError("each entry of `topologies` is a name, or one name with its parameters: `debate: {rounds: 2}`")
        return self


@dataclass(frozen=True)
class Suite:
    """A suite that can be run."""

    name: str
    folder: Path
    file: SuiteFile
    scorer: Scorer
    data: str | None = None  # instead of the file's own
    given: Mapping[str, tuple[Task, ...]] = field(default_factory=dict)  # split -> tasks made in Python; `file` then says only how they are answered

    @classmethod
    def of(
        cls, tasks: Iterable[Given], scorer: str | Scorer = "exact", *, dev: Iterable[Given] | None = None, name: str = "tasks",
        extract: Named | Pattern | Mapping[str, Any] = "text", max_tokens: int = MAX_TOKENS,
    ) -> Suite:  # fmt: skip
        """A suite without a file, from tasks or from dicts: `question`, `answer`, and perhaps `id`, `tags`, `cluster` and `split` (dev or test).

        Choices are made on `dev`, or on the tasks whose split is dev; where neither is given, a fifth is held out for that, by a hash of the
        question. `scorer` is a name or a function `(answer, task) -> 0 to 1`. Raises UserError for a task without question or answer.
        """
        where = f"suite '{name}'"
        try:
            how = SuiteFile.model_construct(extract=TypeAdapter(Named | Pattern).validate_python(extract), max_tokens=max_tokens)
        except ValidationError as error:
            raise UserError(f"{where}: extract: {error.errors(include_url=False)[0]['msg']}") from None
        rows = [_given(row, i, where, named=isinstance(scorer, str)) for i, row in enumerate(tasks)]
        more = [_given(row, i, where, named=isinstance(scorer, str), of="dev") for i, row in enumerate(dev or ())]
        if dev is None and not any(split for _, split in rows):
            rows = [(task, "dev" if share("dev", task.question) < HELD_OUT else "test") for task, _ in rows]
        split = {of: tuple(task for task, said in [*rows, *more] if (said or "test") == of) for of in ("dev", "test")}
        if twice := next((id for id, count in Counter(task.id for part in split.values() for task in part).items() if count > 1), None):
            raise UserError(f"{where}: task id '{twice}' occurs twice")
        for of, part in split.items():
            if not part:
                raise UserError(f"{where} has no tasks in split '{of}', of {len(rows) + len(more)} tasks: give some of them 'split': '{of}'")
        return cls(name, Path.cwd(), how, load_scorer(scorer, Path()) if isinstance(scorer, str) else own_scorer(scorer), given=split)

    def tasks(self, split: str, seed: int, limit: int | None = None) -> list[Task]:
        """The tasks of a split, the first `limit` of them; from a file, all of them where `tasks` says nothing.

        A `limit` above the suite's own number gives more test tasks, and no more dev tasks. Raises ConfigError for a task without an answer.
        """
        if self.given:
            return list(self.given[split][:limit])
        count = getattr(self.file.tasks, split)
        if self.file.columns:
            home = self.file.data or ""
            source = open_source(self.data or home, self.folder, home)
            return benchmark_tasks(self.file.columns, source, split, seed, held_out=self.file.held_out)[: limit or count]
        if self.file.data:
            given = _read(self.folder / (self.data or self.file.data), split, self.file.cluster)
            return given[: limit or (count if "tasks" in self.file.model_fields_set else None)]
        count = min(count, limit) if limit and split == "dev" else limit or count
        if self.file.scenes:
            asked, views = exam(list(self.file.scenes), split, count, seed)
            seen = [at_cameras(pictures, self.file.cameras, self.file.releases) for pictures in views]
            of = [f"scene {q.scene}" if self.file.cluster else "" for q in asked]
            return [Task(f"{split}-{seed}-{i:05}", q.text, q.answer, self._tags(q.kind), of[i], seen[q.scene]) for i, q in enumerate(asked)]
        questions = balanced(list(self.file.skills), split, count, seed)
        return [Task(f"{split}-{seed}-{i:05}", q.text, q.answer, self._tags(q.skill)) for i, q in enumerate(questions)]

    def _tags(self, kind: str) -> tuple[str, ...]:
        return (kind, *(tag for tag, kinds in self.file.tags.items() if kind in kinds))

    def reading(self, data: str | None) -> Suite:
        """The same suite on other data in the same columns. Paths are relative to the current directory. Raises UserError where it reads none."""
        if data is None:
            return self
        if self.given:
            raise UserError(f"suite '{self.name}' was made in Python and reads no data; leave `data` out")
        if not self.file.data:
            raise UserError(f"suite '{self.name}' draws its questions from skills and reads no data; leave --data out")
        path = Path(data).expanduser()
        return replace(self, data=str(path.absolute()) if path.exists() else data)

    def mistake(self, error: UserError, *keys: int | str) -> UserError:
        """What is wrong with something that the suite's file names, with file, line and key; an error that says its place already stays as it is."""
        return error if isinstance(error, ConfigError) else _mistake(error, self.folder / "eval.yaml", *keys)

    def topologies(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, parameters) of the suite's topologies."""
        return [(entry, {}) if isinstance(entry, str) else next(iter(entry.items())) for entry in self.file.topologies]


def load_suites(name: str) -> list[Suite]:
    """The suite of that name, or all those of a group."""
    return _load(name, ())


def load_suite(name: str) -> Suite:
    """The one suite of that name. Raises UserError for a group of several, and names them."""
    one, *more = load_suites(name)
    if more:
        raise UserError(f"'{name}' is a group of suites: give one of {', '.join(each.name for each in (one, *more))}")
    return one


def _load(name: str, inside: tuple[Path, ...]) -> list[Suite]:
    """`inside`: the groups that led here, since one that holds itself would never end."""
    entry = catalog.find("suite", name, base=inside[-1].parent if inside else None)
    file = load_yaml(entry.path, SuiteFile)
    if entry.path in inside:
        raise UserError(f"the group '{name}' holds itself")
    if file.suites:
        return [suite for place in range(len(file.suites)) for suite in _part(file, place, (*inside, entry.path))]
    folder = entry.path.parent
    try:
        return [Suite(entry.name, folder, file, load_scorer(file.scorer, folder))]
    except UnknownName as error:
        raise _mistake(error, entry.path, "scorer") from None


def _part(group: SuiteFile, place: int, inside: tuple[Path, ...]) -> list[Suite]:
    try:
        return _load(group.suites[place], inside)
    except ConfigError:
        raise
    except UserError as error:
        raise _mistake(error, inside[-1], "suites", place) from None


def _mistake(error: UserError, file: Path, *keys: int | str) -> ConfigError:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys).removeprefix(".")
    return ConfigError(str(error), file=file, line=line_of(file, *keys), key=key)


def _read(path: Path, split: str, cluster: str | None) -> list[Task]:
    tasks, seen = [], set()
    try:
        lines = path.read_bytes().split(b"\n")  # not splitlines(): a text may hold other line separators
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}; expected a JSONL file", file=path) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        task, of = _task(line, path, number, cluster)
        if task.id in seen:
            raise ConfigError(f"task id '{task.id}' occurs twice", file=path, line=number, key="id")
        seen.add(task.id)
        if of == split:
            tasks.append(task)
    if not tasks:
        raise UserError(f"{path} has no tasks in split '{split}'; give some of them \"split\": \"{split}\"")
    return tasks


def _task(line: bytes, path: Path, number: int, cluster: str | None) -> tuple[Task, str]:
    """One line of a data file: the task, and the split it belongs to."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", file=path, line=number) from None
    except UnicodeDecodeError:
        raise ConfigError("this is not UTF-8 text", file=path, line=number) from None
    if not isinstance(row, dict):
        raise ConfigError("expected an object with id, question and answer", file=path, line=number)
    for key in ("id", "question", "answer", *([cluster] if cluster else [])):
        if isinstance(row.get(key), dict | list | None) or not str(row[key]).strip():
            needed = "an id, a question and an answer" if key != cluster else f"'{cluster}', by which the suite says that tasks are clustered"
            raise ConfigError(f"every task needs {needed}, as text or a number", file=path, line=number, key=key)
    tags = row.get("tags") or []
    if not isinstance(tags, list):
        raise ConfigError(f"expected a list, found {tags!r}", file=path, line=number, key="tags")
    of = row.get("split", "test")
    if of not in ("dev", "test"):
        raise ConfigError(f"expected dev or test, found {of!r}", file=path, line=number, key="split")
    return Task(str(row["id"]), str(row["question"]), str(row["answer"]), tuple(map(str, tags)), str(row[cluster]) if cluster else ""), of


def _given(row: Given, number: int, where: str, *, named: bool, of: str = "") -> tuple[Task, str]:
    """A task made in Python, and the split that it names, if any. `named`: its scorer compares with an expected answer."""
    if isinstance(row, Task):
        task, said = row, of
    else:
        if unknown := next((key for key in row if key not in ("id", "question", "answer", "tags", "cluster", "split")), None):
            raise UserError(f"{where}: task {number}: unknown key '{unknown}'; a task has id, question, answer, tags, cluster and split")
        tags = row.get("tags") or ()
        tags = (tags,) if isinstance(tags, str) else tuple(map(str, tags))
        answer = row.get("answer")
        task = Task(str(row.get("id", f"{of or 'task'}-{number:05}")), str(row.get("question") or ""), None if answer is None else str(answer),
                    tags, str(row.get("cluster") or ""))  # fmt: skip
        said = of or str(row.get("split") or "")
    of_which = f"{where}: task {number} ({task.id})"
    if not task.question.strip() or (named and task.expected is None):
        raise UserError(f"{of_which} needs a question" + (" and an answer, which a named scorer compares with" if named else ""))
    if said not in ("", "dev", "test"):
        raise UserError(f"{of_which}: expected the split dev or test, found {said!r}")
    return task, said
