from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import pytest

from aiflow_agents.errors import UserError
from aiflow_agents.models.family.chat import Chat
from aiflow_agents.models.family.info import end_ids, model_info
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import CallError, Model, Reply, Request, Sampling, Turn

CHATS = [
    (Turn("user", "37*8="),),
    (Turn("user", "37*8="), Turn("user", "286", "elm"), Turn("user", "296", "ash")),
    (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "odd: {{ 7 }} <eos> \n\u00e9")),
    (),
]


@pytest.fixture(scope="module")
def folder(make_checkpoint, add_tokenizer):
    path, _ = make_checkpoint("qwen3", 3, head_dim=16)
    add_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return FamilyModel.load(folder)


def as_dicts(turns):
    return [{key: value for key, value in turn._asdict().items() if value is not None} for turn in turns]


@pytest.mark.parametrize("place", ["file", "config", "list"])
def test_prompts_and_text_equal_those_of_transformers(place, folder, tmp_path):
    from transformers import AutoTokenizer

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if place != "file":
        template = (tmp_path / "chat_template.jinja").read_text()
        (tmp_path / "chat_template.jinja").unlink()
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config["chat_template"] = template if place == "config" else [{"name": "tools", "template": "x"}, {"name": "default", "template": template}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat, theirs = Chat(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for turns in CHATS[:-1]:
        assert chat.prompt(turns) == theirs.apply_chat_template(as_dicts(turns), add_generation_prompt=True)["input_ids"]
        assert chat.render(turns) == theirs.apply_chat_template(as_dicts(turns), add_generation_prompt=True, tokenize=False)
    ids = [5, 7, 8, 6, 30, 2, 0]
    assert chat.text(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n  {{ m | tojson }}\n{% endfor %}{{ bos_token }}",
        "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}{{ tools is none }}",
        "{{ (messages | first).content.strip() }}{% if documents %}d{% endif %}{% if not add_generation_prompt %}n{% endif %}{{ missing }}",
    ],
)
def test_templates_mean_what_they_mean_to_transformers(template, folder, tmp_path):
    from transformers import AutoTokenizer

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(template)
    turns = (Turn("user", " <a> \u00e9 "), Turn("user", "b"))
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(as_dicts(turns), add_generation_prompt=True, tokenize=False)
    assert Chat(tmp_path).render(turns) == expected


def test_a_template_cannot_reach_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    reply = FamilyModel.load(tmp_path).generate([Request((Turn("user", "a"),))])[0]
    assert isinstance(reply, CallError) and reply.kind == "refused"


def test_replies(model):
    assert isinstance(model, Model)
    reply = model.generate([Request(CHATS[1], max_tokens=9)])[0]
    assert isinstance(reply, Reply)
    assert reply.tokens_in == len(model.chat.prompt(CHATS[1])) and reply.tokens_out == len(reply.token_ids) <= 9
    assert reply.text == model.chat.text(reply.token_ids) and "<" not in reply.text
    assert len(reply.logprobs) == reply.tokens_out and all(x <= 0 and math.isfinite(x) for x in reply.logprobs)


def test_a_bad_request_fails_alone(model):
    good = Request(CHATS[0], max_tokens=5)
    bad = {"refused": Request((Turn("system", "be brief"), Turn("user", "a"))), "too-long": Request((Turn("user", "a" * 300),))}
    replies = model.generate([bad["refused"], good, bad["too-long"], good])
    assert [reply.kind for reply in replies if isinstance(reply, CallError)] == list(bad)
    assert "no system turns here" in replies[0].message and "303 tokens, its context is 256" in replies[2].message
    assert replies[1] == replies[3] == model.generate([good])[0]


def test_equal_greedy_requests_are_computed_once(model, monkeypatch):
    asked = []
    generate = model.engine.generate
    monkeypatch.setattr(model.engine, "generate", lambda prompts, **how: (asked.append(len(prompts)), generate(prompts, **how))[1])
    one = Request(CHATS[0], max_tokens=4)
    warm = dataclasses.replace(one, sampling=Sampling(1.0), seed=1)
    requests = [one, dataclasses.replace(one, seed=9), warm, dataclasses.replace(warm, seed=2), warm, dataclasses.replace(one, max_tokens=3)]
    replies = model.generate(requests)
    assert asked == [4]
    assert replies[0] == replies[1] and replies[2] == replies[4] and replies[5].token_ids == replies[0].token_ids[:3]


def test_text_is_cut_at_the_first_stop_string(model):
    whole = model.generate([Request(CHATS[0], max_tokens=24)])[0]
    assert len(whole.text) > 12
    stop = whole.text[8:10]
    at = whole.text.find(stop)
    cut = model.generate([Request(CHATS[0], max_tokens=24, stop=(stop, "never seen"))])[0]
    assert cut.text == whole.text[:at] and cut.finish == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)] and cut.tokens_out < whole.tokens_out, "nothing is made after the stop"


def test_samples_repeat_with_their_seed(model):
    requests = [Request(CHATS[0], max_tokens=8, sampling=Sampling(1.5, 0.95), seed=seed) for seed in range(12)]
    first = model.generate(requests)
    assert len({reply.text for reply in first}) > 6
    assert model.generate(requests[4:5]) == first[4:5]


def test_info_says_what_the_model_is(folder, model):
    info = model.info
    assert (info.name, info.engine, info.dtype, info.max_context) == (folder.name, "family", "float32", 256)
    assert info.capabilities == {"logprobs", "logits", "hidden", "resume", "score", "verify"} and info == model_info(folder)
    assert model_info(folder, dtype="bfloat16").shape.weight_bytes * 2 == info.shape.weight_bytes


@pytest.mark.parametrize(
    ("file", "old", "new", "which"),
    [
        ("config.json", '"rope_theta": 10000.0', '"rope_theta": 20000.0', "weights_hash"),
        ("config.json", '"use_cache": true', '"use_cache": false', None),
        ("chat_template.jinja", "<user>", "<user> ", "tokenizer_hash"),
        ("tokenizer.json", '"a": 7', '"a": 8', "tokenizer_hash"),
        ("tokenizer_config.json", "<eos>", "<bos>", "tokenizer_hash"),
    ],
)
def test_hashes_follow_what_decides_an_answer(file, old, new, which, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    a, b = model_info(folder), model_info(copy)
    assert [name for name in ("weights_hash", "tokenizer_hash") if getattr(a, name) != getattr(b, name)] == ([which] if which else [])


def test_info_needs_no_torch(folder):
    program = "import sys; from aiflow_agents.models.family.info import model_info; model_info(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == 0


def test_ends_come_from_the_generation_settings_first(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert end_ids(tmp_path) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert end_ids(tmp_path) == (2, 5)


def test_unusable_folders_are_refused_in_one_line(folder, tmp_path):
    def refused(path, said, **how):
        with pytest.raises(UserError) as error:
            FamilyModel.load(path, **how)
        assert said in str(error.value) and "\n" not in str(error.value)

    refused(tmp_path / "nowhere", "no model folder at")
    refused(folder, "dtype 'int3'", dtype="int3")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"].update({f"extra-{i}": 60 + i for i in range(20)})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(tmp_path, "do not belong together")
    for file, text, said in [
        ("chat_template.jinja", "{% for %}", "chat_template.jinja:1: chat template: "),
        ("chat_template.jinja", b"x\n\xff", "chat_template.jinja:2: this is not UTF-8 text"),
        ("chat_template.jinja", None, "no chat template"),
        ("tokenizer_config.json", "{,", "not JSON"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("model.safetensors", None, "no weights (*.safetensors)"),
    ]:
        if text is None:
            (tmp_path / file).unlink()
        else:
            (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
        refused(tmp_path, said)
        if file == "tokenizer_config.json":
            shutil.copy(folder / file, tmp_path)
            (tmp_path / "chat_template.jinja").write_text("x")
