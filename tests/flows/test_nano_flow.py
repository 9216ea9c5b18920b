"""The flow that makes the nano models, on a tiny scale: real training processes, real vLLM; then all steps cached."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from small import environment

from infra.settings import Settings
from infra.store.parts import find
from infra.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(400)]


def run(place: Path) -> str:
    tiny = {
        "instruct.tokens": 40_000,
        "reward.tokens": 30_000,
        "reward_queries": 12,
        "samples.max_truncated_share": 1,  # it has learned nothing, so it never ends
        "samples.max_tokens": 60,
        "export": str(place / "models"),
    }
    command = [sys.executable, "-m", "flows", "nano/make"]
    for name, value in tiny.items():
        command += ["--set", f"config.{name}={value}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=350, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def keys(place: Path, step: str) -> list[str]:
    return sorted(path.name for path in (place / "store" / step).iterdir())


def test_the_models_are_made_exported_and_then_cached(tmp_path):
    run(tmp_path)
    store = Store.open(Settings(store=str(tmp_path / "store")))
    made = {step: keys(tmp_path, step) for step in ("nano-instruct", "nano-reward")}
    assert all(find(store, step, key) for step, found in made.items() for key in found)
    for name, module in (("instruct", "nano.pretrain"), ("reward", "nano.pretrain_reward")):
        legs = json.loads((tmp_path / "models" / name / "MADE.json").read_text())["legs"]
        assert legs[-1]["module"] == module
        with safe_open(tmp_path / "models" / name / "model.safetensors", "pt") as weights:
            assert len(weights.keys()) > 30
    second = run(tmp_path)
    assert len(re.findall(r" s  cached  ", second)) == 5  # instruct, queries, examples, samples, reward
    assert not re.findall(r" s  done  ", second)
    assert {step: keys(tmp_path, step) for step in made} == made
