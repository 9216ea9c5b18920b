"""What a machine computes with, and its memory: of GPUs, as nvidia-smi lists it, or as control groups limit it."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.processes import devices
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


def test_gpus_are_those_that_torch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_capabilities", lambda: [9.0, 8.0, 9.0])
    monkeypatch.setattr(devices.importlib.metadata, "version", lambda _: "2.13.0+cu130")
    for shown, expected in ((None, 3), ("0,1", 2), ("", 0), ("-1", 0)):
        devices.this_machine.cache_clear()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if shown is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert devices.this_machine().gpus == expected
    monkeypatch.setattr(devices.importlib.metadata, "version", lambda _: "2.13.0+cpu")
    devices.this_machine.cache_clear()
    assert devices.this_machine().gpus == 0
    devices.this_machine.cache_clear()


@pytest.mark.parametrize(
    ("gpus", "capability", "cpu_bf16", "expected"),
    [
        (1, 9.0, False, "bfloat16"),
        (2, 8.0, True, "bfloat16"),
        (1, 7.5, True, "float16"),
        (0, 0.0, True, "bfloat16"),
        (0, 0.0, False, "float32"),
    ],
)
def test_a_machine_without_bfloat16_computes_in_another_format(gpus, capability, cpu_bf16, expected):
    machine = devices.Machine(gpus=gpus, capability=capability, cpu_bf16=cpu_bf16, liger=False)
    assert (machine.number_format, machine.bf16) == (expected, expected == "bfloat16")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx avx2 fma", "float32"),
        ("flags\t\t: fpu avx512f avx512_bf16", "bfloat16"),
        ("Features\t: fp asimd bf16", "bfloat16"),
        ("", "float32"),
    ],
)
def test_the_cpus_flags_say_whether_it_has_bfloat16(flags, expected, monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(devices, "_CPU_INFO", info)
    monkeypatch.setattr(devices, "_capabilities", list)
    assert devices.machine_in({}).number_format == expected
