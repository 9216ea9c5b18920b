"""Trainer of stage 3, one iteration by a policy gradient (RLOO, REINFORCE or GRPO) on samples that were drawn and
rewarded before: run under torchrun by `infra.processes.torchrun.launch`.

The losses are TRL's. They weigh each sample by the ratio of the trained policy to the one that drew it, and clip it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer
from trl import GRPOConfig, RLOOConfig
from trl.trainer.utils import pad

from infra.text.chat import end_token
from infra.training import trainer as training
from infra.training.advantages import advantages
from infra.training.batches import Batches
from infra.training.clock import clock
from infra.training.config import RlConfig
from infra.training.divided import Divided, batches_of, figures
from infra.training.log_probs import OLD, REFERENCE, add_log_probs
from infra.training.policy_gradient import PolicyGradient
from infra.training.switches import decided
from infra.training.without_vllm import GRPOTrainer, RLOOTrainer

NUMBERS = ("reward", "ended")
"""Columns of the data beside the texts: a sample's reward, and whether it ended by itself."""
ADVANTAGE = "advantage"


class OnSamples(PolicyGradient, Divided):
    """What TRL's policy-gradient trainers inherit first, so that they train on rows of samples instead of sampling.

    A row has its tokens and, once the training begins, its advantage and the log-probabilities of its tokens.
    """

    def _prepare_inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = Trainer._prepare_inputs(self, batch)
        return made

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """TRL's loss. The mean reward and the tokens so far are logged, as by a trainer that samples."""
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        masks = inputs["completion_mask"].sum() + inputs["prompt_mask"].sum()
        sums = torch.stack([masks, inputs["reward"].sum(), masks.new_tensor(len(inputs["reward"]))])
        tokens, reward, rows = self.accelerator.reduce(sums, reduction="sum").tolist()
        self.state.num_input_tokens_seen += int(tokens)
        self._metrics["train"]["reward"].append(reward / rows)
        self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]
        return loss


class OnSamplesRloo(OnSamples, RLOOTrainer):  # type: ignore[misc]
    """RLOO's and REINFORCE's loss: the ratio of whole responses. They differ in their advantages."""


class OnSamplesGrpo(OnSamples, GRPOTrainer):  # type: ignore[misc]
    """GRPO's loss: the ratio of each token, averaged over each response, with the divergence from pi_0 beside it."""


def collate(rows: Sequence[dict[str, Any]], padding: int) -> dict[str, torch.Tensor]:
    """A batch as TRL's losses read it: prompts padded on the left, responses on the right."""
    prompts, responses = ([torch.tensor(row[f"{part}_ids"]) for row in rows] for part in ("prompt", "completion"))
    made = {}
    for part, ids, side in (("prompt", prompts, "left"), ("completion", responses, "right")):
        made[f"{part}_ids"] = pad(ids, padding_value=padding, padding_side=side)
        made[f"{part}_mask"] = pad([torch.ones_like(each) for each in ids], padding_value=0, padding_side=side)
    if ADVANTAGE in rows[0]:
        for name in (OLD, REFERENCE):
            made[name] = pad([torch.tensor(row[name]) for row in rows], padding_value=0.0, padding_side="right")
        made["old_logps"] = made[OLD].sum(1)
        made["advantages"] = torch.tensor([row[ADVANTAGE] for row in rows])
        made["reward"] = torch.tensor([row["reward"] for row in rows])
    return made


def converter(tokenizer: PreTrainedTokenizerBase) -> training.Convert:
    """A function that converts a row to `prompt_ids` and `completion_ids`. A response that was cut has no end token."""
    _, end = end_token(tokenizer)

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        if row["ended"]:
            response = training.completion_ids(tokenizer, row["response"], end)
        else:
            response = tokenizer.encode(row["response"], add_special_tokens=False)
        length = len(prompt) + len(response)
        kept = {"query_id": row["query_id"], "reward": float(row["reward"])}
        return {
            "prompt_ids": prompt,
            "completion_ids": response,
            **kept,
            training.LENGTH: length,
            training.TOKENS: length,
        }

    return convert


def add_advantages(rows: Dataset, config: RlConfig) -> Dataset:
    """The rows with the column `ADVANTAGE`. The samples of a query must be neighbours.

    RLOO and REINFORCE take the divergence from the reference policy off the reward of a response (`beta`); GRPO has it
    in its loss.
    """
    rewards = rows.data.column("reward").to_numpy()
    if config.method != "grpo":
        rewards = rewards - config.beta * (sums(rows, OLD) - sums(rows, REFERENCE))
    numbered = enumerate(rows.data.column("query_id").to_pylist())
    groups = ([rewards[at] for at, _ in found] for _, found in groupby(numbered, lambda each: each[1]))
    made = [each for group in advantages(config.method, config, groups) for each in group]
    return rows.add_column(ADVANTAGE, np.array(made, dtype=np.float32))


def sums(rows: Dataset, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The sum of each row's list of numbers."""
    parts = []
    for chunk in rows.data.column(column).chunks:
        ends = pc.list_value_length(chunk).to_numpy(zero_copy_only=False).cumsum()
        running = np.concatenate([[0.0], chunk.flatten().to_numpy(zero_copy_only=False).cumsum(dtype=np.float64)])
        parts.append(np.diff(running[ends], prepend=0.0))
    return np.concatenate(parts)


def no_reward(**_: Any) -> None:
    """Stands for TRL's reward functions: the rewards are known or computed elsewhere."""


def arguments(config: RlConfig, batches: Batches, samples: int, **more: Any) -> RLOOConfig | GRPOConfig:
    """TRL's configuration. TRL is told of no KL penalty, since it would load the policy as its own reference.

    `samples`: of each query, as far as TRL samples them.
    """
    common = {
        **training.arguments(config, batches),
        "beta": 0.0,
        "epsilon": config.clip,
        "temperature": config.temperature,
        "disable_dropout": True,
        "num_generations": samples,
        "remove_unused_columns": False,
        **more,
    }
    if config.method == "grpo":
        scaled = "group" if config.scale_rewards else "none"
        # The samples are those of the policy that the training began with: as in `policy_gradient.divergence`.
        return GRPOConfig(**common, loss_type="grpo", scale_rewards=scaled, use_bias_correction_kl=True)
    return RLOOConfig(**common)


def main(config_path: Path) -> None:
    """Train with the `RlConfig` in the JSON file `config_path`. Raises as `training.token_rows` and `training.run`."""
    config, found = decided(RlConfig.model_validate_json(config_path.read_text()))
    training.join_ranks()
    tokenizer = training.tokenizer_for(config)
    rows, counts = training.token_rows(config, converter(tokenizer), NUMBERS)
    batches = batches_of(config, rows, found)
    make = OnSamplesGrpo if config.method == "grpo" else OnSamplesRloo
    # Before the model: only then ZeRO-3 shards it while it is loaded. Nothing is sampled, so any number will do.
    given = arguments(config, batches, config.batch)
    trainer = make(
        model=training.load_model(config.model, config),
        reward_funcs=no_reward,
        args=given,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=training.all_callbacks(config, counts),
    )
    trainer.batches, trainer.beta = batches, config.beta if config.method == "grpo" else 0.0
    trainer.data_collator = partial(collate, padding=tokenizer.pad_token_id)
    policies = {OLD: config.model, REFERENCE: config.reference}
    load = partial(training.load_model, config=config)
    rows, seconds = add_log_probs(trainer, rows, config.output, policies, load)
    trainer.train_dataset = add_advantages(rows, config)
    clock.mark("log-probabilities")
    training.run(trainer, config, {**counts, **figures(batches), "log_prob_seconds": round(seconds, 2)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    training.leave()
