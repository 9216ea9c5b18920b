"""What all trainers share: tokenised rows, the trainer's arguments, the metrics file, and the checks of the trained
model before its report is written."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import deepspeed
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_pt_utils import get_model_param_count

from infra.errors import BadInput
from infra.processes.torchrun import METRICS_VARIABLE
from infra.processes.watchdog import end_with_parent
from infra.text.chat import check_end_token, end_token, load_tokenizer
from infra.training import cpu_head, packed_attention
from infra.training.batches import Batches
from infra.training.checkpoints import check_settings
from infra.training.clock import clock
from infra.training.config import SftConfig, TrainingConfig, resumable_settings, trained_path
from infra.training.deepspeed import deepspeed_config
from infra.training.dropout import switch_off_dropout
from infra.training.gate import check_saved
from infra.training.guards import StopByGuards, guard_figures
from infra.training.inputs import Rows, check_reference, check_vocabulary, check_weights, config_of, vocabulary_size
from infra.training.resumable import Resumable
from infra.training.saving import make_savable, restore_settings, tied
from infra.training.trackers import PROJECT
from infra.training.tracking import callbacks, stopped

log = logging.getLogger(__name__)

IGNORED = -100
"""Label of tokens that the loss does not cover."""
LENGTH, TOKENS = "length", "tokens"
"""Columns of tokenised rows: the number of tokens in the row's longest sequence, and in all its sequences."""
PATIENCE = timedelta(hours=12)
"""How long a rank waits for another at most. Rank 0 tokenises and saves alone, which takes longer than DeepSpeed's
default of 10 minutes for 200,000 responses. If a rank dies, torchrun and the watchdog notice at once."""
Convert = Callable[[dict[str, Any]], dict[str, Any]]


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends the trainer's metrics to the launcher's metrics file as JSON lines, on rank 0 only."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the file anew: all steps there will be, and the lines up to the checkpoint that is resumed from."""
        if path := os.environ.get(METRICS_VARIABLE) if state.is_world_process_zero else None:
            lines = [{"step": state.global_step, "steps": state.max_steps}, *state.log_history]
            Path(path).write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write one line."""
        if path := os.environ.get(METRICS_VARIABLE) if state.is_world_process_zero else None:
            with Path(path).open("a") as out:
                out.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


def join_ranks() -> None:
    """Form the process group of all ranks. Call it before loading a model, since ZeRO-3 needs the group's size then.

    From now on the rank ends with torchrun, even if torchrun is killed together with the watchdog above it.
    """
    end_with_parent()
    clock.mark("imports")
    logging.basicConfig()
    logging.getLogger("infra").setLevel(logging.INFO)
    if not torch.cuda.is_available():
        # otherwise DeepSpeed compiles an optional C++ operation at its first start: 45 s, and it needs a compiler
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
        cpu_head.install()
    deepspeed.init_distributed(auto_mpi_discovery=False, timeout=PATIENCE)
    clock.mark("process group")


def ranks() -> int:
    """Number of training processes, as set by torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def tokenizer_for(config: TrainingConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token.

    Raises:
        BadInput: as `infra.text.chat.check_end_token`; or the model has no embedding for one of these tokens.
    """
    tokenizer = load_tokenizer(config.model)
    end = check_end_token(tokenizer, config.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(end)
    ids = {f"padding token {tokenizer.pad_token!r}": tokenizer.pad_token_id, "the end token": end}
    check_vocabulary(f"model {config.model}", vocabulary_size(config_of(config.model)), ids)
    return tokenizer


def completion_ids(tokenizer: PreTrainedTokenizerBase, completion: str, end: int | None) -> list[int]:
    """Token ids of a completion with one token `end`, which ends an assistant's turn in the chat template; if it is
    None, without one.

    Like sampling, this keeps it apart from the prompt's tokens.
    """
    ids: list[int] = tokenizer.encode(completion, add_special_tokens=False)
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def token_rows(config: TrainingConfig, convert: Convert, plain: Sequence[str] = ()) -> tuple[Dataset, dict[str, Any]]:
    """The tokenised rows of all parts, with the counts `samples`, `dropped` (rows over `max_length`), `skipped` (rows
    that cannot be trained on, by reason), `tokens`, and `mean_length`: the mean over tokens of the length of their
    sequences (of a pair, the longer one's).

    Rank 0 streams the parts into one Arrow file next to `output`, which all ranks map into memory.

    Args:
        convert: makes a row's token columns from its other columns, including `LENGTH` and `TOKENS`.
        plain: columns of numbers or flags, beside the text columns `config.columns`.

    Raises:
        BadInput: there are no rows; rows exceed `max_length` and `overlong` is "error"; a token id is not in the
            model's vocabulary; or as `Rows`.
    """
    path = config.output.with_name(config.output.name + ".tokens.arrow")
    if torch.distributed.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_models(config)
        left_out = _write_tokens(config, convert, plain, path)
        path.with_suffix(".json").write_text(json.dumps(left_out))
    torch.distributed.barrier()
    rows = Dataset.from_file(str(path))
    tokens = sum(int(chunk.sum().as_py()) for chunk in rows.data.column(TOKENS).chunks)
    lengths = rows.data.column(LENGTH).to_numpy()
    left_out = json.loads(path.with_suffix(".json").read_text())
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:  # every rank has mapped the file, so it can be unlinked
        path.unlink()
        path.with_suffix(".json").unlink()
    clock.mark("rows")
    counts = {"samples": len(rows), **left_out, "tokens": tokens}
    return rows.remove_columns(TOKENS), {**counts, "mean_length": round((lengths**2).sum() / lengths.sum())}


def check_models(config: TrainingConfig) -> None:
    """Refuse models that no training can start from. Raises `BadInput` as `check_weights` and `check_reference`."""
    check_weights(config.model, f"model {config.model}")
    if not isinstance(config, SftConfig) and config.reference != config.model:
        check_weights(config.reference, f"reference model {config.reference}")
        check_reference(config.model, config.reference)


def _write_tokens(config: TrainingConfig, convert: Convert, plain: Sequence[str], path: Path) -> dict[str, Any]:
    """Write the rows that fit to an Arrow stream at `path`.

    Returns the number of rows that are too long, `dropped`, and of those that cannot be trained on, `skipped`.
    """
    rows = Rows(config.data, config.columns, config.max_bad_share, plain)
    end, size = end_token(load_tokenizer(config.model))[1], vocabulary_size(config_of(config.model))
    kept = dropped = longest = 0
    where_longest = ""

    def fitting() -> Iterator[dict[str, Any]]:
        nonlocal kept, dropped, longest, where_longest
        for where, texts in rows:
            row = convert(texts)
            if fault := token_fault(row, end):
                rows.skip(fault, where)
                continue
            if row[LENGTH] > longest:
                longest, where_longest = row[LENGTH], where
            if row[LENGTH] > config.max_length:
                dropped += 1
                continue
            check_vocabulary(f"model {config.model}: {where}", size, {"its largest token": largest_id(row)})
            kept += 1
            yield row

    writer: pa.ipc.RecordBatchStreamWriter | None = None
    stream = fitting()
    while batch := list(islice(stream, 256)):
        out = pa.table({name: pa.array([row[name] for row in batch]) for name in batch[0]})
        writer = writer or pa.ipc.new_stream(str(path), out.schema)
        writer.write_table(out)
    rows.check_share()
    if dropped and config.overlong == "error":
        raise BadInput(
            f"{dropped} of {kept + dropped} rows exceed max_length {config.max_length}; the longest has {longest} "
            f"tokens with its prompt and end token ({where_longest}): raise max_length, or set overlong to 'drop'"
        )
    if writer is None:
        raise BadInput(
            f"no rows to train on in {', '.join(part.name for part in config.data)}: of {rows.seen}, {dropped} exceed "
            f"max_length {config.max_length} (the longest has {longest} tokens), {rows.skipped.total()} cannot be "
            f"trained on. {'Give more rows, or raise max_length' if dropped else 'Correct the rows'}"
        )
    writer.close()
    for what, count in rows.skipped.items():
        log.warning("%d of %d rows skipped: %s; the first bad row: %s", count, rows.seen, what, rows.first)
    if dropped:
        log.warning("%d of %d rows dropped: longer than max_length %d", dropped, rows.seen, config.max_length)
    if kept < config.batch:
        log.warning("%d rows are fewer than one batch of %d: each step has all of them", kept, config.batch)
    return {"dropped": dropped, "skipped": dict(rows.skipped)}


def token_fault(row: dict[str, Any], end: int) -> str | None:
    """Why a tokenised row cannot be trained on; None if it can. `end` is the token that ends a turn."""
    names = {"labels": "completion", "chosen_ids": "chosen", "rejected_ids": "rejected", "completion_ids": "response"}
    for name, ids in ((name, row[column]) for column, name in names.items() if column in row):
        if ids.count(end) > 1:
            return "the end token stands in the middle of a completion"
        if name == "response" and ids:
            continue  # a policy may end at once, and learns from the reward not to
        if all(number in (IGNORED, end) for number in ids):
            return f"{name} is empty but for the end token"
    same = "chosen_ids" in row and row["chosen_ids"] == row["rejected_ids"]
    return "chosen and rejected are the same tokens" if same else None


def largest_id(row: dict[str, Any]) -> int:
    """The largest token id of a tokenised row."""
    return max(int(max(ids)) for name, ids in row.items() if name.endswith("_ids"))


def arguments(config: TrainingConfig, batches: Batches) -> dict[str, Any]:
    """The arguments that TRL's configurations share. There are no evaluations; `Resumable` decides when to
    write a checkpoint."""
    on_cpu = not torch.cuda.is_available()
    made = deepspeed_config(config, ranks(), batches.micro_batches if batches.layout == "packed" else None)
    return {
        "output_dir": str(config.output),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps(len(batches.lengths)),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "per_device_train_batch_size": made["train_micro_batch_size_per_gpu"],
        "gradient_accumulation_steps": made["gradient_accumulation_steps"],
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": config.bf16,
        "use_liger_kernel": config.liger,
        "use_cpu": on_cpu,
        "optim": "adamw_torch",
        "seed": config.seed,
        "data_seed": config.seed,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a loss that is not finite from the guards
        "report_to": "none",  # infra.training.tracking does it
        "run_name": config.name,
        "project": PROJECT,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not on_cpu,
        "trust_remote_code": config.trust_remote_code,
        "deepspeed": made,
    }


def all_callbacks(config: TrainingConfig, counts: Mapping[str, Any]) -> list[TrainerCallback]:
    """What watches a training: its speed, the trackers, the metrics file and the guards. `counts` as of the report."""
    return [*callbacks(config, counts["mean_length"]), MetricsFile(), StopByGuards(config, counts)]


def load_model(folder: Path, config: TrainingConfig) -> PreTrainedModel:
    """A local causal language model: bfloat16 on GPU if `bf16` is set (DeepSpeed keeps float32 master weights), else
    float32. Raises `BadInput` if tensors are missing."""
    dtype = torch.bfloat16 if config.bf16 and torch.cuda.is_available() else torch.float32
    packing = isinstance(config, SftConfig) and config.packing
    if packing:
        packed_attention.register()
    model, told = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=packed_attention.NAME if packing else None,
        local_files_only=True,
        trust_remote_code=config.trust_remote_code,
        output_loading_info=True,
    )
    if lost := sorted(told["missing_keys"]):
        raise BadInput(
            f"model {folder} lacks {len(lost)} tensors, such as {lost[0]}, which would be made up at random: fetch the "
            "whole model"
        )
    if not isinstance(config, SftConfig):  # losses that compare policies
        switch_off_dropout(model)
    return model


def run(trainer: Resumable, config: TrainingConfig, counts: Mapping[str, Any]) -> None:
    """Train, save the model, check it, and write the report, which includes `counts` and the figures of the guards.

    Raises:
        BadInput: the model could not be saved after its training, which is then not begun; or `config.resume` belongs
            to a training with other settings.
        GuardError: a guard stopped the training.
        ValueError: as `check_saved`.
    """
    clock.mark("model")
    trained_path(config.output).unlink(missing_ok=True)
    prepare_saving(trainer, config)
    check_room(trainer, config)
    settings = {**resumable_settings(config, ranks()), "samples": counts["samples"], "tokens": counts["tokens"]}
    if config.resume:
        check_settings(config.resume, settings)
    trainer.prepare_resuming(config, settings)
    trainer.train(resume_from_checkpoint=str(config.resume) if config.resume else None)
    seconds = trainer.seconds()
    clock.mark("train")
    save(trainer, config)
    clock.mark("save")
    unset_hf_deepspeed_config()  # otherwise ZeRO-3 would shard the reloaded model over ranks that do not load it
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        answer = check_saved(config)
        clock.mark("check")
        report = {
            "final_loss": losses[-1],
            "mean_loss": sum(losses) / len(losses),
            "steps": trainer.state.global_step,
            **counts,
            "tokens_seen": trainer.state.num_input_tokens_seen or round(counts["tokens"] * config.epochs),
            "guards": guard_figures(config, trainer.state.log_history, counts),
            "seconds": round(seconds, 2),
            "resumed_at": trainer.resumed_at,
            "ranks": ranks(),
            "answer": answer,
            "parts": clock.seconds,
            "untracked": stopped(trainer),
        }
        trained_path(config.output).write_text(json.dumps(report, indent=2))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def leave() -> NoReturn:
    """End this rank, whose work is done, at once: threads of libraries can abort the interpreter's own end, and then a
    finished training would count as failed."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def prepare_saving(trainer: Any, config: TrainingConfig) -> None:
    """Drop the settings that would keep the model from being saved, and log them. Raises as `make_savable`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer = trainer.processing_class
    dropped = make_savable(model.config, model.generation_config, tokenizer, f"model {config.model}")
    if dropped and trainer.is_world_process_zero():
        log.warning("settings of generation without effect, dropped from the saved model: %s", ", ".join(dropped))


def check_room(trainer: Any, config: TrainingConfig) -> None:
    """Refuse to go on if the disk has no room for the trained model. Raises `BadInput`."""
    size = get_model_param_count(trainer.model) * trainer.model.dtype.itemsize
    free = shutil.disk_usage(config.output.parent).free
    if free < size:
        raise BadInput(
            f"{config.output.parent}: the trained model needs {size / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free: "
            "make room, or set BOLT_WORK_DIR to a folder on a larger disk, and run again"
        )


def save(trainer: Any, config: TrainingConfig) -> None:
    """Save model and tokenizer to `config.output`, each tensor once. All ranks must call this.

    Raises:
        BadInput: the disk has no room for it.
    """
    check_room(trainer, config)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        prepare_saving(trainer, config)
        model = trainer.accelerator.unwrap_model(trainer.model)
        restore_settings(model, config.model, f"model {config.model}", trust_remote_code=config.trust_remote_code)
        model.save_pretrained(config.output, state_dict=tied(model, state))
        load_tokenizer(config.model).save_pretrained(config.output)  # without the padding token that training set
    torch.distributed.barrier()
