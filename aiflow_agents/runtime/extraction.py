"""What of a text is the answer. A suite declares it (`extract:` in its eval.yaml); it runs where the text was made, so that what travels as an
answer, what a vote counts and what the scorer marks are the same.

A text in which no answer is found gives "", which no scorer takes for right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from aiflow_agents.runtime.latex import boxed, plain

Extract = Callable[[str], str]
Named = Literal["text", "number", "choice", "math"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


class Pattern(BaseModel):
    """`extract: {last: 'answer is ([A-J])'}`: the first group of the `first` or the `last` match that has one, or the whole match."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    first: Annotated[str, AfterValidator(_compiles)] | None = None
    last: Annotated[str, AfterValidator(_compiles)] | None = None
    upper: bool = False

    @model_validator(mode="after")
    def _one(self) -> Pattern:
        if (self.first is None) == (self.last is None):
            raise ValueError("give one regular expression, as `first` or as `last`")
        return self


def extraction(declared: Named | Pattern) -> Extract:
    """The function that a suite's `extract:` means."""
    if isinstance(declared, str):
        named: dict[Named, Extract] = {"text": str.strip, "number": number, "choice": choice, "math": math}
        return named[declared]
    found = re.compile(declared.first or declared.last or "")
    at, upper = (0 if declared.first else -1), declared.upper

    def match(text: str) -> str:
        groups = [next((group for group in hit.groups() if group), hit.group()) for hit in found.finditer(text)]
        answer = groups[at].strip() if groups else ""
        return answer.upper() if upper else answer

    return match


_NUMBERS = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_LETTER = re.compile(r"(?i)(?:^\W*|\banswer\s*(?:is)?\s*[:\-]?\s*|\boption\s*[:\-]?\s*)\(?([A-J])\)?\W*$")
_FINAL = re.compile(r"(?s).*Final Answer: The final answer is(.*?)(?:\.?\s*I hope it is correct.*)?$")


def number(text: str) -> str:
    """The last number, without `$`, thousands separators, a full stop behind it and zeros that say nothing: GSM8K's flexible extraction."""
    found = _NUMBERS.findall(text)
    return re.sub(r"\.0+$", "", re.sub(r"[,$]|\.$", "", found[-1])) if found else ""


def choice(text: str) -> str:
    """The letter that the first line is, bare or as in `(B).`, or that it ends in behind `answer is`, `answer:` or `option`."""
    lines = text.strip().splitlines()
    found = _LETTER.search(lines[0]) if lines else None
    return found[1].upper() if found else ""


def math(text: str) -> str:
    """The final answer as Minerva words it, or else what is in the last box, or between the last two dollar signs, or the whole of a single line.

    In one spelling: see `latex.plain`.
    """
    final, dollars = _FINAL.match(text), text.replace("\\$", "").replace("$$", "$").split("$")
    if final:
        return plain(final[1])
    held = boxed(text)
    if held is None and len(dollars) >= 3:
        held = next((part for part in dollars[-2 - (len(dollars) % 2 == 0) :: -2] if part.strip()), "")
    if held is None:
        held = text if len(text.strip().splitlines()) == 1 else ""
    return plain(held)
