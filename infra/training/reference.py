"""The reference policy's log-probabilities of the pairs, computed once, before DPO begins.

They are kept in a file beside the model that is trained, so that a resumed training does not compute them again. The
reference policy has left memory when the policy enters it.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from infra.training.checkpoints import flush

log = logging.getLogger(__name__)

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""What TRL's DPO reads: sums over the tokens of the chosen and of the rejected completion."""
_TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
_MADE_OF = b"made_of"
LogProbs = np.ndarray[Any, np.dtype[np.float32]]


def reference_path(output: Path) -> Path:
    """The file of the log-probabilities, beside the folder of the trained model."""
    return output.with_name(output.name + ".reference.arrow")


def add_reference(
    trainer: Any,
    lengths: np.ndarray[Any, np.dtype[np.int64]],
    path: Path,
    folder: Path,
    load: Callable[[], PreTrainedModel],
) -> float:
    """Give the trainer's rows the columns `COLUMNS`: from `path`, or computed if it was made of other rows or models.

    All ranks must call this, before the training begins.

    Args:
        trainer: TRL's DPO trainer of the policy, set up for precomputed log-probabilities.
        lengths: tokens of each pair's longer side.
        folder: the reference policy's.
        load: loads the reference policy. It is called only if the log-probabilities must be computed.

    Returns:
        The seconds that computing them took; 0 if they were read.
    """
    rows, device = trainer.train_dataset, trainer.accelerator.device
    first = torch.distributed.get_rank() == 0
    made_of = digest(rows, _TOKENS, [folder]) if first else ""
    kept = torch.tensor([int(first and is_of(path, made_of))], device=device)
    torch.distributed.broadcast(kept, 0)
    began = time.monotonic()
    if kept.item():
        table = read(path)
        columns, seconds, how = [table[name].to_numpy() for name in COLUMNS], 0.0, f"from {path}"
    else:
        columns = _computed(trainer, rows, lengths, load())
        if first:
            write(path, made_of, dict(zip(COLUMNS, columns, strict=True)))
        seconds = time.monotonic() - began
        how = f"computed in {seconds:.1f} s"
    if first:
        log.info("log-probabilities of the reference policy: %s", how)
    for name, column in zip(COLUMNS, columns, strict=True):
        rows = rows.add_column(name, column)
    trainer.train_dataset = rows
    return seconds


def digest(rows: Dataset, columns: Sequence[str], folders: Sequence[Path]) -> str:
    """What log-probabilities depend on: the rows' tokens, and the policies' files (name, size, time)."""
    seen = hashlib.sha256()
    for name in columns:
        for chunk in rows.data.column(name).chunks:
            for part in (pc.list_value_length(chunk), chunk.flatten()):
                seen.update(np.ascontiguousarray(part.to_numpy(zero_copy_only=False)).data)
    for file in (file for folder in folders for file in sorted(folder.iterdir())):
        told = file.stat()
        seen.update(f"{file.name} {told.st_size} {told.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def write(path: Path, made_of: str, columns: Mapping[str, Any]) -> None:
    """Write columns of log-probabilities, whole or not at all. `made_of`: what they depend on."""
    table = pa.table(dict(columns)).replace_schema_metadata({_MADE_OF: made_of})
    partial = path.with_name(path.name + ".partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)
    flush(partial)
    partial.replace(path)


def read(path: Path) -> pa.Table:
    """The columns in a file that `write` wrote, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def is_of(path: Path, made_of: str) -> bool:
    """Whether there is such a file with what `made_of` says."""
    return path.exists() and (read(path).schema.metadata or {}).get(_MADE_OF) == made_of.encode()


def _computed(
    trainer: Any, rows: Dataset, lengths: np.ndarray[Any, np.dtype[np.int64]], model: PreTrainedModel
) -> list[LogProbs]:
    """The columns, on every rank. Pairs of similar length are computed together."""
    device, size = trainer.accelerator.device, trainer.args.per_device_train_batch_size
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    add_fused_lm_head(model)
    engine = prepare_deepspeed(model, trainer.accelerator)
    order = np.argsort(-lengths, kind="stable")
    found = torch.zeros((len(COLUMNS), len(rows)), device=device)
    for start in range(0, len(order), size * ranks):
        block = order[start : start + size * ranks]
        own = block[rank::ranks] if len(block) > rank else block[:1]  # under ZeRO-3 all ranks compute each time
        batch = trainer._prepare_inputs(trainer.data_collator([rows[int(row)] for row in own]))
        sides = trainer.compute_ref_log_probs(engine, batch)
        if len(block) > rank:
            found[:, torch.from_numpy(own).to(device)] = torch.stack(sides).float()
    torch.distributed.all_reduce(found)
    engine.destroy()
    del engine, model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return list(found.cpu().numpy())
