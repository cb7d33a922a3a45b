"""Pictures on a wire: whole or refused; and that what stays at a node does not leave it."""

from __future__ import annotations

import random
from zlib import crc32

import numpy as np
import pytest

from aiflow_agents.errors import PrivacyError, UserError
from aiflow_agents.wire.frame import JPEG, PICTURE, FrameError, seal, unseal
from aiflow_agents.wire.message import Form, Message
from aiflow_agents.wire.payload import PayloadError
from aiflow_agents.wire.picture import Picture, Private, decode_jpeg, decode_picture, encode_jpeg, encode_picture


def some(seed: int = 0, camera: int = 2) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8), camera)


def test_a_picture_comes_back_as_it_was() -> None:
    back = decode_picture(encode_picture(some()))
    assert back == some() and back.camera == 2 and np.array_equal(back.pixels, some().pixels)
    assert some() != some(1) and some() != some(camera=1) and len({some(), some(), some(1)}) == 2
    assert some().nbytes == len(encode_picture(some())) == 6 * 5 * 3 + 1 + 3 + 4


@pytest.mark.parametrize("reseal", [False, True])
def test_a_damaged_picture_is_refused_or_right(reseal: bool) -> None:
    """With `reseal` by somebody who knows how to write a checksum: then it is at least a picture."""
    rng, frame, refused = random.Random(4), encode_picture(some()), 0
    for _ in range(2000):
        damaged = bytearray(frame[:-4] if reseal else frame)
        for _ in range(rng.randint(1, 3)):
            at, kind = rng.randrange(max(len(damaged), 1)), rng.randrange(4)
            if kind == 0 and damaged:
                damaged[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del damaged[at : at + rng.randint(1, 5)]
            elif kind == 2:
                damaged[at:at] = rng.randbytes(rng.randint(1, 5))
            else:
                damaged = damaged[: at + 1]
        sent = bytes(damaged) + (crc32(damaged).to_bytes(4, "little") if reseal else b"")
        try:
            found = decode_picture(sent)
        except FrameError:
            refused += 1
            continue
        assert isinstance(found, Picture) and (reseal or found == some())
    assert 1000 < refused


def test_what_a_frame_says_is_checked_before_memory_is_taken() -> None:
    for header in ([0, 1 << 40, 1 << 40], [0, 2, 2], [0, 1], [0, 1, 1, 1]):
        with pytest.raises(FrameError):
            decode_picture(seal(PICTURE, header, b"abc"))
    with pytest.raises(FrameError, match="not a frame of a picture"):
        decode_picture(seal(2, [0, 1, 1], b"abc"))


def test_pixels_are_eight_bits() -> None:
    for bad in (np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8)):
        with pytest.raises(PayloadError, match="pixels"):
            Picture(bad)
    with pytest.raises(PayloadError, match="camera"):
        Picture(np.zeros((2, 2, 3), np.uint8), -1)


@pytest.mark.parametrize(("released", "form", "leaves"), [
    (("answer", "features"), "picture", False), (("picture",), "picture", True), (("answer",), "text", True), (("answer",), "answer", True),
    (("features",), "answer", False), (("features",), "hidden", True), (("answer",), "hidden", False), (("answer", "features"), "logits", False),
])  # fmt: skip
def test_only_what_is_released_leaves(released: tuple[str, ...], form: Form, leaves: bool) -> None:
    message = Message("a.1", "cam", "pi", form=form, _cargo=some(), _stays=Private("pi", released))
    if leaves:
        message.check_leaves()
    else:
        with pytest.raises(PrivacyError, match=r"message a.1 of cam stays at pi: released from there are .*, not ") as error:
            message.check_leaves()
        assert "\n" not in str(error.value)


def test_a_picture_is_nothing_else() -> None:
    message = Message("p0", "camera", "pi", form="picture", _cargo=some())
    for form in ("hidden", "text", "answer"):
        with pytest.raises(UserError):
            message.as_(form)  # type: ignore[arg-type]
    with pytest.raises(UserError):
        Message("a.1", "cam", "pi").as_("picture")
    assert message.size == some().nbytes + len(message.encode())


def photo(seed: int = 0, noise: float = 10.0) -> Picture:
    """Something smooth, with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:20, 0:28] / 20
    smooth = np.stack([np.sin(3 * x + y), np.cos(2 * y), x * y], 2) * 90 + 120
    return Picture((smooth + noise * rng.normal(size=smooth.shape)).clip(0, 255).astype(np.uint8), 3)


def test_a_jpeg_is_what_the_library_makes_without_its_tables() -> None:
    """Against a whole file, written and read by Pillow at the quality that was chosen."""
    import io

    from PIL import Image

    for budget in (60, 120, 300, 1200):
        frame = encode_jpeg(photo(), budget)
        assert len(frame) <= budget
        _, _, _, quality, subsampling = unseal(frame).header
        file = io.BytesIO()
        Image.fromarray(photo().pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
        found = decode_jpeg(frame)
        assert np.array_equal(found.pixels, np.asarray(Image.open(io.BytesIO(file.getvalue())))) and found.camera == 3
        assert file.getvalue().endswith(unseal(frame).body + b"\xff\xd9") and len(frame) < len(file.getvalue()) - 500


def test_more_bytes_make_a_better_jpeg_and_too_few_the_smallest() -> None:
    lost = [float(np.abs(photo().jpeg(budget).picture.pixels.astype(float) - photo().pixels).mean()) for budget in (60, 120, 300, 1200)]
    assert lost == sorted(lost, reverse=True) and lost[0] > 2 * lost[-1]
    smallest = encode_jpeg(photo(), 5)
    assert len(smallest) > 5 and smallest == encode_jpeg(photo(), len(smallest))


@pytest.mark.parametrize("reseal", [False, True])
def test_a_damaged_jpeg_is_refused_or_right(reseal: bool) -> None:
    rng, frame = random.Random(5), encode_jpeg(photo(), 200)
    refused = 0
    for _ in range(600):
        damaged = bytearray(frame[:-4] if reseal else frame)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(damaged))
            if rng.random() < 0.5:
                damaged[at] = rng.choice((0, 0xFF, 0xC4, 0xD8, rng.randrange(256)))
            else:
                del damaged[at : at + rng.randint(1, 5)]
        sent = bytes(damaged) + (crc32(damaged).to_bytes(4, "little") if reseal else b"")
        try:
            found = decode_jpeg(sent)
        except FrameError:
            refused += 1
            continue
        assert reseal or found.digest == decode_jpeg(frame).digest  # some damage undoes itself
        assert found.pixels.size <= 3 * (1 << 24)
    assert refused > 100
    for header, body in (([0, 1 << 40, 1, 50, 0], b""), ([0, 0, 4, 50, 0], b""), ([0, 4, 4, 50, 1], b"x"), ([0, 4, 4, 0, 0], b"x"), ([0, 8, 8, 50, 0], b"\xff\xc4ab")):
        with pytest.raises(FrameError, match="JPEG"):
            decode_jpeg(seal(JPEG, header, body))


def test_a_jpeg_stays_where_its_picture_stays() -> None:
    message = Message("p0", "camera", "pi", form="picture", _cargo=photo(), _stays=Private("pi"))
    small = message.jpeg(120)
    assert small.size <= 120 + len(small.encode()) < message.size and small._freight != message._freight
    assert small.picture == photo().jpeg(120).picture != message.picture
    with pytest.raises(PrivacyError, match="stays at pi"):
        small.check_leaves()
    Message("p0", "camera", "pi", form="picture", _cargo=photo(), _stays=Private("pi", ("picture",))).jpeg(120).check_leaves()
    with pytest.raises(UserError, match="no picture"):
        Message("a.1", "cam", "pi", _text="x").jpeg(100)
