"""Small trainings to be interrupted, and checkpoints of trainings that never ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file
from tiny import PROMPT

from infra.processes.torchrun import metrics_path
from infra.training.attempts import model_path
from infra.training.checkpoints import Checkpoint, checkpoint_name, described, finish
from infra.training.config import DpoConfig, RlConfig, SftConfig, TrainingConfig
from tasks.rewards.score import ScoreConfig
from tasks.training.on_policy_config import OnPolicyConfig, Rewarding

SENTENCES = [f"<think> w{n} w{n + 1} </think> w{n * 7 % 80} w{n * 3 % 80}" for n in range(12)]
ROWS = {
    "sft": {"prompt": [PROMPT] * 12, "completion": SENTENCES},
    "dpo": {"prompt": [PROMPT] * 12, "chosen": SENTENCES, "rejected": ["w1 w2 w3"] * 12},
    "rl": {
        "query_id": [f"q{n // 4}" for n in range(12)],
        "prompt": [PROMPT] * 12,
        "response": SENTENCES,
        "ended": [n % 5 > 0 for n in range(12)],
        "reward": [n * 7 % 5 / 4 for n in range(12)],
    },
    "on_policy": {
        "query_id": ["q0", "q1", "q2", "q3", "q4", "q5"],
        "prompt": [PROMPT.replace("w3", f"w{n}") for n in range(6)],
        "query": [f"w1 w2 w{n}" for n in range(6)],
        "reference": [None] * 6,
    },
}
MODULES = {
    "sft": "infra.training.sft",
    "dpo": "infra.training.dpo",
    "rl": "infra.training.rl",
    "on_policy": "tasks.training.on_policy_trainer",
}
"""The trainer of each method."""
STEPS = 12


def made(parent: Path, step: int, **settings: Any) -> Path:
    """A whole checkpoint of two files."""
    folder = parent / checkpoint_name(step)
    (folder / "global_step").mkdir(parents=True)
    (folder / "global_step" / "weights.pt").write_bytes(bytes([step]) * 1000)
    (folder / "latest").write_text("global_step")
    parts = tuple(described(folder, name) for name in ("global_step/weights.pt", "latest"))
    finish(folder, Checkpoint(step=step, steps=40, seconds=step * 2.0, settings=settings, files=parts))
    return folder


def config_of(method: str, folder: Path, policy: Path, /, **changes: Any) -> TrainingConfig:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "rows.parquet"
    pq.write_table(pa.table(ROWS[method]), data)
    given: dict[str, Any] = {"batch": 4, "micro_batch": 1, "epochs": 4, "max_length": 64, "learning_rate": 1e-3}
    given |= {"model": policy, "data": (data,), "output": model_path(folder), "checkpoint_minutes": 0}
    if method == "sft":
        return SftConfig(**given | changes)
    given |= {"reference": policy}
    if method == "dpo":
        return DpoConfig(**given | changes)
    given |= {"temperature": 1.0, "method": "grpo"}
    if method == "rl":
        return RlConfig(**given | changes)
    # A sample that ends by itself is well-formed, which is its only reward.
    rewarding = Rewarding(score=ScoreConfig(), format="plain", opened=False, reward_model=None)
    given |= {"method": "reinforce", "baseline_decay": 0.9, "samples_per_query": 2, "max_tokens": 40, "top_p": 1.0}
    return OnPolicyConfig(**given | {"rewarding": rewarding} | changes)


def steps_logged(folder: Path) -> list[dict[str, Any]]:
    path = metrics_path(folder / "train.log")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [line for line in map(json.loads, lines) if "loss" in line]


def assert_same_model(one: Path, other: Path) -> None:
    first, second = (load_file(model_path(folder) / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (tensor - second[name]).abs().max() <= 1e-6, name
