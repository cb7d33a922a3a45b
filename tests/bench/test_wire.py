"""`aiflow bench wire` and `aiflow calibrate`: what they count, against another way of counting it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from aiflow_agents import catalog
from aiflow_agents.bench.wire import bench_codec, references
from aiflow_agents.bench.wire_plot import family, wire_svg
from aiflow_agents.cli.calibrate import SHIPPED
from aiflow_agents.cli.main import main
from aiflow_agents.models.family.family import Family
from aiflow_agents.models.family.info import model_info
from aiflow_agents.skills.splits import stream
from aiflow_agents.training.cut import Cut, cache_samples, sample
from aiflow_agents.training.tokenizer import EOS, encode, prompt_ids
from aiflow_agents.wire.calibration import shipped
from aiflow_agents.wire.codecs import codec, fit
from aiflow_agents.wire.payload import Hidden

SKILLS = {"add": 1.0, "sort": 1.0, "roman": 1.0}


@pytest.fixture(scope="module")
def cut() -> Cut:
    return Cut(Family.load(catalog.find("model", "willow").path), 3)


def test_exact_states_lose_nothing_and_every_byte_counts(cut: Cut) -> None:
    questions = list(islice(stream(SKILLS, "test", 0), 30))
    found = bench_codec(cut, codec("float32"), references(cut, questions))
    positions = [len(prompt_ids(q.text)) + len(q.answer) for q in questions]
    assert found["messages"] == 30 and found["numbers"] == 128 * sum(positions) and found["fidelity"] == "exact"
    assert found["agreement"] == {"answers": 1.0, "all": 1.0} and found["kl"]["answers"] < 1e-9 and found["accuracy"]["lost"] == 0
    frames = [len(codec("float32").encode(Hidden(3, torch.zeros(n, 128).numpy()))) for n in positions]
    assert found["bits"] == pytest.approx(8 * sum(frames) / found["numbers"]) and found["message_bytes"] == sum(frames) / 30
    assert found["body_bits"] == 32 and found["told_bits"] == found["bits"]
    assert found["single_bits"] == pytest.approx(32 + 8 * (len(codec("float32").encode(Hidden(3, torch.zeros(1, 128).numpy()))) - 512) / 128)


def test_right_is_what_greedy_decoding_says(cut: Cut) -> None:
    """The claim that one pass over question and answer tells what would be answered token by token, states decoded all the way."""
    questions = list(islice(stream(SKILLS, "test", 5), 40))
    one = fit("predict:step=1.5,boundary=5", {"hidden.3": sample(cut, list(islice(stream(SKILLS, "train", 0), 100)))})
    right = 0
    for question in questions:
        ids, answer = prompt_ids(question.text), [*encode(question.answer), EOS]
        made: list[int] = []
        while len(made) < len(answer) and made == answer[: len(made)]:
            tokens = torch.tensor([ids + made])
            sent = Hidden(3, cut.below(tokens)[0].numpy(), tokens[0].numpy())
            there = one.decode(one.encode(sent))
            assert isinstance(there, Hidden)
            made.append(int(cut.above(torch.from_numpy(there.states)[None])[0, -1].argmax()))
        right += made == answer
    found = bench_codec(cut, one, references(cut, questions))["accuracy"]
    assert round(found["coded"] * 40) == right < round(found["exact"] * 40)


def test_a_cache_that_arrives_whole_changes_nothing(cut: Cut) -> None:
    from aiflow_agents.bench.wire_lower import bench_lower

    questions = list(islice(stream(SKILLS, "test", 0), 12))
    found, coarse = (bench_lower(cut, one, questions) for one in (codec("float32"), fit("int:bits=1+range", cache_samples(cut.family, questions, 3))))
    positions = sum(len(prompt_ids(q.text)) for q in questions)
    assert found["numbers"] == 2 * 3 * 64 * positions and found["bits"] == pytest.approx(32, rel=0.03)
    assert found["agreement"]["answers"] == 1.0 and found["kl"]["answers"] < 1e-6 and found["accuracy"]["lost"] == 0
    assert coarse["bits"] < 1.6 and coarse["agreement"]["answers"] < 0.9


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--skills", "add,sort", "--calibration", "40", "--display", "none"]
    assert main(["calibrate", "willow", "--layer", "1", "--layer", "3", "--name", "predict", "--value", "60", "--steps", "2", "2", "--draws", "2", "--out", str(tmp_path), *quick]) == 0
    assert "predict:step=0.66,boundary=5,step.3=0.64 for hidden.1, hidden.3" in capsys.readouterr().out
    fitted, plot = str(tmp_path / "predict.safetensors"), tmp_path / "plot.svg"
    wanted = ["bench", "wire", "willow", "--layer", "1", "--exit", "3", "--questions", "20", "--codec", fitted, "--codec", "int8+range", "--plot", str(plot), *quick]
    assert main([*wanted, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["codec"] for row in found["codecs"]] == ["predict:step=0.66,boundary=5,step.3=0.64", "int8+range"] and found["exit"] == 3
    assert 0 < found["codecs"][0]["bits"] < found["codecs"][1]["bits"] < 9
    assert main(["calibrate", "willow", "--out", str(tmp_path / "all"), *quick]) == 0
    assert [line.partition(": ")[0][len(str(tmp_path)) + 5 :] for line in capsys.readouterr().out.splitlines()] == [f"{name}.safetensors" for name in SHIPPED]
    (tmp_path / "all").rename(tmp_path / "codecs")
    weights = model_info(catalog.find("model", "willow").path).weights_hash
    named = {one.name: (one.spaces, one.needs_tokens) for one in shipped(tmp_path, weights)}
    assert not shipped(tmp_path, "other weights")
    states, caches = frozenset({"hidden.1", "hidden.3"}), frozenset(f"{kind}.{i}" for kind in ("key", "value") for i in range(3))
    assert named == {"predict": (states, True), "klt": (states, False), "lower": (caches, False)}
    picture = ElementTree.parse(plot).getroot()
    assert len(picture.findall("{*}circle")) == 2 and "http" not in plot.read_text().replace("http://www.w3.org/2000/svg", "")
    assert main(wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("willow, input of layer 1 to exit 3: 20 messages") and lines[3].startswith("predict:step=0.66") and "ms" in lines[4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "wire", "willo"], "no model named 'willo'; did you mean willow"),
        (["bench", "wire", "willow", "--layer", "9"], "layer 9"),
        (["bench", "wire", "willow", "--layer", "3", "--exit", "1"], "exit 1 cannot go on from the input of layer 3"),
        (["bench", "wire", "willow", "--codec", "int9"], "no codec named 'int9'"),
        (["bench", "wire", "willow", "--skills", "ad"], "no skill named 'ad'"),
        (["bench", "wire", "willow", "--codec", "none.safetensors"], "none.safetensors cannot be read"),
        (["calibrate", "willow", "--codec", "float16"], "codec float16 needs no fitting"),
        (["calibrate", "willow", "--layer", "9", "--calibration", "20", "--display", "none"], "layer 9"),
        (["bench", "wire", "willow", "--plot", "/dev/null/plot.svg"], "nothing can be written to /dev/null: File exists"),
        (["calibrate", "willow", "--out", "/dev/null/codecs"], "nothing can be written to /dev/null/codecs: Not a directory"),
        (["calibrate", "willow", "--codec", "klt", "--calibration", "20", "--display", "none"], "klt:step=0.5 or klt:bits=4"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.strip().count("\n") == 0 and captured.out == ""


def test_codecs_of_a_kind_share_a_line() -> None:
    assert [family(spec) for spec in ("float16", "bfloat16+range", "int4+range", "int:bits=3+range", "klt:step=1,by=output+range", "klt:step=1", "predict:step=1")] == [
        "raw, packed", "raw", "int", "int", "klt by output", "klt, packed", "predict",
    ]  # fmt: skip
    assert wire_svg([], "<none> & nothing").startswith("<svg")


@pytest.mark.parametrize(("wrong", "said"), [(["--codec", "kltt"], "no codec named 'kltt'; did you mean klt"), (["--out", "taken/x"], "nothing can be written to taken/x")])
def test_what_is_wrong_with_a_calibration_is_said_before_any_work(
    wrong: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    assert main(["calibrate", "willow", "--layer", "1", "--calibration", "20", "--display", "plain", *wrong]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
