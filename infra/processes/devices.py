"""How much memory this machine has for a training: of its GPUs, or of the computer itself. Needs no torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_TIMEOUT_S = 30  # nvidia-smi takes seconds where no process keeps the driver loaded


def gpu_memory(environment: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """Memory of each NVIDIA GPU that CUDA_VISIBLE_DEVICES allows, in bytes; empty if none is there or can be asked.

    A part of a GPU (MIG) has an id of its own there, which nvidia-smi does not list with its memory. It does not count.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):  # there is none, it fails, or it takes too long
        return ()
    return listed_memory(done.stdout, environment.get("CUDA_VISIBLE_DEVICES"))


def listed_memory(listed: str, visible: str | None) -> tuple[int, ...]:
    """The memory of the visible GPUs among those that nvidia-smi listed, one `index, uuid, MiB` a line."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines()]
    found = [
        (index, uuid, int(mib) << 20) for index, uuid, mib in (row for row in rows if len(row) == 3) if mib.isdigit()
    ]
    if visible is None:
        return tuple(memory for _, _, memory in found)
    wanted = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(
        memory
        for index, uuid, memory in found
        if any(name == index or (name.startswith("GPU-") and uuid.startswith(name)) for name in wanted)
    )


def computer_memory(root: Path = Path("/")) -> int:
    """The computer's memory in bytes, or the lowest limit of the control groups (containers, batch jobs) around us.

    What others use at the moment is not subtracted: servers of this project are ended before a training begins.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    total = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    return min([total, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """The limits of the control groups of this process, of version 2 and 1, from its own up to the first."""
    limits = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mounted = {"": ("sys/fs/cgroup", "memory.max"), "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes")}
        if controllers not in mounted:
            continue
        folder, name = mounted[controllers]
        group = Path(path.lstrip("/"))
        for each in [group, *group.parents]:
            limit = root / folder / each / name
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                limits.append(int(text))
    return limits
