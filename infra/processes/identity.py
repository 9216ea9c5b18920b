"""Identifying a process: its id may be reused, so it is paired with its start time."""

from __future__ import annotations

from pathlib import Path


def boot() -> str:
    """The id of the current boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def began(pid: int) -> int | None:
    """A process's start time in clock ticks since boot, whatever the wall clock says; None if there is none."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19])  # field 22 of proc(5), the third after the name being the first here
