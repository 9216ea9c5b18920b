"""What this machine computes with, and the memory of its GPUs or of the computer itself. Needs no torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

BF16_CAPABILITY = 8.0
"""CUDA compute capability from which a GPU computes in bfloat16, and torch's FlashAttention runs."""
_CPU_INFO = Path("/proc/cpuinfo")
_TIMEOUT_S = 30  # nvidia-smi takes seconds where no process keeps the driver loaded


@dataclass(frozen=True)
class Machine:
    """What this machine computes with."""

    gpus: int
    """GPUs that torch can use; 0: the CPU is used."""
    capability: float
    """The GPUs' lowest CUDA compute capability; 0 without a GPU."""
    cpu_bf16: bool
    """Whether the CPU multiplies matrices in bfloat16 (AMX, AVX-512 or Arm's)."""
    liger: bool
    """Whether liger-kernel is installed."""

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16."""
        return self.capability >= BF16_CAPABILITY if self.gpus else self.cpu_bf16

    @property
    def number_format(self) -> Literal["bfloat16", "float16", "float32"]:
        """What a model is served in: bfloat16 where the machine computes in it, else float16 on GPUs, float32 on a CPU.

        A CPU without bfloat16 emulates it: with AVX2 alone vLLM decodes at less than half the rate.
        """
        if self.bf16:
            return "bfloat16"
        return "float16" if self.gpus else "float32"


@cache
def this_machine() -> Machine:
    """The machine that this process runs on. `CUDA_VISIBLE_DEVICES` limits its GPUs."""
    return machine_in(os.environ)


def machine_in(environment: Mapping[str, str]) -> Machine:
    """This machine, as a process with these environment variables sees it."""
    found = [] if importlib.metadata.version("torch").endswith("+cpu") else _capabilities()
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        found = found[: len([each for each in shown.split(",") if each.strip() not in ("", "-1")])]
    return Machine(
        gpus=len(found),
        capability=min(found, default=0.0),
        cpu_bf16=not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_cpu_flags()),
        liger=importlib.util.find_spec("liger_kernel") is not None,
    )


def _capabilities() -> list[float]:
    """The compute capability of each GPU."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return [float(line) for line in lines if line.strip().replace(".", "").isdigit()]


def _cpu_flags() -> set[str]:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else []
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


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
