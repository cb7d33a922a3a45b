"""Fitted codecs in files: whole, or refused with the reason."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aiflow_agents.wire import calibration
from aiflow_agents.wire.codecs import Codec, Sample, fit
from aiflow_agents.wire.codecs.stored import CalibrationError
from aiflow_agents.wire.payload import Hidden

Make = Callable[..., Sample]
SPECS = ("int4+range", "outliers:channels=2", "klt:step=0.3+range", "bfloat16+range", "predict:boundary=2", "merge:step=0.3")


@pytest.fixture(scope="module", params=SPECS)
def file(request: pytest.FixtureRequest, make_sample: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "one.safetensors"
    calibration.save(fit(request.param, {"hidden.1": make_sample(8), "hidden.2": make_sample(8, seed=1)}), path)
    assert sorted(path.parent.iterdir()) == [path]
    return path


def rewrite(file: Path, change: Callable[[dict[str, Any]], None], metadata: dict[str, str] | None = None) -> Path:
    arrays, damaged = load_file(file), file.with_name("damaged.safetensors")
    change(arrays)
    save_file(arrays, damaged, metadata={"format": calibration.FORMAT, "spec": calibration.load(file).spec} if metadata is None else metadata)
    return damaged


def test_every_array_is_checked(file: Path) -> None:
    """Gone, of another shape or another type, or not finite: each is said by name."""
    predicts = "predict" in calibration.load(file).spec
    for name, array in load_file(file).items():
        short, changed = name.rpartition("/")[2], [array.astype(np.float64)]
        if short not in (("pairs",) if predicts else ("mean", "analysis", "apart")):  # those may be absent
            changed.append(None)
        if array.size and short not in ("apart", "place", "places", "lag", *(["counts"] * predicts)):  # those may have any length
            changed.append(np.concatenate([array, array]))
        if array.size and array.dtype.kind == "f":
            changed.append(np.where(np.arange(array.size).reshape(array.shape) == 0, np.nan, array).astype(array.dtype))
        for other in changed:
            def change(arrays: dict[str, Any], name: str = name, other: Any = other) -> None:
                arrays.pop(name) if other is None else arrays.update({name: other})

            with pytest.raises(CalibrationError, match="damaged.safetensors: '(hidden|text)") as caught:
                calibration.load(rewrite(file, change))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("step", 0.0, "must be positive"),
        ("bits", 0, "must lie in 1 .. 24"),
        ("bits", 25, "must lie in 1 .. 24"),
        ("counts", 0, "has a zero"),
        ("apart", 99, "names channels outside"),
        ("level", 255, "fewer rows than there are classes"),
        ("gain", -1.0, "must be positive"),
        ("how", -1.0, "must hold spread"),
        ("joins", 0, "has a zero"),
    ],
)
def test_values_that_would_read_another_tensor_are_refused(file: Path, name: str, value: float, said: str) -> None:
    if f"hidden.1/{name}" not in load_file(file):
        pytest.skip("not an array of this codec")

    def change(arrays: dict[str, Any]) -> None:
        arrays[f"hidden.1/{name}"].flat[0] = value

    with pytest.raises(CalibrationError, match=said):
        calibration.load(rewrite(file, change))


def test_damaged_bytes_are_an_error_or_another_codec(file: Path, make_sample: Make) -> None:
    """Bytes that still make sense make another codec: its fingerprint is another, so no frame passes between the two."""
    whole, rng = file.read_bytes(), random.Random(0)
    mine, damaged = calibration.load(file), file.with_name("damaged.safetensors")
    sample = make_sample(8)
    assert sample.token_ids is not None
    frame = mine.encode(Hidden(1, sample.states[:3], sample.token_ids[:3]))
    for _ in range(60):
        at = rng.randrange(len(whole))
        damaged.write_bytes(whole[:at] if rng.random() < 0.3 else whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        try:
            theirs = calibration.load(damaged)
        except CalibrationError:
            continue
        if theirs.fingerprint != mine.fingerprint:
            with pytest.raises(Exception, match="checksum|fitted for"):
                theirs.decode(frame)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("it went off",)

    file = tmp_path / "codec.safetensors"
    for content in (pickle.dumps(Bomb()), b"", b"\x80\x04", b"{}"):
        file.write_bytes(content)
        with pytest.raises(CalibrationError, match="cannot be read"):
            calibration.load(file)
    with pytest.raises(CalibrationError, match="cannot be read"):
        calibration.load(tmp_path / "none.safetensors")
    save_file({"a": np.zeros(1)}, file)
    with pytest.raises(CalibrationError, match="is no fitted codec"):
        calibration.load(file)
    save_file({"a": np.zeros(1)}, file, metadata={"format": calibration.FORMAT, "spec": "zip"})
    with pytest.raises(CalibrationError, match="no codec named 'zip'"):
        calibration.load(file)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, make_sample: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    file, one = tmp_path / "codec.safetensors", fit("int8", {"hidden.0": make_sample(4)})
    calibration.save(one, file)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        calibration.save(Codec("int4", {}), file)
    assert calibration.load(file).fingerprint == one.fingerprint
