"""A codec: payload to frame and back. The size of a payload is the length of that frame.

The header of a frame holds whole numbers that say what the payload is. Which codec it was is not said, as its fingerprint is in the checksum; nor is
the layer, where the codec is fitted for one alone, or the width, where it is fitted at all.

    states    first position, positions                                   | layer and width, where unknown; states
    hidden    first position, positions, how token ids come               | layer and width, where unknown; token ids, states
    logits    vocabulary, positions, values a position, bytes an index    | values, indices
    kv        first layer, layers, positions, heads, head size            | lengths of the parts, keys, values, keys, ...
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np

from aiflow_agents.wire.codecs.floats import FloatFormat
from aiflow_agents.wire.codecs.plain import Coding, Known, Unchanged
from aiflow_agents.wire.codecs.quantiser import CodecError
from aiflow_agents.wire.codecs.stored import Arrays
from aiflow_agents.wire.codecs.tokens import TokenModel
from aiflow_agents.wire.frame import HIDDEN, KV, LOGITS, STATES, FrameError, Sealed, read_varint, seal, unseal, varint
from aiflow_agents.wire.payload import Hidden, Ints, KVCache, Logits, Payload, PayloadError

MAX_ELEMENTS = 1 << 26  # numbers in one payload: what a small frame may make a receiver allocate
ANY = "*"
TEXT = "text"
ID_SIZES = 0, 1, 2, 4  # bytes of a token id or an index; 0: there are none
MODELLED = 8  # from here on a header says how many bytes token ids take under the codec's model of text


class Codec:
    """Made by `codec(spec)`, `fit(spec, samples)` or `load(file)`. `codings`: space (`hidden.3`, `key.0`, `value.0`, or `*` for any) -> coding."""

    def __init__(self, spec: str, codings: Mapping[str, Coding], max_elements: int = MAX_ELEMENTS, text: TokenModel | None = None):
        self.spec, self.codings, self.max_elements, self.text = spec, dict(codings), max_elements, text

    def fidelity(self, dtype: str = "float32") -> Literal["exact", "lossy"]:
        """Whether states that a model computed in this dtype come back bit for bit."""
        kept = [coding.floats is not None and coding.floats.dtype in ("float32", dtype) for coding in self.codings.values()]
        return "exact" if kept and all(kept) else "lossy"

    @property
    def needs_tokens(self) -> bool:
        """Whether states can be coded only beside their token ids."""
        return self.spec.startswith("predict")

    @cached_property
    def fingerprint(self) -> bytes:
        """sha256 of the spec and every fitted array: codecs are the same when these are. Compared in the handshake."""
        digest = hashlib.sha256(self.spec.encode())
        for space, arrays in sorted(self.arrays().items()):
            for name, array in sorted(arrays.items()):
                digest.update(json.dumps([space, name, array.dtype.str, array.shape]).encode() + np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def arrays(self) -> dict[str, Arrays]:
        """All that is fitted, by space; `text` is the model of token ids."""
        found = {space: coding.arrays() for space, coding in self.codings.items()}
        return found if self.text is None else {**found, TEXT: self.text.arrays()}

    # -- there ---------------------------------------------------------------------------------------------------------

    def encode(self, payload: Payload, *, before: Hidden | None = None, told: bool = False) -> bytes:
        """The frame that travels.

        before: the positions before `payload.first`, as the receiver decoded them. told: the receiver has the token ids already, so they stay here.
        Raises CodecError for a payload that this codec cannot code.
        """
        if isinstance(payload, Hidden):
            return self._encode_hidden(payload, before, told)
        return self._encode_logits(payload) if isinstance(payload, Logits) else self._encode_kv(payload)

    def _encode_hidden(self, payload: Hidden, before: Hidden | None, told: bool) -> bytes:
        positions, width = self._within(*payload.states.shape)
        coding = self._coding(f"hidden.{payload.layer}", width)
        body = coding.pack(payload.states, Known(payload.token_ids, _check_before(before, payload.layer, payload.first, width), payload.first))
        untold = self._untold(payload.layer, width)
        if payload.token_ids is None or told:
            return self._seal(STATES, [payload.first, positions], untold + body)
        how, ids = self._pack_ids(payload.token_ids)
        return self._seal(HIDDEN, [payload.first, positions, how], untold + ids + body)

    def overhead(self, payload: Hidden) -> int:
        """Bytes of a frame of states that are neither states nor token ids: kind, header and checksum."""
        return len(self._seal(STATES, [payload.first, len(payload.states)], self._untold(payload.layer, payload.states.shape[1])))

    def _untold(self, layer: int, width: int) -> bytes:
        """What a receiver who has this codec does not know of all its frames."""
        return (varint(layer) if self._layer is None else b"") + (b"" if self._coding(f"hidden.{layer}").width else varint(width))

    def _encode_logits(self, payload: Logits) -> bytes:
        floats = self._raw("logits")
        positions, k = self._within(*payload.values.shape)
        size = 0 if payload.indices is None else _id_size(payload.vocab - 1)
        indices = b"" if payload.indices is None else payload.indices.astype(f"<u{size}").tobytes()
        return self._seal(LOGITS, [payload.vocab, positions, k, size], floats.patterns(payload.values).tobytes() + indices)

    def _encode_kv(self, payload: KVCache) -> bytes:
        layers, positions, heads, dim = payload.keys.shape
        self._within(2, layers, positions, heads, dim)
        parts = [
            self._coding(f"{kind}.{payload.start + i}", heads * dim).pack(array[i].reshape(positions, heads * dim), Known())
            for i in range(layers)
            for kind, array in (("key", payload.keys), ("value", payload.values))
        ]
        return self._seal(KV, [payload.start, layers, positions, heads, dim], b"".join([*(varint(len(part)) for part in parts), *parts]))

    def _pack_ids(self, token_ids: Ints) -> tuple[int, bytes]:
        """How they come, as the header says it, and their bytes."""
        if self.text is not None:
            packed = self.text.pack(token_ids)
            return MODELLED + len(packed), packed
        size = _id_size(int(token_ids.max(initial=0)))
        return size, token_ids.astype(f"<u{size}").tobytes()

    def _unpack_ids(self, how: int, body: bytes, positions: int) -> Ints:
        if how < MODELLED:
            return np.frombuffer(body, f"<u{how}").astype(np.int64)
        if self.text is None:
            raise FrameError("token ids under a model that this codec does not have")
        return self.text.unpack(body, positions)

    def _seal(self, kind: int, header: list[int], body: bytes) -> bytes:
        return seal(kind, header, body, self.fingerprint)

    # -- and back ------------------------------------------------------------------------------------------------------

    def decode(self, frame: bytes, *, before: Hidden | None = None, token_ids: Ints | None = None) -> Payload:
        """The payload of a frame; the same `before`, and the token ids where the sender left them out. Raises FrameError, whatever the bytes."""
        sealed = unseal(frame, self.fingerprint)
        try:
            if sealed.kind in (STATES, HIDDEN):
                return self._hidden(sealed, before, token_ids)
            if sealed.kind in (LOGITS, KV):
                return self._logits(sealed) if sealed.kind == LOGITS else self._kv(sealed)
        except (CodecError, PayloadError) as error:
            raise FrameError(f"damaged frame: {error}") from None
        raise FrameError("not a payload frame")

    def _hidden(self, sealed: Sealed, before: Hidden | None, token_ids: Ints | None) -> Hidden:
        first, positions, *rest = sealed.header
        layer, at = read_varint(sealed.body, 0) if self._layer is None else (self._layer, 0)
        coding = self._coding(f"hidden.{layer}")
        width, at = (coding.width, at) if coding.width else read_varint(sealed.body, at)
        self._within(positions, width)
        body = sealed.body[at:]
        how = rest[0] if rest else 0
        taken = how - MODELLED if how >= MODELLED else how * positions if how in ID_SIZES else len(body) + 1
        if taken > len(body) or rest == [0]:
            raise FrameError("the frame ends within its token ids")
        if how:
            token_ids = self._unpack_ids(how, body[:taken], positions)
        known = Known(token_ids, _check_before(before, layer, first, width), first)
        return Hidden(layer, coding.unpack(body[taken:], positions, width, known), token_ids, first)

    def _logits(self, sealed: Sealed) -> Logits:
        vocab, positions, k, size = sealed.header
        self._within(positions, k)
        floats = self._raw("logits")
        cut = positions * k * floats.size
        if size not in ID_SIZES or k > vocab or len(sealed.body) != cut + positions * k * size:
            raise FrameError("damaged logits: their sizes do not fit together")
        values = floats.floats(np.frombuffer(sealed.body[:cut], f"<u{floats.size}")).reshape(positions, k)
        indices = np.frombuffer(sealed.body[cut:], f"<u{size}").reshape(positions, k).astype(np.int64) if size else None
        return Logits(values, indices, vocab)

    def _kv(self, sealed: Sealed) -> KVCache:
        start, layers, positions, heads, dim = sealed.header
        self._within(2, layers, positions, heads, dim)
        if 2 * layers > len(sealed.body):
            raise FrameError("the frame ends within its table of lengths")
        lengths, at = [], 0
        for _ in range(2 * layers):
            length, at = read_varint(sealed.body, at)
            lengths.append(length)
        ends = list(accumulate(lengths, initial=at))
        if ends[-1] != len(sealed.body):
            raise FrameError("damaged table of lengths")
        parts = [
            self._coding(f"{('key', 'value')[i % 2]}.{start + i // 2}", heads * dim).unpack(sealed.body[a:b], positions, heads * dim, Known())
            for i, (a, b) in enumerate(zip(ends, ends[1:], strict=False))
        ]
        both = np.stack(parts) if parts else np.zeros((0, positions, heads * dim), np.float32)
        both = both.reshape(layers, 2, positions, heads, dim)
        return KVCache(start, both[:, 0], both[:, 1])

    # -- what is possible ----------------------------------------------------------------------------------------------

    @cached_property
    def _layer(self) -> int | None:
        """The only layer whose states it codes; None where a frame has to say of which it is."""
        layers = [space.rpartition(".")[2] for space in self.codings if space == ANY or space.startswith("hidden.")]
        return int(layers[0]) if len(layers) == 1 and layers[0].isdecimal() else None

    def _coding(self, space: str, width: int | None = None) -> Coding:
        found = self.codings.get(space) or self.codings.get(ANY)
        if found is None:
            raise CodecError(f"codec '{self.spec}' is fitted for {', '.join(sorted(self.codings))}; not for {space}")
        if width is not None and found.width not in (0, width):
            raise CodecError(f"codec '{self.spec}' is fitted for {found.width} numbers a position of {space}, not for {width}")
        return found

    def _raw(self, what: str) -> FloatFormat:
        coding = self.codings.get(ANY)
        if not isinstance(coding, Unchanged):
            raise CodecError(f"codec '{self.spec}' does not code {what}; raw does")
        return coding.floats

    def _within(self, *shape: int) -> tuple[int, ...]:
        elements = 1
        for n in shape:  # python's integers, which do not overflow
            elements *= max(n, 1)
        if elements > self.max_elements:
            raise CodecError(f"a payload of {elements:,} numbers; this receiver takes {self.max_elements:,}")
        return shape


def _check_before(before: Hidden | None, layer: int, first: int, width: int) -> Hidden | None:
    if before is not None and (before.layer != layer or before.first != 0 or before.states.shape != (first, width)):
        raise CodecError(f"what came before must be positions 0 .. {first - 1} of layer {layer}, {width} wide")
    return before


def _id_size(largest: int) -> int:
    return 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
