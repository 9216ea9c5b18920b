"""The process that bench/gpu_training.py starts under torchrun: trains a few steps, and writes what each one took.

It is the project's own trainer, stopped before it saves and checks the model; or TRL's, as a baseline.
"""

from __future__ import annotations

import importlib
import inspect
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch.nn.attention import varlen
from transformers import TrainerCallback

from infra.processes.watchdog import end_with_parent
from infra.text.chat import load_tokenizer
from infra.training.config import DpoConfig, SftConfig


class Job(BaseModel, frozen=True):
    """What to measure."""

    trainer: Literal["sft", "dpo"]
    config: SftConfig | DpoConfig
    trl: bool
    attention: str | None
    steps: int
    seconds: float
    result: Path


class Meter(TrainerCallback):  # type: ignore[misc]
    """Writes a line about each optimiser step, and ends the training after enough of them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.batches: list[dict[str, Any]] = []
        self.began = time.monotonic()
        self.measured_since: float | None = None

    def write(self, **line: Any) -> None:
        """Append a line to the result."""
        with self.job.result.open("a") as out:
            out.write(json.dumps(line) + "\n")

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """The first step's start; each other begins where the last one ended."""
        if not state.global_step:
            self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the step's line."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        self.measured_since = self.measured_since or now
        self.write(step=state.global_step, seconds=now - self.began, peak=peak_bytes(), **counts(self.batches))
        self.batches, self.began = [], time.monotonic()
        if state.global_step >= self.job.steps or now - self.measured_since > self.job.seconds:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the loss, which comes after the step's end."""
        if "loss" in (logs or {}):
            self.write(step=state.global_step, loss=float((logs or {})["loss"]))


def peak_bytes() -> int:
    """The most memory that was in use so far: tensors on a GPU, or the process on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def counts(batches: list[dict[str, Any]]) -> dict[str, int]:
    """Tokens of a step without padding, the sum of the squares of the rows' lengths, and the tokens computed."""
    tokens = squares = computed = 0
    for batch in batches:
        computed += batch["input_ids"].numel()
        if (mask := batch.get("attention_mask")) is not None:
            lengths = mask.sum(-1)
        else:  # rows lie end to end; each token of padding after them counts as a row
            lengths = batch["cu_seq_lens_q"].diff()
            lengths = lengths[lengths > 1]
        tokens += int(lengths.sum())
        squares += int((lengths.long() ** 2).sum())
    return {"tokens": tokens, "squares": squares, "computed": computed}


def timed(job: Job, trainer: Any) -> None:
    """Train with `trainer` until enough steps are measured."""
    meter = Meter(job)
    model, config = trainer.model, trainer.model.config
    embeddings = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    meter.write(
        parameters=sum(parameter.numel() for parameter in model.parameters()) - embeddings,
        layers=config.num_hidden_layers,
        width=config.num_attention_heads * config.head_dim,
        attention=config._attn_implementation,
        liger=trainer.args.use_liger_kernel,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )
    inner = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        seen = ("input_ids", "attention_mask", "cu_seq_lens_q")
        meter.batches.append({name: inputs[name] for name in seen if name in inputs})
        return inner(model, inputs, *more, **named)

    trainer.training_step = training_step
    trainer.add_callback(meter)
    trainer.train()
    if torch.distributed.is_initialized():  # TRL alone forms no group on a CPU
        torch.distributed.destroy_process_group()


def ours(job: Job) -> None:
    """The project's trainer."""
    if "enable_gqa" not in inspect.signature(varlen.varlen_attn).parameters:  # torch 2.11 needs no word about it
        plain = varlen.varlen_attn
        varlen.varlen_attn = lambda *given, enable_gqa=False, **named: plain(*given, **named)
    training: Any = importlib.import_module("infra.training.trainer")
    load = training.load_model

    def load_model(*given: Any, **named: Any) -> Any:
        model = load(*given, **named)
        if job.attention:
            model.set_attn_implementation(job.attention)
        return model

    training.load_model = load_model
    training.run = lambda trainer, *_, **__: timed(job, trainer)
    path = job.result.with_suffix(".config.json")
    path.write_text(job.config.model_dump_json())
    importlib.import_module(f"infra.training.{job.trainer}").main(path)


def trls(job: Job) -> None:
    """TRL's trainer with its defaults, but for the sizes of batches and rows."""
    import pyarrow.parquet as pq
    import trl
    from datasets import Dataset

    end_with_parent()
    config, given = job.config, {"sft": (trl.SFTConfig, trl.SFTTrainer), "dpo": (trl.DPOConfig, trl.DPOTrainer)}
    arguments, trainer = given[job.trainer]
    timed(
        job,
        trainer(
            model=str(config.model),
            args=arguments(
                output_dir=str(config.output),
                per_device_train_batch_size=config.micro_batch,
                gradient_accumulation_steps=config.accumulation(1),
                max_length=config.max_length,
                num_train_epochs=config.epochs,
                save_strategy="no",
                report_to="none",
                logging_steps=1,
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=Dataset.from_list(pq.read_table(config.data[0]).to_pylist()),
            processing_class=load_tokenizer(config.model),
        ),
    )


if __name__ == "__main__":
    read = Job.model_validate_json(Path(sys.argv[1]).read_text())
    (trls if read.trl else ours)(read)
