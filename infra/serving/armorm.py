"""Scores with ArmoRM-Llama3-8B (RLHFlow, arXiv 2406.12845) in a separate process, which reads token ids and writes
rewards.

vLLM does not support this architecture, and the Python code that comes with the model is never run:
`infra.serving.armorm_process` implements it. The sequences to score are in a folder as `ids-00000.parquet` and so on. A
part is finished once its `rewards-00000.npy` exists, so a scoring process that was killed resumes at the next part.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from infra.processes.torchrun import launch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ARCHITECTURE = "LlamaForRewardModelWithGating"
HEAD_TENSORS = ("regression_layer.weight", "reward_transform_matrix", "gating.logit_scale", "gating.layers.0.weight")
"""Tensors without which there is no reward; the gate may have more layers."""
GATE = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""The gate reads the hidden state at the first of these tokens, which ends the prompt, at their last occurrence
(`find_token_for_gating` in the published model's code)."""
_SCHEMA = pa.schema(
    [pa.field("ids", pa.list_(pa.int32()), nullable=False), pa.field("gate", pa.int32(), nullable=False)]
)


class ArmoConfig(BaseModel, frozen=True, extra="forbid"):
    """The configuration of the scoring process."""

    model: Path = Field(description="Folder of the reward model")
    parts: Path = Field(description="Folder with the sequences to score, which also receives the rewards")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Number format of the backbone")
    batch_tokens: int = Field(16_384, gt=0, description="Maximum tokens per batch, including padding")


def is_armorm(config: Mapping[str, Any]) -> bool:
    """Whether a model's config.json names this architecture."""
    return ARCHITECTURE in (config.get("architectures") or [])


def gate_position(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """The position in `ids` at which the gate reads; `ids` is a chat that ends with the answer to score.

    Raises:
        ValueError: the tokens of `GATE` do not occur, so the chat template is not Llama 3's.
    """
    wanted = tokenizer.encode(GATE, add_special_tokens=False)
    for start in range(len(ids) - len(wanted), -1, -1):
        if list(ids[start : start + len(wanted)]) == wanted:
            return start
    raise ValueError(
        f"the chat template of {tokenizer.name_or_path} does not write {GATE!r} before the answer, where "
        f"{ARCHITECTURE} reads its gate: expected Llama 3's chat template"
    )


def ids_path(folder: Path, part: int) -> Path:
    """Parquet file with the token ids of a part's sequences and the positions at which the gate reads."""
    return folder / f"ids-{part:05}.parquet"


def rewards_path(folder: Path, part: int) -> Path:
    """NumPy file with a part's rewards: float64, one per sequence, in the order of the sequences."""
    return folder / f"rewards-{part:05}.npy"


def write_part(folder: Path, part: int, sequences: Iterable[tuple[list[int], int]]) -> None:
    """Write a part to be scored: each sequence's token ids and the position at which the gate reads.

    Rewards of an earlier attempt are kept if they belong to the same sequences, and removed otherwise.
    """
    rows = [{"ids": ids, "gate": gate} for ids, gate in sequences]
    table, path = pa.Table.from_pylist(rows, _SCHEMA), ids_path(folder, part)
    if path.exists() and pq.read_table(path).equals(table):
        return
    rewards_path(folder, part).unlink(missing_ok=True)
    unfinished = path.with_suffix(".tmp")
    pq.write_table(table, unfinished)
    unfinished.replace(path)


def write_rewards(folder: Path, part: int, rewards: npt.ArrayLike) -> None:
    """Write a part's rewards (see `rewards_path`)."""
    path = rewards_path(folder, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.save(file, np.asarray(rewards, np.float64), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())  # a machine that is lost leaves no file that is whole by its name alone
    unfinished.replace(path)


def score_parts(config: ArmoConfig, *, ranks: int) -> None:
    """Score all parts that have no rewards yet, on `ranks` devices in parallel; each device loads the whole model.

    Raises:
        infra.processes.torchrun.TrainerError: the process failed; the text has its last log lines.
    """
    if any(not rewards_path(config.parts, part).exists() for part in range(part_count(config.parts))):
        launch("infra.serving.armorm_process", config, ranks=ranks, log_path=config.parts / "scoring.log")


def part_count(folder: Path) -> int:
    """Number of parts in the folder, scored or not."""
    return len(list(folder.glob("ids-*.parquet")))
