"""Log-probabilities of sampled responses, token by token, computed once before a policy gradient begins.

They are those of the policy that sampled, against which the trained policy is weighed, and of the reference policy.
Each rank computes a share of the rows and keeps it in a file beside the model that is trained, so that a resumed
training does not compute them again. No model but the trained one is in memory afterwards.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import PreTrainedModel
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from infra.training.reference import digest, is_of, read, write
from infra.training.trainer import LENGTH

log = logging.getLogger(__name__)

OLD, REFERENCE = "old_per_token_logps", "ref_per_token_logps"
"""The columns, as TRL names them: of the policy that sampled, and of the reference policy."""
_TOKENS = ("prompt_ids", "completion_ids")


def share_path(output: Path, rank: int) -> Path:
    """The file of a rank's share, beside the folder of the trained model."""
    return output.with_name(f"{output.name}.log-probs-{rank}.arrow")


def add_log_probs(
    trainer: Any, rows: Dataset, output: Path, policies: Mapping[str, Path], load: Callable[[Path], PreTrainedModel]
) -> tuple[Dataset, float]:
    """The rows with a column for each policy, and the seconds that computing them took; 0 if they were read.

    All ranks must call this, before the training begins.

    Args:
        trainer: TRL's trainer of the policy.
        output: the folder of the model that is trained.
        policies: the folder of each column's policy.
        load: loads a policy.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    paths, device = [share_path(output, each) for each in range(ranks)], trainer.accelerator.device
    seen = digest(rows, _TOKENS, [policies[name] for name in (OLD, REFERENCE)])
    made_of = f"{seen} {trainer.args.temperature} {rank} of {ranks}"
    kept = torch.tensor([int(is_of(paths[rank], made_of))], device=device)
    torch.distributed.all_reduce(kept, torch.distributed.ReduceOp.MIN)
    began, seconds = time.monotonic(), 0.0
    if not kept.item():
        columns: dict[str, list[Any]] = {}
        for name, folder in policies.items():
            twin = next((other for other in columns if policies[other].samefile(folder)), None)
            columns[name] = columns[twin] if twin else _computed(trainer, rows, load(folder))
        write(paths[rank], made_of, {name: pa.array(each, pa.list_(pa.float32())) for name, each in columns.items()})
        torch.distributed.barrier()
        seconds = time.monotonic() - began
    if rank == 0:
        log.info("log-probabilities of the samples: %s", f"computed in {seconds:.1f} s" if seconds else "kept")
    shares = [read(path) for path in paths]
    table = rows.data.table
    for name in policies:
        table = table.append_column(name, pa.chunked_array([chunk for each in shares for chunk in each[name].chunks]))
    return Dataset(InMemoryTable(table), fingerprint=seen[:16]), seconds  # else all of it is pickled to be hashed


def _computed(trainer: Any, rows: Dataset, model: PreTrainedModel) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """The log-probabilities under `model` of this rank's share of the rows: a contiguous one, as long as any other's.

    Rows of similar length are computed together. Under ZeRO-3 all ranks compute each time.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    size, shares = trainer.args.per_device_train_batch_size, np.array_split(np.arange(len(rows)), ranks)
    add_fused_lm_head(model, temperature=trainer.args.temperature)
    engine = prepare_deepspeed(model, trainer.accelerator)
    own, most = shares[rank], len(shares[0])
    lengths = rows.data.column(LENGTH).to_numpy()[own]
    order = np.resize(own[np.argsort(-lengths, kind="stable")], most) if len(own) else np.zeros(most, dtype=int)
    found: dict[int, Any] = {}
    for start in range(0, most, size):
        block = [rows[int(row)] for row in order[start : start + size]]
        batch = trainer._prepare_inputs(trainer.data_collator(block))
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].shape[1]
        with torch.no_grad():
            log_probs, _, _ = trainer._get_per_token_logps_and_entropies(engine, ids, mask, width)
        for row, values, each in zip(order[start : start + size], log_probs.float().cpu().numpy(), block, strict=True):
            found[int(row)] = values[: len(each["completion_ids"])]
    engine.destroy()
    del engine, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [found[int(row)] for row in own]
