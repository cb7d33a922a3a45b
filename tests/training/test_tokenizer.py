from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiflow_agents.models.family.chat import Chat
from aiflow_agents.models.protocol import Turn
from aiflow_agents.training import tokenizer
from aiflow_agents.training.tokenizer import SPECIAL, UNK, VOCABULARY, encode, prompt_ids

names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
# what a user types may look like a special token, and then both tokenizers of a folder read it as one: not what is tested here
texts = st.text(st.characters(codec="utf-8") | st.sampled_from("+-*%<>(): \n"), max_size=30).filter(lambda text: not any(s in text for s in SPECIAL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder, 256)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(question=texts, heard=st.lists(st.tuples(names, texts), max_size=4))
def test_prompt_ids_are_what_the_chat_template_gives(folder: Path, theirs: Any, question: str, heard: list[tuple[str, str]]) -> None:
    turns = [{"role": "user", "content": question}, *({"role": "user", "name": name, "content": said} for name, said in heard)]
    ours = prompt_ids(question, tuple(heard))
    assert theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"] == ours
    assert Chat(folder).prompt([Turn(turn["role"], turn["content"], turn.get("name")) for turn in turns]) == ours


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_one_token_a_character(theirs: Any, text: str) -> None:
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == encode(text)
    assert len(ids) == len(text)
    printable = "".join(character for character in text if " " <= character <= "~")
    assert theirs.decode(encode(printable)) == printable
    assert [UNK in [i] for i in ids] == [not " " <= character <= "~" for character in text]


def test_the_whole_conversation_is_what_training_sees(theirs: Any) -> None:
    turns = [{"role": "user", "content": "37*8="}, {"role": "user", "name": "elm", "content": "286"}, {"role": "assistant", "content": "296"}]
    assert theirs.apply_chat_template(turns, tokenize=False) == "<bos><user>37*8=<heard>elm:286<assistant>296<eos>"
    assert theirs.apply_chat_template(turns, return_dict=True)["input_ids"] == [*prompt_ids("37*8=", (("elm", "286"),)), *encode("296"), 2]


def test_a_system_turn_is_refused_by_name(theirs: Any) -> None:
    with pytest.raises(Exception, match="without system turns"):
        theirs.apply_chat_template([{"role": "system", "content": "be kind"}], tokenize=False)


def test_special_tokens_are_where_config_and_training_expect_them(theirs: Any) -> None:
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2, UNK)
    assert len(theirs) == len(VOCABULARY)
