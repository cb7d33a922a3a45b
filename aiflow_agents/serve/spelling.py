"""The tokens of an answer as text, which logprobs are listed by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiflow_agents.models.protocol import Reply
from aiflow_agents.runtime.reading import Tokenizers
from aiflow_agents.serve.refusal import Refusal
from aiflow_agents.serve.served import Served

Spell = Callable[[Reply], dict[str, Any]]


class Spelling:
    """Spells with the tokenizers of members."""

    def __init__(self) -> None:
        self.tokenizers = Tokenizers()

    def of(self, served: Served, chat: bool) -> Spell:
        """What turns a reply into OpenAI's list of log-probabilities. Raises Refusal where there are none, or no tokens that they would belong to."""
        if served.member is None:
            raise Refusal(400, f"logprobs are a member's; {served.name} is what a team has agreed on", param="logprobs")
        agent = served.team[served.member]
        if "logprobs" not in agent.info.capabilities:
            raise Refusal(400, f"{served.name} gives no logprobs", param="logprobs")
        tokenizer = self.tokenizers.of(agent.folder)
        if tokenizer is None:
            raise Refusal(400, f"the tokens of {served.name} are not known here, so it gives no logprobs", param="logprobs")
        return lambda reply: (_chat if chat else _completions)(tokenizer, reply)


def _tokens(tokenizer: Any, reply: Reply) -> list[tuple[str, float]]:
    return [(tokenizer.decode([token], skip_special_tokens=False), lp) for token, lp in zip(reply.token_ids, reply.logprobs or (), strict=False)]


def _chat(tokenizer: Any, reply: Reply) -> dict[str, Any]:
    tokens = _tokens(tokenizer, reply)
    return {"content": [{"token": text, "logprob": lp, "bytes": list(text.encode()), "top_logprobs": []} for text, lp in tokens], "refusal": None}


def _completions(tokenizer: Any, reply: Reply) -> dict[str, Any]:
    tokens = _tokens(tokenizer, reply)
    offsets, at = [], 0
    for text, _ in tokens:
        offsets.append(at)
        at += len(text)
    return {
        "tokens": [text for text, _ in tokens],
        "token_logprobs": [lp for _, lp in tokens],
        "top_logprobs": [{text: lp} for text, lp in tokens],
        "text_offset": offsets,
    }
