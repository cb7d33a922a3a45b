"""What two models may say to each other besides text, agreed once per session.

A hidden state is a point in the space of one model's weights. Another fine-tune with the same configuration has another space, and nothing in the
numbers would show it, so spaces are told apart by the hash of the weights. Hashes travel here and never again: frames carry none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Literal

import msgpack

from aiflow_agents.errors import AIFlowError
from aiflow_agents.wire.frame import HELLO, VERSION, FrameError, seal, unseal

Form = Literal["text", "logits", "hidden", "kv"]


class SpacesDiffer(AIFlowError):
    """Two models were to exchange more than text, and must not: says what differs."""


@dataclass(frozen=True)
class Identity:
    """Who speaks. `weights_hash` is that of the backbone which a family's branches share; `layers` counts those of its layers held on this side."""

    family: str
    weights_hash: str  # hexadecimal
    tokenizer_hash: str  # hexadecimal
    dtype: str
    width: int
    layers: int


@dataclass(frozen=True)
class Agreement:
    """The forms that both sides can exchange, and for those missing, why."""

    forms: frozenset[Form]
    reasons: tuple[str, ...] = ()

    def need(self, form: Form) -> None:
        """Raises SpacesDiffer where this form was not agreed on."""
        if form not in self.forms:
            raise SpacesDiffer(f"no {form} between these two: {'; '.join(self.reasons)}")


def agree(mine: Identity, theirs: Identity, layer: int, *, otherwise: Literal["text", "refuse"] = "text") -> Agreement:
    """Compare both sides for states at the input of `layer`.

    Text always passes. Logits need one tokenizer; hidden states and caches one backbone too, the same dtype, and that both sides hold all layers
    before `layer`. Where these are missing, what is left is agreed on (`text`), or SpacesDiffer is raised (`refuse`).
    """
    tokens = ["the tokenizers differ"] if mine.tokenizer_hash != theirs.tokenizer_hash else []
    spaces = list(tokens)
    for name, said in (("family", "families"), ("weights_hash", "weights"), ("dtype", "dtypes"), ("width", "widths")):
        if (a := getattr(mine, name)) != (b := getattr(theirs, name)):
            spaces.append(f"the {said} differ" + ("" if name == "weights_hash" else f" ({a} and {b})"))
    if not 0 <= layer <= min(mine.layers, theirs.layers):
        spaces.append(f"the input of layer {layer} is not on both sides, which hold {mine.layers} and {theirs.layers} layers")
    if spaces and otherwise == "refuse":
        raise SpacesDiffer(f"{mine.family} and {theirs.family} cannot exchange hidden states: {'; '.join(spaces)}")
    forms: set[Form] = {"text"}
    forms |= set() if tokens else {"logits"}
    forms |= set() if spaces else {"hidden", "kv"}
    return Agreement(frozenset(forms), tuple(spaces))


def meet(sender: bytes, receiver: bytes, layer: int, codecs: Iterable[str] = ()) -> Agreement:
    """What both hellos allow for states at the input of `layer`, coded by these codecs, which must be calibrated alike.

    A codec that neither side has fitted is one that needs no fitting. Raises FrameError.
    """
    (mine, ours), (theirs, others) = read_hello(sender), read_hello(receiver)
    found = agree(mine, theirs, layer)
    missing = tuple(f"codec {name} is not the same on both sides" for name in codecs if ours.get(name) != others.get(name))
    return Agreement(found.forms - {"hidden", "kv"}, found.reasons + missing) if missing else found


def hello(identity: Identity, codecs: Mapping[str, bytes] | None = None) -> bytes:
    """The frame that each side sends once: who it is, and the codecs that it has fitted, name -> fingerprint."""
    family, weights, tokenizer, *rest = astuple(identity)
    body = [family, bytes.fromhex(weights), bytes.fromhex(tokenizer), *rest, [[name, fingerprint] for name, fingerprint in (codecs or {}).items()]]
    return seal(HELLO, [VERSION], msgpack.packb(body))


def read_hello(frame: bytes) -> tuple[Identity, dict[str, bytes]]:
    """The other side's identity and its codecs, name -> fingerprint. Raises FrameError for anything else, whatever the bytes."""
    sealed = unseal(frame)
    if sealed.kind != HELLO:
        raise FrameError("not a hello")
    if sealed.header != [VERSION]:
        raise FrameError(f"a hello of version {sealed.header[0]}; this side speaks version {VERSION}: update the older one")
    try:
        body = msgpack.unpackb(sealed.body, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FrameError(f"damaged hello: {error}") from None
    if not isinstance(body, list) or [type(part) for part in body] != [str, bytes, bytes, str, int, int, list] or min(body[4:6]) < 0:
        raise FrameError("damaged hello: expected family, two hashes, dtype, width, layers and codecs")
    family, weights, tokenizer, dtype, width, layers, codecs = body
    if not all(isinstance(pair, list) and [type(part) for part in pair] == [str, bytes] for pair in codecs):
        raise FrameError("damaged hello: a codec is its name and a fingerprint")
    return Identity(family, weights.hex(), tokenizer.hex(), dtype, width, layers), dict(codecs)
