"""A model as transformers runs it: any causal language model, from a folder or by its name on the hub.

Slower than our own decoder, and open to what that does not know. Weights are safetensors; nothing from a checkpoint is executed. It gives hidden
states, which our decoder can go on from where it knows the model; to go on from them itself transformers has no way.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiflow_agents.errors import UserError
from aiflow_agents.models.protocol import CallError, ModelInfo, Parcel, Pass, Reply, Request, Shape, Told, Want, beyond_text, telling
from aiflow_agents.models.turns import Turns

if TYPE_CHECKING:
    from torch import Tensor

    from aiflow_agents.models.family.courier import Courier

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
    name = folder.name if Path(model).is_dir() else model
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"model folder {folder} has no safetensors weights; other formats execute code when they are read")
    info = _as_ours(folder, dtype) or _counted(folder, dtype)
    return replace(info, name=name, engine="transformers", capabilities=frozenset({"logprobs", "hidden"}))


def _as_ours(folder: Path, dtype: str) -> ModelInfo | None:
    """A model that our decoder knows, as that says it: so a hidden state means the same to both. None for another one."""
    from aiflow_agents.models.family.info import model_info

    try:
        return replace(model_info(folder, dtype=dtype), space="family")
    except UserError:
        return None


def _counted(folder: Path, dtype: str) -> ModelInfo:
    """Any other model, from its config and its tensors' headers."""
    files = sorted(folder.glob("*.safetensors"))
    weights, tokenizer = hashlib.sha256(dtype.encode()), hashlib.sha256()
    for file in [folder / "config.json", *files]:
        with open(file, "rb") as opened:
            weights.update(hashlib.file_digest(opened, "sha256").digest())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (folder / name).exists():
            tokenizer.update((folder / name).read_bytes())
    config = _config(folder)
    shape = _shape(config, files, DTYPES[dtype])
    context = int(getattr(config, "max_position_embeddings", 0) or 0)
    return ModelInfo(folder.name, weights.hexdigest(), tokenizer.hexdigest(), "transformers", dtype, shape, max_context=context)


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


def load_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer, by transformers. Raises `UserError`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="left")
    except (OSError, ValueError) as error:
        raise UserError(f"model folder {folder} has no tokenizer that transformers can read: {' '.join(str(error).split())[:160]}") from None


def _batches(places: Sequence[int], ids: Mapping[int, Sequence[int]]) -> Iterator[list[int]]:
    """Parts that run together, sorted by length: as little padding as can be."""
    ordered = sorted(places, key=lambda i: len(ids[i]))
    yield from (ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH))


class _Streamer:
    """What transformers gives its tokens to while it makes them, a row's each step; the prompts come first. A row that has ended is padded."""

    def __init__(self, told: Told, rows: int, ends: int | list[int] | None, pad: int):
        self._told, self._going = told, set(range(rows))
        self._last = {pad, *(ends if isinstance(ends, list) else [ends])}
        self._at = -1

    def put(self, tokens: Tensor) -> None:
        for row, token in enumerate(tokens.tolist() if self._at >= 0 else ()):
            if token in self._last:
                self._going.discard(row)
            elif row in self._going:
                self._told(row, self._at, (token,), "")
        self._at += 1

    def end(self) -> None: ...


class HubModel:
    """Answers requests with transformers' `generate`. Of a family it is one exit, which `exit` names (None: the last)."""

    streams = True

    def __init__(self, info: ModelInfo, tokenizer: Any, model: Any, courier: Courier, exit: int | None = None):
        self.info, self.tokenizer, self.model, self.courier, self.exit = info, tokenizer, model, courier, exit
        self.turns, self.layers = Turns(tokenizer, info), model.config.get_text_config().num_hidden_layers

    @classmethod
    def load(cls, model: str, *, dtype: str = "float32", exit: int | None = None) -> HubModel:
        """Raises `UserError` by name."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from aiflow_agents.models.family.courier import Courier
        from aiflow_agents.models.family.export import plain

        logging.disable_progress_bar()
        folder = folder_of(model)
        info, tokenizer = hub_info(model, dtype, folder), load_tokenizer(folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        files = plain(folder, exit)
        try:
            loaded = AutoModelForCausalLM.from_pretrained(files, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False)
        except (ImportError, OSError, RuntimeError, ValueError) as error:  # a library of the wrong build, weights that do not fit
            why = " ".join(str(error).split())[:200]
            raise UserError(f"transformers cannot load model '{model}': {why}; `aiflow doctor` says whether the installation is at fault") from error
        return cls(info, tokenizer, loaded.eval(), Courier(folder, info.codecs), exit)

    def generate(self, requests: Sequence[Request], told: Told | None = None) -> list[Reply | CallError]:
        """Answer each request; one that cannot be answered gives a `CallError` in its place. Greedy ones run together, sampled ones by themselves."""
        return self.exchange(requests, {}, told)[0]

    def exchange(
        self, requests: Sequence[Request], parcels: Mapping[str, bytes], told: Told | None = None
    ) -> tuple[list[Reply | CallError], dict[str, bytes]]:
        """As `generate`, and the coded hidden states that requests want, by digest. It goes on from nobody's: `parcels` are not read."""
        replies: dict[int, Reply | CallError] = {}
        prompts: dict[int, list[int]] = {}
        together: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            prompt = self._prompt(request)
            if isinstance(prompt, CallError):
                replies[i] = prompt
                continue
            prompts[i] = prompt
            if request.max_tokens:
                alone = i if request.sampling.temperature > 0 else -1
                room = min(request.max_tokens, self.info.max_context - len(prompt)) if self.info.max_context else request.max_tokens
                together.setdefault((alone, room, request.stop), []).append(i)
            else:
                replies[i] = Reply("", (), (), len(prompt), 0, "length")
        for (_, room, _), group in together.items():
            for part in _batches(group, prompts):
                made = self._generate([prompts[i] for i in part], requests[part[0]], room, told and telling(told, part))
                replies.update(zip(part, made, strict=True))
        packed = self._keep(requests, prompts, replies)
        return [replies[i] for i in range(len(requests))], packed

    def _prompt(self, request: Request) -> list[int] | CallError:
        lacking = beyond_text(request, exit=self.exit, hidden=True)
        if request.want is not None and not 0 <= request.want.layer < self.layers:
            lacking = f"give the input of layer {request.want.layer}: it has {self.layers} layers"
        if lacking:
            return CallError("refused", f"{self.info.name} runs on transformers, where it cannot {lacking}")
        return self.turns.ids(request.messages)

    def _keep(self, requests: Sequence[Request], prompts: Mapping[int, list[int]], replies: dict[int, Reply | CallError]) -> dict[str, bytes]:
        """Put the hidden states that were wanted beside their replies: of prompt and answer, but for the last token, which was never fed."""
        from aiflow_agents.models.family.resume import Start

        packed: dict[str, bytes] = {}
        wanted: dict[Want, list[int]] = {}
        said: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            reply = replies[i]
            if request.want is not None and isinstance(reply, Reply):
                wanted.setdefault(request.want, []).append(i)
                said[i] = [*prompts[i], *reply.token_ids[:-1]]
        for want, places in wanted.items():
            for part in _batches(places, said):
                for i, states in zip(part, self._hidden([said[i] for i in part], want.layer), strict=True):
                    reply = replies[i]
                    assert isinstance(reply, Reply)
                    coded = self.courier.pack(Start(want.layer, states, len(prompts[i]), reply.token_ids, tuple(said[i])), want)
                    digest = hashlib.sha256(coded).hexdigest()
                    packed[digest] = coded
                    parcel = Parcel(digest, len(coded), self.info.weights_hash, want, len(prompts[i]), reply.token_ids)
                    work = None if reply.token_ids else (Pass(want.layer / self.layers, len(said[i]), 0, 0),)
                    replies[i] = replace(reply, parcel=parcel, work=work)
        return packed

    def _hidden(self, sequences: Sequence[list[int]], layer: int) -> list[Tensor]:
        """The input of `layer` at every position of each sequence, [positions, width]."""
        import torch

        given = self.tokenizer.pad({"input_ids": list(sequences)}, return_tensors="pt", padding_side="right")
        with torch.inference_mode():
            out = self.model.base_model(**given, output_hidden_states=True, use_cache=False)
        return [states[: len(ids)].clone() for ids, states in zip(sequences, out.hidden_states[layer], strict=True)]

    def _generate(self, prompts: Sequence[list[int]], request: Request, room: int, told: Told | None = None) -> list[Reply]:
        """Answers of at most `room` tokens to prompts that are asked alike."""
        import torch
        from transformers import GenerationConfig

        given = self.tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt")
        ends = self.model.generation_config.eos_token_id
        warm = request.sampling.temperature > 0
        how: dict[str, Any] = {"temperature": request.sampling.temperature, "top_p": request.sampling.top_p, "top_k": 0} if warm else {}
        config = GenerationConfig(
            max_new_tokens=room, do_sample=warm, eos_token_id=ends, pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True, output_logits=True, stop_strings=list(request.stop) or None, **how,
        )  # fmt: skip
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            out = self.model.generate(
                **given, generation_config=config, tokenizer=self.tokenizer if request.stop else None,
                streamer=None if told is None else _Streamer(told, len(prompts), ends, self.tokenizer.pad_token_id),
            )  # fmt: skip
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
