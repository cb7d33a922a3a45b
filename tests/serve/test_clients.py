"""Clients that other people wrote complete a task of ours, unchanged. Each is skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.test_run import KEY, Server

pytestmark = pytest.mark.slow
QUESTIONS = [(f"{a}*{b}=", str(a * b)) for a in (41, 42, 43) for b in (3, 4, 5)]
INSPECT = """\
from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.scorer import exact
from inspect_ai.solver import generate


@task
def sums():
    return Task(dataset=json_dataset("sums.jsonl"), solver=generate(), scorer=exact())
"""
LM_EVAL = """\
task: aiflow_sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{input}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 16}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not any(importlib.util.find_spec(module) for module in ("openai", "inspect_ai", "lm_eval")):
        pytest.skip("none of these clients is installed")
    started = Server(tmp_path_factory.mktemp("clients"))
    yield started
    started.client.close()
    started.end()


@pytest.fixture
def right(server: Server) -> float:
    """The share that is right, as plain HTTP finds it."""
    said = [server.client.post("/v1/completions", json={"model": "willow", "prompt": question}).json() for question, _ in QUESTIONS]
    return sum(one["choices"][0]["text"].strip() == answer for one, (_, answer) in zip(said, QUESTIONS, strict=True)) / len(QUESTIONS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps({"input": question, "target": answer}) + "\n" for question, answer in QUESTIONS))
    (tmp_path / "sums.py").write_text(INSPECT)
    (tmp_path / "sums.yaml").write_text(LM_EVAL)
    return tmp_path


def test_openai(server: Server) -> None:
    needs("openai")
    import openai

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, max_retries=0)
    messages: Any = [{"role": "user", "content": "84*7="}]
    assert "willow/slow" in [model.id for model in client.models.list()]
    whole: Any = client.chat.completions.create(model="willow", messages=messages)
    assert whole.choices[0].message.content and whole.usage.aiflow["calls"] == 1
    options: Any = {"include_usage": True}
    chunks: Any = list(client.chat.completions.create(model="willow", messages=messages, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    listed: Any = client.chat.completions.create(model="willow/leaf", messages=messages, logprobs=True, n=2, temperature=0.5, seed=3)
    assert len(listed.choices) == 2 and all(token.logprob <= 0 for token in listed.choices[0].logprobs.content)
    with pytest.raises(openai.NotFoundError, match="no model named 'nope'"):
        client.chat.completions.create(model="nope", messages=messages)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="willow", messages=messages, temperature=9)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").models.list()


def run(folder: Path, *args: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-m", *args], cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inspect(server: Server, right: float, folder: Path) -> None:
    needs("inspect_ai")
    where = {"AIFLOW_BASE_URL": f"http://127.0.0.1:{server.port}/v1", "AIFLOW_API_KEY": KEY}
    run(folder, "inspect_ai", "eval", "sums.py", "--model", "openai-api/aiflow/willow", "--display", "none", "--log-format", "json", **where)
    (log,) = (folder / "logs").glob("*.json")
    assert json.loads(log.read_text())["results"]["scores"][0]["metrics"]["mean"]["value"] == pytest.approx(right, abs=0.001)


@pytest.mark.parametrize(("api", "more"), [("chat-completions", "--apply_chat_template"), ("completions", "")])
def test_lm_evaluation_harness(server: Server, right: float, folder: Path, api: str, more: str) -> None:
    needs("lm_eval")
    url = f"http://127.0.0.1:{server.port}/v1/{api.replace('-', '/')}"
    model = f"model=willow,base_url={url},tokenizer_backend=None,tokenized_requests=False"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": KEY}
    wanted = ["lm_eval", "--model", f"local-{api}", "--model_args", model, "--include_path", ".", "--tasks", "aiflow_sums", *more.split()]
    said = run(folder, *wanted, **offline)
    assert float(said.split("exact_match")[1].split("|")[2]) == pytest.approx(right, abs=0.001)
