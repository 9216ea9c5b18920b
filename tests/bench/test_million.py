"""The measurement of a million responses, with a few: the real steps run, and every figure is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import PROJECT_ROOT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_small_sizes_are_measured(tmp_path: Path) -> None:
    sizes, shards = [160, 320], 2
    command = [sys.executable, "-m", "bench.million", "--responses", *map(str, sizes), f"--shards={shards}"]
    command += [f"--folder={tmp_path}", f"--out={tmp_path / 'out.jsonl'}"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.jsonl").read_text())
    assert json.loads(done.stdout.splitlines()[0]) == found
    assert found["command"].startswith("python bench/million.py --responses 160 320")
    assert found["simulated"] is True
    for count, size in zip(sizes, found["sizes"], strict=True):
        steps = size["steps"]
        assert size["responses"] == steps["responses"]["rows"] == count
        assert count / 2 < steps["filtered"]["rows"] == steps["scores"]["rows"] <= count
        assert 0 < steps["longcot"]["rows"] <= count / 8
        assert size["task_runs"] == 3 * shards + 3  # with the examples, all scores and the selection
        assert 0 < size["start_mib"] <= size["peak_mib"] == max(step["peak_mib"] for step in steps.values())
        assert size["database_mib"] > 1
        assert all(step["cpu_s"] > 0 and step["store_mb"] >= 0 for step in steps.values())
    assert found["peak_ratio"] == pytest.approx(found["sizes"][1]["peak_mib"] / found["sizes"][0]["peak_mib"], abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
