"""Turns as other engines hear them: through a tokenizer's own chat template, or, for a model without one, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiflow_agents.models.protocol import CallError, ModelInfo, Turn


def spoken(turn: Turn) -> str:
    """A turn as those hear it whose template knows no names: `oak: 296`."""
    return f"{turn.name}: {turn.content}" if turn.name else turn.content


def lines(turns: Sequence[Turn]) -> str:
    """A conversation as a model without a chat template reads it: one turn a line, and what it says comes behind the last."""
    return "\n".join(map(spoken, turns))


class Turns:
    """Makes token ids of a conversation with a tokenizer of transformers."""

    def __init__(self, tokenizer: Any, info: ModelInfo):
        self.tokenizer, self.info = tokenizer, info
        self._names = "name" in str(tokenizer.chat_template).replace("tool", "").replace("function", "")

    def ids(self, turns: Sequence[Turn]) -> list[int] | CallError:
        """The prompt, or why it cannot be one: the template refuses the turns, there are none, or they are too long for the model."""
        import jinja2

        ids: list[int] = []
        if turns and not self.tokenizer.chat_template:
            ids = list(self.tokenizer(lines(turns))["input_ids"])
        elif turns:
            said = [{"role": turn.role, "content": turn.content if self._names else spoken(turn)} for turn in turns]
            if self._names:
                said = [turn | ({"name": given.name} if given.name else {}) for turn, given in zip(said, turns, strict=True)]
            try:
                ids = list(self.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"])
            except jinja2.TemplateError as error:
                return CallError("refused", f"{self.info.name}: its chat template refuses this conversation: {error}")
        if not ids:
            return CallError("refused", f"{self.info.name}: the conversation is empty")
        if self.info.max_context and len(ids) >= self.info.max_context:
            return CallError("too-long", f"the prompt has {len(ids)} tokens, its context is {self.info.max_context}")
        return ids
