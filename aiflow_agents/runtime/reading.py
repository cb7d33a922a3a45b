"""Reading along: the text of an answer while its tokens come home. Home knows the tokenizers of those who speak to it."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiflow_agents.models.backends import behind
from aiflow_agents.runtime.delivery import Portion
from aiflow_agents.runtime.hosts import OBJECT
from aiflow_agents.runtime.placement import unseat

if TYPE_CHECKING:
    from aiflow_agents.runtime.team import Team

HALF = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of the first bytes of a character


class Tokenizers:
    """By the key of a model, each read when it is first needed."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def of(self, key: str) -> Any:
        """A `tokenizers.Tokenizer`; None where nobody here knows the tokens of this model."""
        if key not in self._known:
            self._known[key] = _read(unseat(key)[1])
        return self._known[key]


def _read(key: str) -> Any:
    if key.startswith(OBJECT):
        return None
    found = behind(key)
    file: Path | None = Path(found.model) / "tokenizer.json"
    if found.kind in ("transformers", "vllm") and not Path(found.model).is_dir():
        file = _cached(found.model)
    if found.kind == "http" or file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def _cached(name: str) -> Path | None:
    """The tokenizer of a model that is called by its name on the hub, where this machine has it; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "tokenizer.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


class Reading:
    """One answer, by its portions: `add` gives what can be read after each of them, `rest` what is left when the answer is there.

    A character of which only some bytes have come is waited for, and so is what may be the beginning of a stop string. Where nobody knows the tokens
    of a member, all of its text comes at the end. All that `add` and `rest` give is the answer. `stop`: strings that end it whoever speaks.
    """

    def __init__(self, team: Team, tokenizers: Tokenizers | None = None, stop: Sequence[str] = ()):
        self.team, self.tokenizers, self.stop = team, tokenizers or Tokenizers(), tuple(stop)
        self.read = ""
        self._ids: list[int] = []
        self._text = ""  # that came as text

    def add(self, portion: Portion) -> str:
        agent = self.team.agents.get(portion.author)
        if agent is None:
            return ""
        self._ids += portion.token_ids
        self._text += portion.text
        if self._ids:
            tokenizer = self.tokenizers.of(agent.folder)
            text = "" if tokenizer is None else tokenizer.decode(self._ids, skip_special_tokens=True)
        else:
            text = self._text
        return self._on(_certain(text, (*self.stop, *agent.stop)))

    def rest(self, answer: str) -> str:
        """What is left of the whole text of the answer. A tokenizer may have cleaned up what it read as a whole: what was read stays."""
        return answer[len(commonprefix((self.read, answer))) :]

    def _on(self, text: str) -> str:
        if not text.startswith(self.read):
            return ""
        new, self.read = text[len(self.read) :], text
        return new


def _certain(text: str, stops: Sequence[str]) -> str:
    """As much of a text that goes on as will stay what it is."""
    text = text.rstrip(HALF)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    if ends:
        return text[: min(ends)]
    waits = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - waits]
