"""What a trainer's process leaves behind, without the training."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fakes import TinyServers

from infra.processes.torchrun import metrics_path
from infra.training.config import trained_path
from infra.training.trackers import events_folder

ANSWER = {"prompt": "who ?", "text": "no", "ended": True}


class Servers(TinyServers):
    """Counts how often its devices were freed."""

    released = 0

    def release(self) -> None:
        self.released += 1


def trainer(config: Any, *, log_path: Path, **_: Any) -> None:
    """Write the files that a trainer writes."""
    config.output.mkdir()
    (config.output / "config.json").write_text(json.dumps({"folder": config.output.parent.name}))
    trained_path(config.output).write_text(json.dumps({"steps": 1, "answer": ANSWER}))
    log_path.write_text("all is well")
    metrics_path(log_path).write_text('{"step": 0, "steps": 1}\n{"step": 1, "loss": 0.5}\n')
    runs = events_folder(config.tracking, config.name)
    runs.mkdir(parents=True, exist_ok=True)
    (runs / f"events.out.tfevents.{time.time_ns()}").write_text(config.output.parent.name)
