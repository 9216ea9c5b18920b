"""The process that scores with ArmoRM (see `infra.serving.armorm`), run under torchrun by `launch`.

The reward is computed from the hidden states of the last layer, h at the sequence's last token and g at the gate's:

    objectives = regression_layer h
    adjusted = objectives @ reward_transform_matrix        (removes the influence of verbosity)
    weights = softmax(MLP(g) / temperature) * logit_scale
    reward = sum(weights * adjusted)

(arXiv 2406.12845, section 3; names and order as in the published code.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel

from infra.processes.watchdog import end_with_parent
from infra.serving.armorm import (
    ARCHITECTURE,
    HEAD_TENSORS,
    ArmoConfig,
    ids_path,
    part_count,
    rewards_path,
    write_rewards,
)
from infra.store.model_files import ModelFiles

HEADS = ("regression_layer.", "gating.", "reward_transform_matrix")
Sequence = tuple[list[int], int]  # token ids, and the position at which the gate reads


class ArmoRM:
    """The model on one device. The backbone runs in `dtype`, the heads on its hidden states in float32.

    Raises:
        ValueError: the model's folder lacks weights.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        self.device = device
        self.temperature = float(getattr(config, "gating_temperature", 10))
        self.backbone, report = LlamaModel.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        if missing := sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])]):
            raise ValueError(f"{folder}: the weights lack {', '.join(missing[:5])} ({len(missing)} in all)")
        self.backbone.to(device).eval()
        heads = {name: tensor.float().to(device) for name, tensor in _heads(folder)}
        layers = sorted({int(name.split(".")[2]) for name in heads if name.startswith("gating.layers.")})
        if absent := [name for name in HEAD_TENSORS if name not in heads]:
            raise ValueError(f"{folder}: the weights lack {', '.join(absent)}, which {ARCHITECTURE} has")
        self.regression, self.transform = heads["regression_layer.weight"], heads["reward_transform_matrix"]
        self.scale = heads["gating.logit_scale"]
        self.gating = [(heads[f"gating.layers.{n}.weight"], heads.get(f"gating.layers.{n}.bias")) for n in layers]

    def rewards(self, batch: list[Sequence]) -> list[float]:
        """The reward of each sequence. Padding at the end is harmless, since the attention mask is causal."""
        longest = max(len(ids) for ids, _ in batch)
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch], device=self.device)
        rows = torch.arange(len(batch), device=self.device)
        last = torch.tensor([len(ids) - 1 for ids, _ in batch], device=self.device)
        gate = torch.tensor([position for _, position in batch], device=self.device)
        with torch.inference_mode():
            hidden = self.backbone(input_ids=padded, use_cache=False).last_hidden_state
            adjusted = functional.linear(hidden[rows, last].float(), self.regression) @ self.transform
            scores: Tensor = (self.weights(hidden[rows, gate].float()) * adjusted).sum(1)
        return [float(score) for score in scores]

    def weights(self, prompt: Tensor) -> Tensor:
        """The weight of each objective, from the prompt alone: hidden states (batch, hidden) to (batch, objectives)."""
        for number, (weight, bias) in enumerate(self.gating):
            prompt = functional.linear(prompt if number == 0 else functional.relu(prompt), weight, bias)
        return functional.softmax(prompt / self.temperature, dim=1) * self.scale


def _heads(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors except the backbone's, with their names."""
    for file in ModelFiles.in_folder(folder).weights():
        with safe_open(folder / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict
                if name.startswith(HEADS):
                    yield name, tensors.get_tensor(name)


def batches(sequences: list[Sequence], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of positions in `sequences`, grouped by similar length, longest first. A batch has at most `batch_tokens`
    tokens including padding, but at least one sequence."""
    order = sorted(range(len(sequences)), key=lambda at: -len(sequences[at][0]))
    while order:
        size = max(1, batch_tokens // max(1, len(sequences[order[0]][0])))
        yield order[:size]
        order = order[size:]


def score_part(model: ArmoRM, folder: Path, part: int, batch_tokens: int) -> None:
    """Score a part and write its rewards (see `rewards_path`)."""
    table = pq.read_table(ids_path(folder, part))
    sequences = list(zip(table["ids"].to_pylist(), table["gate"].to_pylist(), strict=True))
    rewards = np.full(len(sequences), np.nan)
    for chosen in batches(sequences, batch_tokens):
        rewards[chosen] = model.rewards([sequences[at] for at in chosen])
    write_rewards(folder, part, rewards)


def main(config_path: Path) -> None:
    """Score the parts of this rank that have no rewards yet: every `WORLD_SIZE`-th one."""
    end_with_parent()
    config = ArmoConfig.model_validate_json(config_path.read_text())
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    owed = [n for n in range(rank, part_count(config.parts), ranks) if not rewards_path(config.parts, n).exists()]
    if owed:
        model = ArmoRM(config.model, getattr(torch, config.dtype), device)
        for part in owed:
            score_part(model, config.parts, part, config.batch_tokens)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
