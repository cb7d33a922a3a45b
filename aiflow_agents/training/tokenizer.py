"""One character-level tokenizer in Hugging Face form, with a chat template in which heard messages are named turns.

A conversation reads `<bos><user>37*8=<heard>elm:286<heard>ash:296<assistant>296<eos>`: one token a character, nothing hidden.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<bos>", "<eos>", "<user>", "<heard>", "<assistant>", "<unk>")
CHARACTERS = tuple(chr(code) for code in range(32, 127))
VOCABULARY = {token: index for index, token in enumerate(SPECIAL + CHARACTERS)}
PAD, BOS, EOS, USER, HEARD, ASSISTANT, UNK = range(len(SPECIAL))

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}<assistant>{{ message.content }}{{ eos_token }}
{%- elif message.role == 'system' -%}{{ raise_exception('this model was trained without system turns') }}
{%- elif message.name is defined and message.name -%}<heard>{{ message.name }}:{{ message.content }}
{%- else -%}<user>{{ message.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}
"""


def encode(text: str) -> list[int]:
    """Token ids of plain text: one a character, `<unk>` outside printable ASCII."""
    return [VOCABULARY.get(character, UNK) for character in text]


def prompt_ids(question: str, heard: tuple[tuple[str, str], ...] = ()) -> list[int]:
    """Token ids of a question and what was heard, up to and with `<assistant>`: the chat template, without the detour through text."""
    ids = [BOS, USER, *encode(question)]
    for name, content in heard:
        ids += [HEARD, *encode(f"{name}:{content}")]
    return [*ids, ASSISTANT]


def build() -> Tokenizer:
    """The tokenizer as `tokenizers.Tokenizer`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def save(folder: Path, max_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, as `AutoTokenizer` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
