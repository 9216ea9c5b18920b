"""ArmoRM-Llama3-8B (RLHFlow, arXiv 2406.12845) as a scorer: a process of its own reads token ids and leaves rewards.

vLLM does not know this architecture, and its own Python code is never run: `infra.serving.armorm_process` computes it.
What is to be scored lies in a folder as `ids-00000.parquet` and so on. A part is done when its `rewards-00000.npy` is
there, so a scoring that was killed goes on with the next part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from infra.processes.torchrun import launch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ARCHITECTURE = "LlamaForRewardModelWithGating"
GATE = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""The gate reads the hidden state at the first of these tokens, the one that ends the prompt: at their last occurrence
(`find_token_for_gating` in the published model's code)."""
_SCHEMA = pa.schema(
    [pa.field("ids", pa.list_(pa.int32()), nullable=False), pa.field("gate", pa.int32(), nullable=False)]
)


class ArmoConfig(BaseModel, frozen=True, extra="forbid"):
    """What the scoring process is told."""

    model: Path = Field(description="Folder of the model")
    parts: Path = Field(description="Folder of the parts")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Number format of the backbone")
    batch_tokens: int = Field(16_384, gt=0, description="Most tokens of a batch, padding included")


def is_armorm(model: Path) -> bool:
    """Whether a model folder's config.json names this architecture."""
    return ARCHITECTURE in (json.loads((model / "config.json").read_text()).get("architectures") or [])


def gate_position(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """Where in `ids`, a chat that ends with the answer to score, the gate reads.

    Raises:
        ValueError: the tokens that it looks for are not there: the chat template is not Llama 3's.
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
    return folder / f"ids-{part:05}.parquet"


def rewards_path(folder: Path, part: int) -> Path:
    return folder / f"rewards-{part:05}.npy"


def write_part(folder: Path, part: int, sequences: Iterable[tuple[list[int], int]]) -> None:
    """Leave a part to be scored: of each sequence its token ids and where the gate reads.

    Rewards of an earlier try stay if they are of the same sequences.
    """
    rows = [{"ids": ids, "gate": gate} for ids, gate in sequences]
    table, path = pa.Table.from_pylist(rows, _SCHEMA), ids_path(folder, part)
    if path.exists() and pq.read_table(path).equals(table):
        return
    rewards_path(folder, part).unlink(missing_ok=True)
    unfinished = path.with_suffix(".tmp")
    pq.write_table(table, unfinished)
    unfinished.replace(path)


def score_parts(config: ArmoConfig, *, ranks: int) -> None:
    """Score all parts that have no rewards yet, on `ranks` devices side by side; each loads the whole model.

    Raises:
        infra.processes.torchrun.TrainerError: the process failed; its last log lines are in the text.
    """
    if any(not rewards_path(config.parts, part).exists() for part in range(part_count(config.parts))):
        launch("infra.serving.armorm_process", config, ranks=ranks, log_path=config.parts / "scoring.log")


def part_count(folder: Path) -> int:
    return len(list(folder.glob("ids-*.parquet")))
