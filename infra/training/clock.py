"""Where a trainer process spends its time, part by part."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Clock:
    """Seconds between the marks of a process, the first since the process was started (resolution 10 ms)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        self._last = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since boot, as CLOCK_BOOTTIME

    def mark(self, part: str) -> None:
        """What was done since the last mark was `part`."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self._last, 2)
        self._last = now


clock = Clock()
"""This process's."""
