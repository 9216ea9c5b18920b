"""Measure what a kill at half time costs a training: resumed from its last checkpoint, against started again.

    python bench/resume.py [--model nano/models/instruct] [--rows 400] [--epochs 8] [--checkpoint-seconds 10]

An SFT of `--rows` rows of 60 to 160 words runs three times on two ranks with ZeRO-2: undisturbed without checkpoints,
undisturbed with one every `--checkpoint-seconds`, and killed (a rank, by SIGKILL) at half of its steps and resumed.
Seconds are those of the whole trainer processes, start and final checks included. A training that starts again loses
all seconds until its kill; that is the baseline.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT, bench_parser, report, surroundings
from bench.training import write_random_rows
from infra.processes.torchrun import TrainerError, metrics_path
from infra.processes.watchdog import _descendants
from infra.settings import Settings
from infra.steps.step import Plan
from infra.store.manifest import Provenance
from infra.store.store import Store
from infra.text.chat import load_tokenizer
from infra.training.attempts import model_path
from infra.training.checkpoints import checkpoints_folder, newest, read
from infra.training.config import SftConfig, trained_path
from infra.training.hosts import HERE
from tasks.training.train import train

MODULE = "infra.training.sft"


def steps_done(folder: Path) -> int:
    """Optimiser steps so far."""
    path = metrics_path(folder / "train.log")
    return sum('"loss"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def timed(folder: Path, given: argparse.Namespace, minutes: float) -> float:
    """Train in `folder`, from its last checkpoint if there is one. Returns seconds, up to a kill if there is one."""
    folder.mkdir(exist_ok=True)
    words = [word for word in load_tokenizer(given.model).get_vocab() if word.isalnum()]
    write_random_rows(folder / "rows.parquet", given.model, words, given.rows, 160)
    config = SftConfig(
        model=given.model,
        data=(folder / "rows.parquet",),
        output=model_path(folder),
        batch=16,
        micro_batch=8,
        epochs=given.epochs,
        max_length=640,
        checkpoint_minutes=minutes,
    )
    plan, store = Plan(step="sft", key="k", provenance=Provenance()), Store.open(Settings(store=str(folder / "store")))
    began = time.perf_counter()
    try:
        train(plan, store, MODULE, config, 2, folder / "train.log", HERE, folder)
    except TrainerError:
        if newest(checkpoints_folder(config.output)) is None:
            raise
    return time.perf_counter() - began


def kill_at(step: int, folder: Path) -> None:
    """Kill a rank once a step is done, from a thread of its own."""

    def kill() -> None:
        while steps_done(folder) < step:
            time.sleep(0.02)
        ranks = [pid for pid in _descendants(os.getpid()) if MODULE in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(ranks[-1], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """The figures, in seconds."""
    with tempfile.TemporaryDirectory(prefix="bolt-bench-") as place:
        calm, written, killed = (Path(place) / name for name in ("calm", "written", "killed"))
        minutes = given.checkpoint_seconds / 60
        undisturbed = timed(calm, given, 1e6)
        with_checkpoints = timed(written, given, minutes)
        steps = json.loads(trained_path(model_path(calm)).read_text())["steps"]
        kill_at(steps // 2, killed)
        before = timed(killed, given, minutes)
        last = newest(checkpoints_folder(model_path(killed)))
        assert last
        resumed_at, size = read(last).step, sum(file.bytes for file in read(last).files)
        after = timed(killed, given, minutes)
    lost = before + after - undisturbed
    return {
        "steps": steps,
        "undisturbed_s": round(undisturbed, 1),
        "with_checkpoints_s": round(with_checkpoints, 1),
        "checkpoint_mb": round(size / 1e6, 1),
        "killed_at_step": steps // 2,
        "resumed_at_step": resumed_at,
        "lost_resumed_s": round(lost, 1),
        "lost_started_again_s": round(before, 1),
        "ratio": round(before / lost, 2),
    }


if __name__ == "__main__":
    parser = bench_parser(__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "nano" / "models" / "instruct")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--checkpoint-seconds", type=float, default=10)
    given = parser.parse_args()
    report({**measured(given), **surroundings()}, given.out)
