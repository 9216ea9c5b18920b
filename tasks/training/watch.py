"""How far a trainer is, from the metrics that it logs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def logged(metrics: Path) -> list[dict[str, Any]]:
    """The complete lines of a trainer's metrics so far. The first has all `steps` that there will be."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return [json.loads(line) for line in lines]


def steps_done(metrics: Path) -> int:
    """Optimiser steps so far, with those before the training was resumed."""
    return int(next((line["step"] for line in reversed(logged(metrics))), 0))


def steps_in_all(metrics: Path) -> float:
    """Optimiser steps of the whole training; infinite as long as the trainer has not said."""
    return float(next((line["steps"] for line in logged(metrics)), math.inf))


def last_figures(metrics: Path) -> str:
    """Loss and speed at the last step, such as `loss 0.512, 5,800 tokens per second`; "" before the first."""
    last = next((line for line in reversed(logged(metrics)) if "loss" in line), None)
    return f"loss {last['loss']:.3g}, {last['tokens_per_second']:,.0f} tokens per second" if last else ""
