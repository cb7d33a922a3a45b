"""A model folder as a `Model`: turns in, text out, by our own decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.chat import Chat, chat_hash, read_json
from aiflow_agents.models.family.config import DecoderConfig, weight_files
from aiflow_agents.models.protocol import CallError, ModelInfo, Reply, Request

if TYPE_CHECKING:
    from aiflow_agents.models.family.engine import Engine, Generated, Stop

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def model_info(path: str | Path, *, dtype: str = "float32") -> ModelInfo:
    """What the model in this folder is. Reads config.json and hashes files; loads no tensor and imports no torch.

    `weights_hash` covers the weights and the settings they are computed with, `tokenizer_hash` the tokenizer, its template and special tokens.
    Raises `UserError` for a folder that cannot be used.
    """
    if dtype not in DTYPE_BYTES:
        raise UserError(f"dtype '{dtype}' is not known; expected one of {', '.join(DTYPE_BYTES)}")
    if not Path(path).is_dir():
        raise UserError(f"no model folder at {path}")
    config = DecoderConfig.read(path)
    digest = hashlib.sha256(repr(config).encode())
    for file in weight_files(path):
        with open(file, "rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return ModelInfo(
        name=Path(path).resolve().name,
        weights_hash=digest.hexdigest(),
        tokenizer_hash=chat_hash(path),
        engine="family",
        dtype=dtype,
        shape=config.shape(DTYPE_BYTES[dtype]),
        capabilities=frozenset({"logprobs"}),
        max_context=config.max_context,
    )


class FamilyModel:
    """Answers requests with a checkpoint in the Hugging Face layout (Llama, Qwen2 or Qwen3)."""

    def __init__(self, info: ModelInfo, chat: Chat, engine: Engine):
        self.info, self.chat, self.engine = info, chat, engine

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "float32", stable: bool = True) -> FamilyModel:
        """Load a model folder. `stable` keeps greedy answers independent of what else is in the batch. Raises `UserError` by name."""
        info, chat = model_info(path, dtype=dtype), Chat(path)
        import torch

        from aiflow_agents.models.family.decoder import Decoder
        from aiflow_agents.models.family.engine import Engine

        decoder = Decoder.load(path, getattr(torch, dtype))
        ends = end_ids(path)
        if chat.vocab > info.shape.vocab:
            raise UserError(
                f"model folder {path}: its tokenizer knows {chat.vocab} tokens, the model {info.shape.vocab}; they do not belong together"
            )
        return cls(info, chat, Engine(decoder, ends, ends[0] if ends else 0, stable=stable))

    def generate(self, requests: Sequence[Request]) -> list[Reply | CallError]:
        """Answer each request; one that cannot be answered gives a `CallError` in its place. Equal requests are computed once."""
        prompts: dict[Any, list[int] | CallError] = {}
        asked: dict[Any, int] = {}  # what decides an answer -> its place in the batch
        batch: list[tuple[list[int], Request]] = []
        places: list[int | CallError] = []
        for request in requests:
            if request.messages not in prompts:
                prompts[request.messages] = self._prompt(request)
            prompt = prompts[request.messages]
            if isinstance(prompt, CallError):
                places.append(prompt)
                continue
            greedy = request.sampling.temperature <= 0
            how = (None, None) if greedy else (request.sampling, request.seed)
            key = (tuple(prompt), request.max_tokens, request.stop, *how)
            if key not in asked:
                asked[key] = len(batch)
                batch.append((prompt, request))
            places.append(asked[key])
        made = self.engine.generate(
            [prompt for prompt, _ in batch],
            max_tokens=[request.max_tokens for _, request in batch],
            temperature=[max(request.sampling.temperature, 0.0) for _, request in batch],
            top_p=[request.sampling.top_p for _, request in batch],
            seeds=[request.seed for _, request in batch],
            stops=[self._stopper(request.stop) for _, request in batch],
        )
        replies = [self._reply(prompt, request, one) for (prompt, request), one in zip(batch, made, strict=True)]
        return [replies[place] if isinstance(place, int) else place for place in places]

    def _prompt(self, request: Request) -> list[int] | CallError:
        try:
            prompt = self.chat.prompt(request.messages)
        except jinja2.TemplateError as error:
            return CallError("refused", f"{self.info.name}: its chat template refuses this conversation: {error}")
        if not prompt:
            return CallError("refused", f"{self.info.name}: the conversation is empty")
        if len(prompt) >= self.info.max_context:
            return CallError("too-long", f"the prompt has {len(prompt)} tokens, its context is {self.info.max_context}")
        return prompt

    def _stopper(self, stop: tuple[str, ...]) -> Stop | None:
        """Says after each token whether a stop string has appeared. Looks at the end of the text only; a token may be as little as one byte."""
        if not stop:
            return None
        tail = 4 * max(len(string) for string in stop) + 8

        def stopped(tokens: Sequence[int]) -> bool:
            text = self.chat.text(tokens[-tail:])
            return any(string in text for string in stop)

        return stopped

    def _reply(self, prompt: list[int], request: Request, made: Generated) -> Reply:
        text = self.chat.text(made.token_ids)
        text = text[: min((at for string in request.stop if (at := text.find(string)) >= 0), default=len(text))]
        return Reply(text, made.token_ids, made.logprobs, len(prompt), len(made.token_ids), made.finish)


def end_ids(path: str | Path) -> tuple[int, ...]:
    """The tokens that end an answer: from generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(Path(path) / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return ()
