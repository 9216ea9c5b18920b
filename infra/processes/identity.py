"""Which process is meant: its id comes again, so it goes with the time it began."""

from __future__ import annotations

from pathlib import Path


def boot() -> str:
    """The id of this start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def began(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine's start, whatever its clock says; None: there is none."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19])  # field 22 of proc(5), the third after the name being the first here
