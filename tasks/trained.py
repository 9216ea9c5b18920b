"""What a trainer leaves beside its model: the figures that go into the model's manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.launcher import metrics_path
from infra.training_config import trained_path


def report(folder: Path) -> dict[str, Any]:
    """The trainer's report (written last, after the reload checks) and the logged curve of a training folder."""
    found: dict[str, Any] = json.loads(trained_path(folder / "model").read_text())
    curve = [json.loads(line) for line in metrics_path(folder / "train.log").read_text().splitlines()]
    return {**found, "curve": curve}
