"""What `samples.jsonl` holds, as columns: 10,000 tasks times 20 arms must fit in a page that opens at once."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aiflow_agents.evals.run_folder import OVER_BUDGET

# Digits of a column: one character per task. Scores are in 1/SCORES, rounded down, so that only a whole one counts as right.
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SCORES, FAILED, NONE = 60, "!", "-"
TEXTS = 24_000_000  # characters of answers and questions that a page may hold; beyond, long ones are cut
CUTS = (4000, 1000, 300, 120, 60)


class Answer(NamedTuple):
    """One arm's answer to one task, in one repeat. `error` is the reason, where it failed."""

    score: float
    text: str | None
    error: str | None


@dataclass
class Samples:
    """The answers of every arm to every task, and the tasks in the order in which they were first met."""

    tasks: list[str] = field(default_factory=list)  # their ids
    questions: list[str] = field(default_factory=list)
    expected: list[str | None] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    answers: dict[tuple[str, int, int], Answer] = field(default_factory=dict)  # (arm, place of the task, repeat)

    @classmethod
    def read(cls, path: Path) -> Samples:
        """One pass. A resumed run repeats what had failed: the last record counts. A line torn by a kill is skipped."""
        samples, place = cls(), {}
        if not path.exists():
            return samples
        with path.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                    arm, task, repeat = sys.intern(str(record["arm"])), str(record["task_id"]), int(record.get("repeat") or 0)
                except (ValueError, KeyError, TypeError):
                    continue
                if task not in place:
                    place[task] = len(samples.tasks)
                    samples.tasks.append(task)
                    samples.questions.append(_text(record.get("question")) or task)
                    samples.expected.append(_text(record.get("expected")))
                    samples.tags.append(tuple(sys.intern(str(tag)) for tag in record.get("tags") or ()))
                error = str(record["error"]) if record.get("error") and record.get("status") != OVER_BUDGET else None
                answer = _text(record.get("answer"))
                samples.answers[arm, place[task], repeat] = Answer(float(record.get("score") or 0.0), answer and sys.intern(answer), error)
        return samples

    def scores(self) -> dict[str, dict[int, float]]:
        """arm -> place of the task -> mean score over repeats."""
        collected: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for (arm, task, _), answer in self.answers.items():
            collected[arm][task].append(answer.score)
        return {arm: {task: sum(values) / len(values) for task, values in tasks.items()} for arm, tasks in collected.items()}

    def failures(self) -> list[tuple[str, str, str]]:
        """(arm, task id, reason) of every answer that failed."""
        return sorted((arm, self.tasks[task], answer.error) for (arm, task, _), answer in self.answers.items() if answer.error)

    def columns(self, arms: Sequence[str], scores: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
        """The tasks and what each arm answered, for the page's scripts.

        `said[t]` are the different answers to task t; for each arm `answered` has a character per task, the place of its answer (in its first repeat)
        among them, and `scored` one for its mean score: 0 to 60 sixtieths, "!" if it failed, "-" where there is none. Texts end after `cut`
        characters.
        """
        tags = {tag: i for i, tag in enumerate(sorted({tag for task in self.tags for tag in task}))}
        said: list[list[str]] = [[] for _ in self.tasks]
        where: list[dict[str, int]] = [{} for _ in self.tasks]
        answered, scored = [], []
        for arm in arms:
            answer_digits, score_digits, own = [], [], scores.get(arm, {})
            for task in range(len(self.tasks)):
                answer = self.answers.get((arm, task, 0))
                if answer is None or answer.text is None:
                    answer_digits.append(NONE)
                else:
                    known = where[task]
                    index = known.setdefault(answer.text, len(known))
                    if index == len(said[task]):
                        said[task].append(answer.text)
                    answer_digits.append(DIGITS[index] if index < len(DIGITS) else "~")
                score = own.get(task)
                failed = answer is not None and answer.error is not None
                score_digits.append(FAILED if failed else NONE if score is None else DIGITS[int(SCORES * min(max(score, 0.0), 1.0) + 1e-9)])
            answered.append("".join(answer_digits))
            scored.append("".join(score_digits))
        columns = {
            "id": self.tasks, "question": [None if question == task else question for question, task in zip(self.questions, self.tasks, strict=True)],
            "expected": self.expected, "tags": [[tags[tag] for tag in task] for task in self.tags], "said": said,
        }
        cut = self._cut(columns)
        return {"tags": list(tags), "tasks": columns, "answered": answered, "scored": scored, "cut": cut}

    @staticmethod
    def _cut(columns: dict[str, Any]) -> int | None:
        """Shorten texts, in place, until all of them together are not too many. Gives the length that is left, None where nothing was cut."""

        def total(limit: int) -> int:
            rows = [*columns["question"], *columns["expected"], *(text for said in columns["said"] for text in said)]
            return sum(min(len(text), limit) for text in rows if text)

        limit = next((cut for cut in (10**9, *CUTS) if total(cut) <= TEXTS), CUTS[-1])
        if limit == 10**9:
            return None
        for name in ("question", "expected"):
            columns[name] = [text and short(text, limit) for text in columns[name]]
        columns["said"] = [[short(text, limit) for text in said] for said in columns["said"]]
        return limit


def short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
