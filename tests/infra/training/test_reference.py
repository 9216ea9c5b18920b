"""The reference policy's log-probabilities: kept in a file, and equal to those of a reference policy in memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import PROMPT, make_model

from infra.processes.torchrun import launch, metrics_path
from infra.training.config import DpoConfig, trained_path

IN_MEMORY = '''
"""DPO with the reference policy in memory, as TRL has it by default."""
import sys
from pathlib import Path
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head
from infra.training import dpo

def in_memory(trainer, lengths, path, folder, load):
    model = load()
    add_fused_lm_head(model)
    trainer.ref_model, trainer.precompute_ref_logps = prepare_deepspeed(model, trainer.accelerator), False
    return 0.0

dpo.add_reference = in_memory
if __name__ == "__main__":
    dpo.main(Path(sys.argv[1]))
'''


def rows_of(lengths: list[int]) -> Any:
    from datasets import Dataset

    made = [
        {"prompt_ids": [1, 2], "chosen_ids": [3] * each, "rejected_ids": [4, 5], "length": each + 2} for each in lengths
    ]
    return Dataset.from_list(made)


def test_a_file_is_whole_and_of_its_rows_and_reference(tmp_path: Path) -> None:
    from infra.training.reference import _TOKENS, COLUMNS, digest, is_of, read, reference_path, write

    folder = tmp_path / "reference"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    path = reference_path(tmp_path / "out")
    made_of = digest(rows_of([3, 4]), _TOKENS, [folder])
    assert not is_of(path, made_of)
    columns = [np.array([-1.5, -2.5], np.float32), np.array([-3.0, -4.0], np.float32)]
    write(path, made_of, dict(zip(COLUMNS, columns, strict=True)))
    assert is_of(path, made_of)
    assert all(np.array_equal(read(path)[name], each) for name, each in zip(COLUMNS, columns, strict=True))
    assert [each.name for each in tmp_path.glob("*.partial")] == []
    assert digest(rows_of([3, 4]), _TOKENS, [folder]) == made_of
    assert not is_of(path, digest(rows_of([4, 3]), _TOKENS, [folder]))
    os.utime(folder / "model.safetensors", (1, 1))
    assert not is_of(path, digest(rows_of([3, 4]), _TOKENS, [folder]))


def trained(module: str, tmp_path: Path, name: str, **changes: Any) -> tuple[list[float], dict[str, Any]]:
    """The losses of a DPO training on two ranks, and its report."""
    texts = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11", "w12 w13", "w14 w15 w16 w17 w18"]
    rows = {"prompt": [PROMPT] * 5, "chosen": texts, "rejected": [text + " w20" for text in reversed(texts)]}
    pq.write_table(pa.table(rows), tmp_path / "part-00000.parquet")
    settings = {"data": (tmp_path / "part-00000.parquet",), "output": tmp_path / name, "batch": 4, "micro_batch": 1}
    config = DpoConfig(**{**settings, "max_length": 64, "learning_rate": 1e-3, "epochs": 3, **changes})
    log = tmp_path / f"{name}.log"
    launch(module, config, ranks=2, log_path=log, timeout_s=300)
    lines = [json.loads(line) for line in metrics_path(log).open()]
    return [line["loss"] for line in lines if "loss" in line], json.loads(trained_path(config.output).read_text())


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_losses_are_those_of_a_reference_in_memory(tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "in_memory_dpo.py").write_text(IN_MEMORY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    models = {"model": make_model(tmp_path / "m"), "reference": make_model(tmp_path / "r", seed=1), "zero_stage": stage}
    ours, report = trained("infra.training.dpo", tmp_path, "ours", **models, bf16=False)
    theirs, _ = trained("in_memory_dpo", tmp_path, "theirs", **models, bf16=False)
    assert len(ours) == report["steps"] == 6
    assert ours == pytest.approx(theirs, abs=2e-4)
    assert abs(ours[0] - 0.6931) > 1e-3  # policy and reference differ
    assert report["reference_seconds"] > 0
    if stage == 2:
        again, second = trained("infra.training.dpo", tmp_path, "ours", **models, bf16=False)
        assert (again, second["reference_seconds"]) == (ours, 0.0)
        os.utime(tmp_path / "r" / "model.safetensors", (1, 1))
        _, third = trained("infra.training.dpo", tmp_path, "ours", **models, bf16=False)
        assert third["reference_seconds"] > 0
