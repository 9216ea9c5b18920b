"""Identifying a process: its id may be reused, so it is paired with its start time."""

from __future__ import annotations

import os
import socket
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


def machine() -> str:
    """Where this process's id has a meaning: host, boot and the namespace of process ids.

    Processes of another container cannot be looked up.
    """
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{socket.gethostname()} {boot()} {namespace}"


def is_gone(on: str, pid: int, start: int | None) -> bool:
    """Whether the process `pid`, begun at `start` on the machine `on`, is known to be gone.

    This can be said of processes on this machine only: of others it is False.
    """
    return on == machine() and began(pid) != start
