"""The memory of GPUs, as nvidia-smi lists it, and of the computer, as control groups limit it."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.processes.devices import computer_memory, gpu_memory, listed_memory

LISTED = "0, GPU-aaa1, 81559\n1, GPU-bbb2, 40960\n2, GPU-ccc3, [N/A]\n"


@pytest.mark.parametrize(
    ("visible", "mib"),
    [
        (None, [81559, 40960]),
        ("1", [40960]),
        ("1, 0", [81559, 40960]),
        ("GPU-aaa1", [81559]),
        ("GPU-b", [40960]),
        ("", []),
        ("-1", []),
        ("MIG-aaa1", []),
    ],
)
def test_only_visible_gpus_count(visible, mib):
    assert listed_memory(LISTED, visible) == tuple(each << 20 for each in mib)


def test_a_broken_driver_is_no_gpu(tmp_path: Path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory({}) == ()
    tool.write_text("#!/bin/sh\necho '0, GPU-x, 1024'\n")
    assert gpu_memory({}) == (1 << 30,)
    assert gpu_memory({"CUDA_VISIBLE_DEVICES": "1"}) == ()


def machine(root: Path, groups: str, limits: dict[str, str]) -> Path:
    for name, text in {
        "proc/meminfo": "MemTotal:  8388608 kB\nMemFree: 1 kB\n",
        "proc/self/cgroup": groups,
        **limits,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_lowest_limit_of_all_groups_counts(tmp_path: Path):
    job = {"sys/fs/cgroup/slurm/job/memory.max": "max\n", "sys/fs/cgroup/slurm/memory.max": f"{2 << 30}\n"}
    assert computer_memory(machine(tmp_path / "v2", "0::/slurm/job\n", job)) == 2 << 30
    container = {"sys/fs/cgroup/memory.max": f"{3 << 30}\n"}
    assert computer_memory(machine(tmp_path / "docker", "0::/\n", container)) == 3 << 30
    old = {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{1 << 30}\n"}
    assert computer_memory(machine(tmp_path / "v1", "3:cpu:/a\n2:memory:/a\n", old)) == 1 << 30


def test_without_a_limit_all_of_it_counts(tmp_path: Path):
    assert computer_memory(machine(tmp_path, "0::/\n", {})) == 8 << 30
    unlimited = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert computer_memory(machine(tmp_path, "2:memory:/\n", unlimited)) == 8 << 30
    assert computer_memory() > 1 << 28
