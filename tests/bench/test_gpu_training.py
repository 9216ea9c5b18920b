"""The GPU measurement: its configurations are valid, its rows have their lengths, its figures follow from the steps."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bench.gpu_configurations import CONFIGURATIONS, SHAPES, SMALLER, Configuration, trainer_config, useful_flops
from bench.gpu_training import TOKENIZER, figures, lengths, table, write_rows
from infra.settings import PROJECT_ROOT
from infra.text.chat import load_tokenizer
from infra.training.config import DpoConfig, SftConfig

SCRIPTS = ["bench/gpu_training.sh", "bench/gpu_wheels.sh"]


def titled(configuration: Configuration) -> str:
    return f"{configuration.group}: {configuration.name}"


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=titled)
def test_a_configuration_builds_the_trainers(configuration: Configuration, tmp_path: Path) -> None:
    made = trainer_config(configuration, tmp_path / "m", tmp_path / "rows", tmp_path / "out", configuration.length)
    assert isinstance(made, SftConfig if configuration.trainer == "sft" else DpoConfig)
    assert made.accumulation(1) * made.micro_batch == configuration.batch
    assert made.max_length <= SHAPES[configuration.shape]["max_position_embeddings"]


def test_each_is_measured_once_and_beside_what_a_run_chooses() -> None:
    names = [titled(each) for each in CONFIGURATIONS]
    assert len(set(names)) == len(names)
    for group in {each.group for each in CONFIGURATIONS}:
        assert next(each for each in CONFIGURATIONS if each.group == group).name == "as chosen"


@pytest.mark.parametrize("smaller", [1, SMALLER])
@pytest.mark.parametrize("number", [0, 1, 7])
def test_rows_have_their_lengths(number: int, smaller: int, tmp_path: Path) -> None:
    configuration = CONFIGURATIONS[number]
    longest = configuration.length // smaller
    write_rows(tmp_path / "rows", configuration, longest, 16)
    tokenizer = load_tokenizer(TOKENIZER)
    rows = pq.read_table(tmp_path / "rows").to_pylist()
    wanted = lengths(configuration, longest, 16)

    def tokens(row: dict[str, str], *names: str) -> int:
        return sum(len(tokenizer.encode(row[name], add_special_tokens=False)) for name in names)

    column = "completion" if configuration.trainer == "sft" else "chosen"
    assert [tokens(row, "prompt", column) + 1 for row in rows] == pytest.approx(wanted, abs=3)
    assert max(wanted) <= longest
    if configuration.trainer == "dpo":
        assert all(0 < tokens(row, "rejected") <= tokens(row, "chosen") for row in rows)


def line(step: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": seconds,
        "tokens": 900,
        "squares": 810_000,
        "computed": 1000,
        "peak": 2**30,
        **more,
    }


MODEL = {"parameters": 100, "layers": 2, "width": 8, "attention": "sdpa", "liger": False, "gpu": "NVIDIA H200"}


def test_figures_are_those_after_the_warm_up() -> None:
    steps = [
        line(1, 9.0),
        {"step": 1, "loss": 4.5},
        line(2, 9.0),
        *(line(n, s) for n, s in ((3, 1.0), (4, 3.0), (5, 2.0))),
    ]
    found = figures([MODEL, *steps])
    assert (found["tokens_s"], found["step_s"], found["steps"]) == (450, 2.0, 3)
    assert (found["peak_gib"], found["padding"], found["first_loss"]) == (1.0, 0.1, 4.5)
    assert figures([MODEL, line(1, 9.0)]) == {}
    assert figures([]) == {}


def test_useful_flops_are_palms() -> None:
    """6N + 12 L H Q T a token: one row of T tokens, and two rows of half as many, which attend to half as much."""
    model = {"parameters": 1e9, "layers": 16, "width": 2048}
    assert useful_flops({"tokens": 4096, "squares": 4096**2}, model) == 4096 * (6e9 + 12 * 16 * 2048 * 4096)
    assert useful_flops({"tokens": 4096, "squares": 2 * 2048**2}, model) == 4096 * (6e9 + 12 * 16 * 2048 * 2048)


def test_the_share_of_the_peak_is_known_for_known_gpus() -> None:
    big = {**MODEL, "parameters": 989e12 / 900 / 6 / 2, "layers": 0}
    steps = [line(number, 1.0) for number in (1, 2, 3)]
    assert figures([big, *steps])["mfu"] == 0.5
    assert figures([{**big, "gpu": None}, *steps])["mfu"] is None


def test_the_table_shows_gains_and_reasons() -> None:
    done = figures([MODEL, *(line(number, 1.0) for number in (1, 2, 3))])
    results = [
        {"group": "g", "name": "as chosen", **done, "failed": None},
        {"group": "g", "name": "slower", **done, "tokens_s": 450, "failed": None},
        {"group": "g", "name": "broken", "failed": "ImportError: a | b"},
    ]
    rows = [row.strip("| ").split(" | ") for row in table(results).splitlines()]
    assert rows[2][:4] == ["g", "as chosen", "900", "1.00"]
    assert rows[3][:4] == ["g", "slower", "450", "0.50"]
    assert "ImportError: a \\| b" in table(results)


def test_padding_is_not_counted_as_tokens() -> None:
    torch = pytest.importorskip("torch")
    from bench.gpu_steps import counts

    padded = {"input_ids": torch.zeros(2, 4), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    assert counts([padded]) == {"tokens": 6, "squares": 20, "computed": 8}
    packed = {
        "input_ids": torch.zeros(1, 8),
        "cu_seq_lens_q": torch.tensor([0, 4, 6, 7, 8]),
    }  # the last two are padding
    assert counts([packed, padded]) == {"tokens": 12, "squares": 40, "computed": 16}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=titled)
def test_its_process_reads_what_it_is_told(configuration: Configuration, tmp_path: Path) -> None:
    from bench.gpu_steps import Job

    config = trainer_config(configuration, tmp_path / "m", tmp_path / "rows", tmp_path / "out", configuration.length)
    told = {"trainer": configuration.trainer, "trl": configuration.trl, "attention": configuration.attention}
    job = Job(config=config, steps=3, seconds=1, result=tmp_path / "steps.jsonl", **told)
    assert Job.model_validate_json(job.model_dump_json()) == job


@pytest.mark.faults
def test_the_smoke_measures_our_trainer_and_trls(tmp_path: Path) -> None:
    command = ["bench/gpu_training.sh", "--cpu-smoke", "--cap", "200", "--only", "smollm2", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()[1:]]
    assert [each["name"] for each in results] == ["as chosen", "TRL's defaults"]
    assert all(each["tokens_s"] > 0 and each["first_loss"] > 0 for each in results)
    assert "TRL's defaults" in (tmp_path / "table.md").read_text()


def wheels() -> list[str]:
    """The packages that travel."""
    script = (PROJECT_ROOT / "bench/gpu_wheels.sh").read_text()
    found = re.search(r"^packages=\(([^)]+)\)", script, re.MULTILINE)
    assert found
    return found[1].split()


def imported(paths: list[str]) -> set[str]:
    """Names of the top-level packages that modules of the project, and those that they import, import when loaded."""
    seen: set[str] = set()
    names: set[str] = set()
    while paths:
        path = paths.pop()
        if path in seen or not (PROJECT_ROOT / path).is_file():
            continue
        seen.add(path)
        for node in ast.parse((PROJECT_ROOT / path).read_text()).body:
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            names |= {name.partition(".")[0] for name in found}
            paths += [name.replace(".", "/") + ".py" for name in found]
    return names - set(sys.stdlib_module_names)


def test_what_the_trainers_import_travels_or_is_on_the_machine() -> None:
    roots = ["infra/training/sft.py", "infra/training/dpo.py", "bench/gpu_training.py", "bench/gpu_steps.py"]
    there = {"torch", "transformers", "numpy"}
    packages = {package.replace("-", "_") for package in wheels()} | there | {"infra", "bench"}
    assert imported(roots) - packages == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_can_be_parsed(script: str) -> None:
    assert subprocess.run(["bash", "-n", script], cwd=PROJECT_ROOT, capture_output=True, check=False).stderr == b""


def test_every_wheel_is_pinned() -> None:
    pins = (PROJECT_ROOT / "constraints.txt").read_text() + (PROJECT_ROOT / "pyproject.toml").read_text()
    for package in wheels():
        assert re.search(rf"(?i)(^|\")\s*{package.replace('-', '[-_]')}==", pins, re.MULTILINE), package
