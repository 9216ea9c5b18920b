"""The trainers: the tokens that the losses cover, with real chat templates, and real DeepSpeed runs on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tiny import PROMPT, TEMPLATE, make_model, make_tokenizer

from infra.processes.torchrun import TrainerError, launch, metrics_path
from infra.text import chat
from infra.training.config import DpoConfig, SftConfig, SftRecipe, trained_path
from infra.training.deepspeed import deepspeed_config

THOUGHTS = "<think> w5 w6 w7 </think> w8 w9"
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ ' <|start_header_id|> ' + m.role + ' <|end_header_id|> ' + m.content"
    " + ' <|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ ' <|start_header_id|> assistant <|end_header_id|> ' }}{% endif %}"
)
QWEN3 = (  # deletes the thoughts of assistant turns
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "{{ ' <|im_start|> ' + m.role + ' ' + text + ' <|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <|im_start|> assistant ' }}{% endif %}"
)
DEEPSEEK = (  # deletes the thoughts, and the prompt opens new ones
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ ' <｜User｜> ' + m.content }}{% else %}"
    "{{ ' <｜Assistant｜> ' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <｜Assistant｜> <think> ' }}{% endif %}"
)
TEMPLATES = {
    "tiny": (TEMPLATE, [], THOUGHTS, "<eos>"),
    "llama3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], THOUGHTS, "<|eot_id|>"),
    "qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>"], THOUGHTS, "<|im_end|>"),
    "deepseek": (DEEPSEEK, ["<｜User｜>", "<｜Assistant｜>"], THOUGHTS.removeprefix("<think> "), "<eos>"),
}


def test_a_rank_waits_for_rank_0_which_tokenises_alone() -> None:
    """Longer than DeepSpeed's default of 10 minutes, which is too short for 200,000 responses."""
    code = (
        "import torch; from infra.training import trainer as training; training.join_ranks()\n"
        "group = torch.distributed.group.WORLD._get_backend(torch.device('cpu'))\n"
        "assert group.options._timeout == training.PATIENCE, group.options._timeout"
    )
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **alone}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_losses_cover_exactly_thoughts_solution_and_end(family: str) -> None:
    from infra.training import dpo, sft
    from infra.training import trainer as training

    template, special, completion, end = TEMPLATES[family]
    tokenizer = make_tokenizer(template, special)
    tokenizer.eos_token = end
    prompt = chat.prompt_text(tokenizer, [{"role": "user", "content": "w1 w2"}])
    row = sft.converter(tokenizer)({"prompt": prompt, "completion": completion})
    covered = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != training.IGNORED]
    assert tokenizer.convert_ids_to_tokens(covered) == [*completion.split(), end]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [*prompt.split(), *completion.split(), end]
    assert row["labels"][: -len(covered)] == [training.IGNORED] * (len(row["labels"]) - len(covered))
    assert row["input_ids"].count(tokenizer.convert_tokens_to_ids("<think>")) == 1
    pair = dpo.converter(tokenizer)({"prompt": prompt, "chosen": completion, "rejected": "w3"})
    assert pair["prompt_ids"] + pair["chosen_ids"] == row["input_ids"]
    assert pair["chosen_ids"] == covered
    assert tokenizer.convert_ids_to_tokens(pair["rejected_ids"]) == ["w3", end]


def test_an_existing_end_token_is_not_doubled() -> None:
    from infra.training.trainer import completion_ids

    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    assert completion_ids(tokenizer, "w1 <eos>", end) == completion_ids(tokenizer, "w1", end)


def test_the_collators_keep_the_mask() -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from infra.training import dpo, sft

    tokenizer = make_tokenizer()
    rows = [sft.converter(tokenizer)({"prompt": PROMPT, "completion": text}) for text in ("w1 w2", "w1")]
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
    assert (batch["labels"] != -100).sum(1).tolist() == [3, 2]
    pair = dpo.converter(tokenizer)({"prompt": PROMPT, "chosen": "w1 w2", "rejected": "w1"})
    assert DataCollatorForPreference(pad_token_id=0)([pair])["completion_mask"].sum(1).tolist() == [3, 2]


def config(policy: Path, tmp_path: Path, rows: dict[str, list[str]], **changes: Any) -> dict[str, Any]:
    pq.write_table(pa.table(rows), tmp_path / "part-00000.parquet")
    settings = {
        "model": policy,
        "data": (tmp_path / "part-00000.parquet",),
        "output": tmp_path / "out",
        "batch": 4,
        "micro_batch": 2,
        "max_length": 64,
        "learning_rate": 1e-3,
    }
    return {**settings, **changes}


def test_the_batch_must_be_exact(tmp_path: Path) -> None:
    sft = SftConfig(**config(tmp_path, tmp_path, {"prompt": []}))
    assert sft.accumulation(2) == 1
    with pytest.raises(ValueError, match=r"batch 4 .* micro_batch 2 x ranks 3"):
        sft.accumulation(3)


def test_the_reference_has_no_default(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="reference"):
        DpoConfig(**config(tmp_path, tmp_path, {"prompt": []}))


def test_defaults_are_the_papers() -> None:
    paths = {"model": "m", "data": ("d",), "output": "o"}
    sft, dpo = SftConfig(**paths), DpoConfig(**paths, reference="r")
    assert (sft.epochs, sft.learning_rate, sft.batch, sft.max_length, sft.warmup_ratio) == (4, 2e-5, 128, 16384, 0.1)
    assert (dpo.epochs, dpo.learning_rate, dpo.batch, dpo.beta, dpo.schedule) == (2, 5e-7, 128, 0.1, "cosine")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_deepspeed_batches_multiply_up(stage: Any) -> None:
    made = deepspeed_config(SftRecipe(zero_stage=stage, batch=64, micro_batch=2), ranks=4)
    assert made["train_batch_size"] == 64
    assert made["gradient_accumulation_steps"] * made["train_micro_batch_size_per_gpu"] * 4 == 64
    assert made["zero_optimization"]["stage"] == stage


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("policy"))


@pytest.mark.slow
def test_sft_learns_saves_and_is_deterministic(policy: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    rows = {"prompt": [PROMPT] * 8, "completion": [THOUGHTS] * 7 + ["w1 " * 80]}
    seen = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        sft = SftConfig(**config(policy, tmp_path / run, rows, overlong="drop", epochs=8))
        log = tmp_path / run / "train.log"
        launch("infra.training.sft", sft, ranks=2, log_path=log, timeout_s=300)
        report = json.loads(trained_path(sft.output).read_text())
        assert (report["samples"], report["dropped"], report["ranks"], report["steps"]) == (7, 1, 2, 16)
        losses = [entry["loss"] for line in metrics_path(log).open() if "loss" in (entry := json.loads(line))]
        assert len(losses) == 16
        assert losses[-1] < 0.8 * losses[0]
        seen.append(losses)
        assert not list(tmp_path.glob("*/*.arrow"))
    assert seen[0] == seen[1]
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / run / "out").state_dict() for run in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (tmp_path / "a" / "out" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.faults), 3])
def test_dpo_prefers_the_chosen(policy: Path, tmp_path: Path, stage: int) -> None:
    rows = {"prompt": [PROMPT] * 8, "chosen": [THOUGHTS] * 8, "rejected": ["w1 w1 w2"] * 8}
    dpo = DpoConfig(**config(policy, tmp_path, rows, reference=policy, zero_stage=stage, epochs=4))
    launch("infra.training.dpo", dpo, ranks=2, log_path=tmp_path / "train.log", timeout_s=300)
    lines = [json.loads(line) for line in metrics_path(tmp_path / "train.log").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(0.6931, abs=2e-3)  # policy and reference are equal at the start
    assert losses[-1] < losses[0]
    assert json.loads(trained_path(dpo.output).read_text())["samples"] == 8


@pytest.mark.faults
def test_overlong_rows_stop_the_run_and_leave_no_result(policy: Path, tmp_path: Path) -> None:
    sft = SftConfig(**config(policy, tmp_path, {"prompt": [PROMPT], "completion": ["w1 " * 80]}))
    with pytest.raises(TrainerError, match="1 of 1 rows exceed max_length 64; the longest has 87"):
        launch("infra.training.sft", sft, ranks=2, log_path=tmp_path / "train.log", timeout_s=300)
    assert not trained_path(sft.output).exists()
