"""From turns to token ids and back: the tokenizer and chat template of a model folder, as transformers applies them but without importing it.

Reads `tokenizer.json` (`tokenizers`) and the template from `chat_template.jinja` or `tokenizer_config.json` (jinja2, sandboxed).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aiflow_agents.errors import ConfigError, UserError
from aiflow_agents.models.family.config import read_json, read_text
from aiflow_agents.models.protocol import HALF, Turn

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Chat:
    """How one model is spoken to. Raises `UserError` when the folder lacks a tokenizer or a chat template."""

    def __init__(self, folder: str | Path):
        from tokenizers import Tokenizer

        file, template = _tokenizer_file(folder), read_template(folder)
        if template is None:
            raise UserError(f"model folder {folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises a bare Exception
            raise UserError(f"{file} cannot be read ({error})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateSyntaxError as error:
            own = Path(folder) / "chat_template.jinja"
            place = {"file": own, "line": error.lineno} if own.exists() else {"file": Path(folder) / "tokenizer_config.json"}
            raise ConfigError(f"chat template: {error.message}", **place) from None
        self._special = _special_tokens(folder)
        self.vocab: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def render(self, messages: Sequence[Turn]) -> str:
        """The conversation as the model's template writes it, up to where the answer begins. Raises `jinja2.TemplateError` if it refuses a turn."""
        turns = [{key: value for key, value in turn._asdict().items() if value is not None} for turn in messages]
        return self._template.render(messages=turns, tools=None, documents=None, add_generation_prompt=True, **self._special)

    def prompt(self, messages: Sequence[Turn]) -> list[int]:
        """Token ids of the conversation."""
        return self._tokenizer.encode(self.render(messages), add_special_tokens=False).ids

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that is no conversation."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, token_ids: Sequence[int]) -> str:
        """What a reader sees of an answer: special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def adds(self, known: Sequence[int], new: Sequence[int]) -> str:
        """What a reader sees of `new` behind `known`, the last character of which may be half there."""
        before, whole = self.text(known).rstrip(HALF), self.text([*known, *new])
        return whole[len(before) :] if whole.startswith(before) else self.text(new)

    def behind(self, known: Sequence[int], spelled: str, text: str) -> list[int]:
        """The tokens of what a text says behind `known`, which spell `spelled`; none where it does not begin with that.

        Where they would be cut there as well, they are those of the whole text: alone, its rest may have others.
        """
        if not text.startswith(spelled):
            return []
        whole, at = self._tokenizer.encode(text, add_special_tokens=False), len(spelled)
        if whole.ids[: len(known)] == list(known):
            return whole.ids[len(known) :]
        place = next((i for i, (start, _) in enumerate(whole.offsets) if start >= at), len(whole.ids))
        clean = not place or whole.offsets[place - 1][1] <= at
        return whole.ids[place:] if clean else self.ids(text[at:])


def chat_hash(folder: str | Path) -> str:
    """sha256 of all that decides how turns become token ids and back: tokenizer.json, template and special tokens."""
    digest = hashlib.sha256(_tokenizer_file(folder).read_bytes())
    digest.update(json.dumps([read_template(folder), _special_tokens(folder)], sort_keys=True).encode())
    return digest.hexdigest()


def read_template(folder: str | Path) -> str | None:
    """The chat template of a model folder, the one called `default` where there are several."""
    file = Path(folder) / "chat_template.jinja"
    if file.exists():
        return read_text(file)
    given = read_json(Path(folder) / "tokenizer_config.json").get("chat_template")
    if isinstance(given, list):
        return next((entry["template"] for entry in given if entry["name"] == "default"), None)
    return given


def _tokenizer_file(folder: str | Path) -> Path:
    file = Path(folder) / "tokenizer.json"
    if not file.exists():
        raise UserError(f"model folder {folder} has no tokenizer.json; AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one")
    return file


def _special_tokens(folder: str | Path) -> dict[str, str]:
    """The named special tokens, which a template may use as variables."""
    given = {**read_json(Path(folder) / "special_tokens_map.json"), **read_json(Path(folder) / "tokenizer_config.json")}
    plain = {name: given[name]["content"] if isinstance(given.get(name), dict) else given.get(name) for name in SPECIAL_NAMES}
    return {name: token for name, token in plain.items() if token is not None}


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks an answer for training; for asking, the tag means nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """The names and switches that chat templates in circulation expect. A template is a stranger's code, hence the sandbox."""

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    now: Callable[[str], str] = lambda pattern: datetime.now().strftime(pattern)  # noqa: E731
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=refuse, strftime_now=now)
    return environment
