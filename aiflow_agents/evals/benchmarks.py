"""Public benchmarks, by their own columns: how a row becomes a question, and what is expected.

Prompts are those of lm-evaluation-harness for one answer without examples (tasks `gsm8k_cot_zeroshot`, `minerva_math500`, `mmlu_*_generative`,
`mmlu_pro`, `arc_challenge_chat`); how answers are found and marked, a suite's eval.yaml says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from aiflow_agents.errors import ConfigError, UserError
from aiflow_agents.evals.source import Row, Source
from aiflow_agents.runtime.task import Task

Columns = Literal["gsm8k", "math", "mmlu", "mmlu-pro", "arc"]
LETTERS = "ABCDEFGHIJ"
FOR_DEV = ("validation", "dev", "train")  # the first of these that a data set has is where choices are made


def _listed(value: Any) -> Any:
    """Lists and objects in a CSV cell are written as JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


Text = Annotated[str, Field(min_length=1)]
Cell = Annotated[str, Field(min_length=1), BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]


class GSM8K(BaseModel):
    """openai/gsm8k: `answer` is a worked solution that ends in `#### 42`."""

    question: Text
    answer: Text

    @model_validator(mode="after")
    def _solved(self) -> GSM8K:
        if not self.answer.rpartition("####")[1] or not self.expected:
            raise ValueError("answer: expected a solution that ends in #### and the number")
        return self

    id: str = ""
    tags: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        return f"Q: {self.question}\nA: Let's think step by step."

    @property
    def expected(self) -> str:
        return self.answer.rpartition("####")[2].strip().replace(",", "").replace("$", "")


class MATH(BaseModel):
    """HuggingFaceH4/MATH-500."""

    problem: Text
    answer: Cell
    unique_id: str = ""
    subject: str = ""
    level: Cell | None = None

    @property
    def id(self) -> str:
        return self.unique_id

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(tag for tag in (self.subject, f"level {self.level}" if self.level else "") if tag)

    @property
    def prompt(self) -> str:
        return f"Problem:\n{self.problem}\n\nSolution:"

    @property
    def expected(self) -> str:
        return self.answer


class MMLU(BaseModel):
    """cais/mmlu: four choices, `answer` the place of the right one from 0 on."""

    question: Text
    choices: Annotated[list[str], Field(min_length=4, max_length=4), BeforeValidator(_listed)]
    answer: Annotated[int, Field(ge=0, le=3), BeforeValidator(lambda value: "ABCD".find(value) if value in list("ABCD") else value)]
    subject: str = ""
    id: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.subject,) if self.subject else ()

    @property
    def prompt(self) -> str:
        about = f" about {self.subject.replace('_', ' ')}" if self.subject else ""
        head = f"The following are multiple choice questions (with answers){about}.\n\n"
        return f"{head}{self.question.strip()}\n{_options(self.choices)}\nAnswer:"

    @property
    def expected(self) -> str:
        return LETTERS[self.answer]


class MMLUPro(BaseModel):
    """TIGER-Lab/MMLU-Pro: up to ten options, `answer` a letter."""

    question: Text
    options: Annotated[list[str], Field(min_length=2, max_length=10), BeforeValidator(_listed)]
    answer: Annotated[str, Field(pattern=r"^[A-J]$")]
    question_id: Cell | None = None
    category: str = ""

    @model_validator(mode="after")
    def _there(self) -> MMLUPro:
        if LETTERS.index(self.answer) >= len(self.options):
            raise ValueError(f"answer: {self.answer} is not among {len(self.options)} options")
        return self

    @property
    def id(self) -> str:
        return self.question_id or ""

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.category,) if self.category else ()

    @property
    def prompt(self) -> str:
        about = f" about {self.category}" if self.category else ""
        head = f"The following are multiple choice questions (with answers){about}. Think step by step and then finish your answer with"
        tail = '"the answer is (X)" where X is the correct letter choice.'
        options = _options([option.strip() for option in self.options])
        return f"{head} {tail}\nQuestion:\n{self.question}\nOptions:\n{options}\nAnswer: Let's think step by step."

    @property
    def expected(self) -> str:
        return self.answer


class ARCChoices(BaseModel):
    text: Annotated[list[str], Field(min_length=2, max_length=5)]
    label: list[str]


class ARC(BaseModel):
    """allenai/ai2_arc: three to five choices, labelled by letters or by numbers from 1 on."""

    question: Text
    choices: Annotated[ARCChoices, BeforeValidator(_listed)]
    answerKey: Cell
    id: str = ""
    tags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _there(self) -> ARC:
        if len(self.choices.label) != len(self.choices.text):
            raise ValueError(f"choices: {len(self.choices.text)} texts have {len(self.choices.label)} labels")
        if self.answerKey not in self.choices.label:
            raise ValueError(f"answerKey: {self.answerKey} is not among the labels {', '.join(self.choices.label)}")
        return self

    @property
    def prompt(self) -> str:
        letters = LETTERS[: len(self.choices.text)]
        listed = f"{', '.join(letters[:-1])} and {letters[-1]}"
        count, one = ("two", "three", "four", "five")[len(letters) - 2], listed.replace(" and ", " or ")
        return (
            f"Given the following question and {count} candidate answers ({listed}), choose the best answer.\nQuestion: {self.question.strip()}\n"
            f"{_options(self.choices.text)}\n"
            f'Your response should end with "The best answer is [the_answer_letter]" where the [the_answer_letter] is one of {one}.'
        )

    @property
    def expected(self) -> str:
        return LETTERS[self.choices.label.index(self.answerKey)]


def _options(texts: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))


BENCHMARKS: dict[Columns, type[GSM8K | MATH | MMLU | MMLUPro | ARC]] = {"gsm8k": GSM8K, "math": MATH, "mmlu": MMLU, "mmlu-pro": MMLUPro, "arc": ARC}


def benchmark_tasks(columns: Columns, source: Source, split: str, seed: int, *, held_out: float) -> list[Task]:
    """All tasks of the dev or test split, in an order that the seed draws, so that any number of the first ones is a fair sample.

    Dev is the data set's own validation, dev or train split; where it has none, the share `held_out` of its test questions, by a hash of their text,
    so that a question is on the same side whatever the seed. Raises ConfigError with file, line and column of a row that is wrong.
    """
    if "test" not in source:
        raise UserError(f"the data has no test split, only {', '.join(source)}; name one of its files test, or give a single file with --data")
    own = next((name for name in FOR_DEV if name in source), None)
    name = own if split == "dev" and own else "test"
    tasks = [_task(columns, row, f"{name}-{number:05}") for number, row in enumerate(source[name]())]
    if own is None:
        tasks = [task for task in tasks if (share("dev", task.question) < held_out) == (split == "dev")]
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise UserError(f"the data has two {name} rows with the id '{task.id}'")
        seen.add(task.id)
    if not tasks:
        raise UserError(f"the data has no questions for {split}: too few test rows to hold some out, or an empty file")
    return sorted(tasks, key=lambda task: share(seed, task.id))


def _task(columns: Columns, row: Row, id: str) -> Task:
    try:
        read = BENCHMARKS[columns].model_validate(row.data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            wanted = [name for name, field in BENCHMARKS[columns].model_fields.items() if field.is_required()]
            what = f"missing; the columns of {columns} are {', '.join(wanted)}"
        place = "" if row.line else f"row {row.number + 1}: "
        raise ConfigError(f"{place}{key and f'{key}: '}{what}", file=row.file, line=row.line) from None
    return Task(read.id or id, read.prompt, read.expected, read.tags)


def share(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=7).digest()) / 2**56
