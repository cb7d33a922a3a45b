from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest

from aiflow_agents.errors import NotHere, UserError
from aiflow_agents.wire.frame import decode_text, encode_tokens
from aiflow_agents.wire.message import HERE, MOVER, Draft, Message, Usage, bring, standing_at

LONG = Message("ann.1", "ann", "phone", _text="well, let me see: it is 42", _answer="42", _confidence=0.5)


@pytest.fixture
def at_tower() -> Iterator[None]:
    token = HERE.set("tower")
    yield
    HERE.reset(token)


@pytest.mark.parametrize("what", ["text", "answer", "confidence"])
def test_what_is_elsewhere_cannot_be_read(at_tower: None, what: str) -> None:
    with pytest.raises(NotHere, match=r"message ann.1 of ann is at phone, not at tower; `await message.to\('tower'\)` moves it"):
        getattr(LONG, what)
    with pytest.raises(NotHere):
        str(LONG)
    with pytest.raises(NotHere):
        getattr(LONG.as_("answer"), what)
    with standing_at("phone"):
        assert getattr(LONG, what) in ("well, let me see: it is 42", "42", 0.5)
    with pytest.raises(NotHere):
        getattr(LONG, what)


def test_name_place_and_size_are_free(at_tower: None) -> None:
    assert (LONG.id, LONG.author, LONG.node, LONG.heard, LONG.usage) == ("ann.1", "ann", "phone", (), Usage())
    assert LONG.size == len(LONG.encode()) > 0
    assert "42" not in repr(LONG)


def test_outside_of_any_run_everything_can_be_read_and_nothing_moves() -> None:
    assert (LONG.text, LONG.answer, LONG.confidence) == ("well, let me see: it is 42", "42", 0.5)
    assert asyncio.run(LONG.to("phone")) is LONG
    with pytest.raises(NotHere, match="no network"):
        asyncio.run(LONG.to("tower"))


def test_the_answer_alone_is_a_smaller_frame() -> None:
    short = LONG.as_("answer")
    assert short.size == LONG.size - len(LONG.text) + len("42")
    assert decode_text(short.encode()) == ("ann.1", "ann", "42", 0.5, b"")
    assert decode_text(LONG.encode()).text == LONG.text
    assert short.text == "42" and short.as_("text") == LONG  # nothing has moved yet


def test_a_message_that_says_nothing_is_a_byte_and_who_says_it() -> None:
    class Box(NamedTuple):
        digest: str = "d"
        nbytes: int = 40

    said = Message("ann.1", "ann", "phone", _text="42", _answer="42", _cargo=Box())
    silent = replace(said.as_("hidden"), _text="")
    assert silent.size == 1 + (1 + 3) + 1 + 40 and said.as_("hidden").size == silent.size + 1 + 2  # text has a length where more follows
    assert decode_text(silent.encode() + b"payload") == ("ann.1", "ann", "", None, b"payload")
    assert decode_text(said.as_("hidden").encode() + b"payload") == ("ann.1", "ann", "42", None, b"payload")
    assert decode_text(said.encode()) == ("ann.1", "ann", "42", None, b"")


def test_a_part_is_what_was_said_and_less_of_it(at_tower: None) -> None:
    with pytest.raises(NotHere):
        LONG.part("it is 42")
    with standing_at("phone"):
        part = LONG.part("it is 42")
        assert (part.text, part.answer, part.id, part.node) == ("it is 42", "it is 42", "ann.1", "phone")
        assert decode_text(part.encode()) == ("ann.1", "ann", "it is 42", 0.5, b"") and part.size < LONG.size
        assert LONG.part("").text == ""
        with pytest.raises(UserError, match="message ann.1 of ann does not say 'it is 43'"):
            LONG.part("it is 43")
        with pytest.raises(UserError):
            LONG.as_("answer").part("let me see")  # what stays behind is no part of what travels


@pytest.fixture
def moved() -> Iterator[list[tuple[list[int], str]]]:
    """What the network was asked to carry: the sizes, and where to."""
    asked: list[tuple[list[int], str]] = []

    async def move(messages: Iterable[Message], node: str) -> None:
        asked.append(([message.size for message in messages], node))

    token = MOVER.set(move)
    yield asked
    MOVER.reset(token)


def test_what_did_not_travel_is_not_there(moved: list[tuple[list[int], str]]) -> None:
    there = asyncio.run(LONG.as_("answer").to("tower"))
    assert moved == [([LONG.as_("answer").size], "tower")]
    assert there.node == "tower" and there.id == LONG.id and there.answer == "42" and there.confidence == 0.5
    assert there.as_("text").text == "42"


def test_several_messages_set_out_together(moved: list[tuple[list[int], str]]) -> None:
    near = replace(LONG, id="tim.1", author="tim", node="tower")
    there = asyncio.run(bring([LONG, near, LONG.as_("answer")], "tower"))
    assert [message.node for message in there] == ["tower"] * 3 and there[1] is near
    assert [message.text for message in there] == [LONG.text, LONG.text, "42"] and len(moved) == 1
    assert asyncio.run(bring([near], "tower")) == [near] and len(moved) == 1  # what is there need not be carried


def test_messages_are_frozen_and_can_be_stored() -> None:
    with pytest.raises(AttributeError):
        LONG.node = "tower"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(LONG)) == LONG


def test_usage_adds_field_by_field() -> None:
    assert Usage(1, 2, 3, 4, 5, 6, 7) + Usage(10, 20, 30, 40, 50, 60, 70) == Usage(11, 22, 33, 44, 55, 66, 77)


DRAFT = Message("ann.1", "ann", "phone", _text="42", _answer="42", _confidence=0.5, _cargo=Draft((7, 300), -0.7, b"frame"))


def test_of_a_draft_its_tokens_travel_or_what_may_come_next(moved: list[tuple[list[int], str]]) -> None:
    empty = Message("ann.1", "ann", "phone", _confidence=0.5).size
    tokens, logits = DRAFT.as_("tokens"), DRAFT.as_("logits")
    assert tokens.size == empty + len(encode_tokens((7, 300))) and logits.size == empty + len(b"frame")
    assert DRAFT.size == len(DRAFT.encode()) and tokens.text == logits.text == ""
    assert len({message._freight for message in (DRAFT, tokens, logits)}) == 3
    (there,) = asyncio.run(bring([DRAFT], "tower"))
    assert there.text == "42" and there._cargo is None
    with pytest.raises(UserError, match="ask with top=Top"):
        there.as_("tokens")
    with pytest.raises(UserError, match="has no hidden states"):
        DRAFT.as_("hidden")
    (there,) = asyncio.run(bring([tokens], "tower"))
    assert there._cargo == Draft((7, 300))  # neither its probability nor its frame went along


def test_a_draft_grows_where_it_is(at_tower: None) -> None:
    for read in (lambda: DRAFT.logits, lambda: DRAFT.then(5, -0.1)):
        with pytest.raises(NotHere):
            read()
    with standing_at("phone"):
        longer = DRAFT.then(5, -0.3)
        assert longer.form == "tokens" and longer._cargo == Draft((7, 300, 5), -1.0)
        assert DRAFT.as_("tokens").then(5, -0.3)._cargo == Draft((7, 300, 5))
        assert replace(DRAFT, _cargo=Draft((7,))).logits is None
