"""A grader that hangs, raises or dies on request."""

from __future__ import annotations

import os
import time
from typing import Any


def hangs(solution: str | None, reference: str) -> dict[str, Any]:
    if solution == "hang":
        time.sleep(60)
    if solution == "raise":
        raise ValueError("unheard of")
    if solution == "die":
        os._exit(3)
    return {"prediction": solution, "correct": solution == reference, "parts": None, "correct_parts": None}
