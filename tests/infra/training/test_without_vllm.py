"""The trainers start without vLLM, which they do not use."""

from __future__ import annotations

import subprocess
import sys

from infra.settings import PROJECT_ROOT

CODE = """
import importlib.util, sys
import infra.training.sft, infra.training.dpo, infra.training.rl, tasks.training.on_policy_trainer
print([name for name in sys.modules if name.partition(".")[0] == "vllm"])
assert importlib.util.find_spec("vllm")  # it is there for whoever does look for it
"""


def test_no_trainer_imports_vllm():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "TRL currently supports vLLM" not in done.stderr
