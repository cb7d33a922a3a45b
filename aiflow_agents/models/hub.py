"""A model as transformers runs it: any causal language model with a chat template, from a folder or by its name on the hub.

Slower than our own decoder, and open to what that does not know. Weights are safetensors; nothing from a checkpoint is executed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aiflow_agents.errors import UserError
from aiflow_agents.models.http import spoken
from aiflow_agents.models.protocol import CallError, ModelInfo, Reply, Request, Shape, beyond_text

BATCH = 16  # prompts that run together, padded on the left
FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


def folder_of(model: str) -> Path:
    """The folder of a model: itself, or what the hub's cache has or downloads. Raises `UserError` in one line where neither is there."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        why = f"is no folder, and cannot be had from the Hugging Face hub ({' '.join(str(error).split())[:160]})"
        raise UserError(f"model '{model}' {why}; give a folder, or go online once") from None


def hub_info(model: str, dtype: str = "float32", folder: Path | None = None) -> ModelInfo:
    """What a model is, from its files (in `folder`, where that is known); loads no weights. Raises `UserError` for one that cannot be used."""
    if dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}' is not known; expected one of {', '.join(DTYPES)}")
    folder = folder or folder_of(model)
    weights, tokenizer = hashlib.sha256(dtype.encode()), hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"model folder {folder} has no safetensors weights; other formats execute code when they are read")
    for file in [folder / "config.json", *files]:
        with open(file, "rb") as opened:
            weights.update(hashlib.file_digest(opened, "sha256").digest())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (folder / name).exists():
            tokenizer.update((folder / name).read_bytes())
    config = _config(folder)
    return ModelInfo(
        name=folder.name if Path(model).is_dir() else model,
        weights_hash=weights.hexdigest(),
        tokenizer_hash=tokenizer.hexdigest(),
        engine="transformers",
        dtype=dtype,
        shape=_shape(config, files, DTYPES[dtype]),
        capabilities=frozenset({"logprobs"}),
        max_context=int(getattr(config, "max_position_embeddings", 0) or 0),
    )


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: {' '.join(str(error).split())[:200]}") from None


def _shape(config: Any, files: Sequence[Path], dtype_bytes: int) -> Shape:
    """Counted from the tensors' headers: all but the input embedding and the head are blocks."""
    width, heads, vocab = config.hidden_size, config.num_attention_heads, config.vocab_size
    total = sum(count for file in files for count in _tensors(file))
    embedded = vocab * width * (1 if config.tie_word_embeddings else 2)
    return Shape(
        layers=config.num_hidden_layers,
        width=width,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or width // heads,
        block_params=max(total - embedded, 0),
        head_params=vocab * width,
        vocab=vocab,
        dtype_bytes=dtype_bytes,
    )


def _tensors(file: Path) -> Iterator[int]:
    """How many numbers each tensor of a safetensors file has."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            yield count


class HubModel:
    """Answers requests with transformers' `generate`."""

    def __init__(self, info: ModelInfo, folder: Path, tokenizer: Any, model: Any):
        self.info, self.folder, self.tokenizer, self.model = info, folder, tokenizer, model
        self._names = "name" in str(tokenizer.chat_template).replace("tool", "").replace("function", "")

    @classmethod
    def load(cls, model: str, *, dtype: str = "float32") -> HubModel:
        """Raises `UserError` by name."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = folder_of(model)
        info = hub_info(model, dtype, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="left")
        if not tokenizer.chat_template:
            raise UserError(f"model '{model}' has no chat template; a member is spoken to in turns")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False)
        return cls(info, folder, tokenizer, loaded.eval())

    def generate(self, requests: Sequence[Request]) -> list[Reply | CallError]:
        """Answer each request; one that cannot be answered gives a `CallError` in its place. Greedy ones run together, sampled ones by themselves."""
        replies: dict[int, Reply | CallError] = {}
        together: dict[Any, list[tuple[int, list[int]]]] = {}
        for i, request in enumerate(requests):
            prompt = self._prompt(request)
            if isinstance(prompt, CallError):
                replies[i] = prompt
            else:
                alone = i if request.sampling.temperature > 0 else -1
                together.setdefault((alone, request.max_tokens, request.stop), []).append((i, prompt))
        for group in together.values():
            group.sort(key=lambda one: len(one[1]))  # as little padding as can be
            for start in range(0, len(group), BATCH):
                part = group[start : start + BATCH]
                made = self._generate([prompt for _, prompt in part], requests[part[0][0]])
                replies.update({i: reply for (i, _), reply in zip(part, made, strict=True)})
        return [replies[i] for i in range(len(requests))]

    def _prompt(self, request: Request) -> list[int] | CallError:
        import jinja2

        if lacking := beyond_text(request):
            return CallError("refused", f"{self.info.name} runs on transformers, where it cannot {lacking}")
        turns = [{"role": turn.role, "content": turn.content if self._names else spoken(turn)} for turn in request.messages]
        if self._names:
            turns = [turn | ({"name": given.name} if given.name else {}) for turn, given in zip(turns, request.messages, strict=True)]
        try:
            ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        except jinja2.TemplateError as error:
            return CallError("refused", f"{self.info.name}: its chat template refuses this conversation: {error}")
        if self.info.max_context and len(ids) >= self.info.max_context:
            return CallError("too-long", f"the prompt has {len(ids)} tokens, its context is {self.info.max_context}")
        return list(ids)

    def _generate(self, prompts: Sequence[list[int]], request: Request) -> list[Reply]:
        """Answers to prompts that are asked alike."""
        import torch
        from transformers import GenerationConfig

        given = self.tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt")
        ends = self.model.generation_config.eos_token_id
        warm = request.sampling.temperature > 0
        how: dict[str, Any] = {"temperature": request.sampling.temperature, "top_p": request.sampling.top_p, "top_k": 0} if warm else {}
        room = min([request.max_tokens, *([self.info.max_context - given["input_ids"].shape[1]] if self.info.max_context else [])])
        config = GenerationConfig(
            max_new_tokens=room, do_sample=warm, eos_token_id=ends, pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True, output_logits=True, stop_strings=list(request.stop) or None, **how,
        )  # fmt: skip
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            out = self.model.generate(**given, generation_config=config, tokenizer=self.tokenizer if request.stop else None)
        said = out.sequences[:, given["input_ids"].shape[1] :]
        logprobs = torch.stack([torch.log_softmax(step.float(), -1).gather(1, said[:, t : t + 1])[:, 0] for t, step in enumerate(out.logits)], 1)
        end_ids = set(ends if isinstance(ends, list) else [ends])
        return [self._reply(p, request, row.tolist(), sure.tolist(), end_ids) for p, row, sure in zip(prompts, said, logprobs, strict=True)]

    def _reply(self, prompt: list[int], request: Request, said: list[int], logprobs: list[float], ends: set[int]) -> Reply:
        stop = next((i + 1 for i, token in enumerate(said) if token in ends), None)
        length = self._length(said[:stop], request) if request.stop else (stop or len(said))
        said, logprobs = said[:length], logprobs[:length]
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        cut = min((at for string in request.stop if (at := text.find(string)) >= 0), default=len(text))
        ended = cut < len(text) or (bool(said) and said[-1] in ends)
        return Reply(text[:cut], tuple(said), tuple(logprobs), len(prompt), len(said), "stop" if ended else "length")

    def _length(self, said: list[int], request: Request) -> int:
        """How many tokens a row had said when a stop string was there; behind it others of the batch went on."""
        for count in range(1, len(said) + 1):
            if any(string in self.tokenizer.decode(said[:count], skip_special_tokens=True) for string in request.stop):
                return count
        return len(said)
