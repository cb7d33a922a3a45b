"""Small random checkpoints, made by transformers, that the tests of the family decoder share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ARCHITECTURES = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}
SMALL = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": 256, "initializer_range": 0.2, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
CHARACTERS = ["<pad>", "<bos>", "<eos>", "<user>", "<heard>", "<assistant>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789 =*+-?!.,:()"]
TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{{ raise_exception('no system turns here') }}{%- endif -%}
    {%- if message.role == 'assistant' -%}
        <assistant>{% generation %}{{ message.content }}{% endgeneration %}{{ eos_token }}
    {%- elif message.name is defined and message.name -%}<heard>{{ message.name }}:{{ message.content }}
    {%- else -%}<user>{{ message.content }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}
"""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """make_checkpoint(model_type, seed=0, shard=None, **config) -> (folder, the transformers model)."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()

    def make(kind: str, seed: int = 0, shard: str | None = None, **settings: Any) -> tuple[Path, Any]:
        torch.manual_seed(seed)
        config = getattr(transformers, ARCHITECTURES[kind])(**{**SMALL, **settings})
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # gains and biases start as ones and zeros, where a mistake would not show
                parameter.data.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name))
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        return folder, model

    return make


@pytest.fixture(scope="session")
def add_tokenizer() -> Callable[[Path], None]:
    """add_tokenizer(folder): a tokenizer of one token a character and a chat template."""

    def add(folder: Path) -> None:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(CHARACTERS)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CHARACTERS[:7]])
        tokenizer.save(str(folder / "tokenizer.json"))
        eos = {"__type": "AddedToken", "content": "<eos>", "special": True, **dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": eos, "pad_token": "<pad>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").write_text(TEMPLATE)

    return add


EXITS = (1, 3, 5)


@pytest.fixture(scope="session")
def grow(make_checkpoint: Callable[..., tuple[Path, Any]]) -> Callable[..., tuple[Path, Any]]:
    """grow(model_type, **config) -> (folder, the transformers model with branches): a random family of six layers with exits 1, 3 and 5."""
    from aiflow_agents.training.branches import add_branches

    def grow(kind: str, **settings: Any) -> tuple[Path, Any]:
        folder, model = make_checkpoint(kind, num_hidden_layers=EXITS[-1] + 1, **settings)
        add_branches(model, EXITS)
        torch.manual_seed(7)
        for name, parameter in model.named_parameters():
            if "eelayers" in name or "norms" in name:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        return folder, model

    return grow


@pytest.fixture(scope="session")
def family(grow: Callable[..., tuple[Path, Any]]) -> tuple[Path, Any]:
    """A random Qwen3-shaped family, as a folder and as the transformers model that training uses."""
    return grow("qwen3")
