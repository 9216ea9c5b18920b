"""Trainer of stage 3, one iteration of online DPO (BOLT, section on online training): run under torchrun by
`infra.processes.torchrun.launch`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from infra.text.chat import end_token
from infra.training import trainer as training
from infra.training.clock import clock
from infra.training.config import DpoConfig
from infra.training.divided import Divided, batches_of, figures
from infra.training.guards import completion_tokens
from infra.training.reference import add_reference, reference_path
from infra.training.switches import decided

SIDES = ("chosen", "rejected")


class PretokenisedDpoTrainer(Divided, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO, with checkpoints, on rows of token ids: neither a chat template nor joint tokenisation can shift the
    tokens that the loss covers. The reference policy's log-probabilities are added by `infra.training.reference`."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def converter(tokenizer: PreTrainedTokenizerBase, ends: bool = True) -> training.Convert:
    """A function that converts a pair to `prompt_ids`, `chosen_ids` and `rejected_ids`. The loss covers all of the last
    two, including their end tokens."""
    _, end = end_token(tokenizer)

    def convert(row: dict[str, str]) -> dict[str, Any]:
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        chosen, rejected = (training.completion_ids(tokenizer, row[side], end if ends else None) for side in SIDES)
        sides = [len(prompt) + len(side) for side in (chosen, rejected)]
        ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        return {**ids, training.LENGTH: max(sides), training.TOKENS: sum(sides)}

    return convert


def main(config_path: Path) -> None:
    """Train with the `DpoConfig` in the JSON file `config_path`. Raises as `training.token_rows` and `training.run`."""
    config, found = decided(DpoConfig.model_validate_json(config_path.read_text()))
    training.join_ranks()
    losses: dict[str, Any] = {}
    if config.sft_coefficient:
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, config.sft_coefficient]}
    tokenizer = training.tokenizer_for(config)
    rows, counted = training.token_rows(config, converter(tokenizer, config.end_token))
    counts = {**counted, **completion_tokens(rows)}
    batches = batches_of(config, rows, found)
    arguments = DPOConfig(
        **training.arguments(config, batches),
        beta=config.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        **losses,
    )
    trainer = PretokenisedDpoTrainer(
        model=training.load_model(config.model, config),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=training.all_callbacks(config, counts),
    )
    trainer.batches = batches
    load = partial(training.load_model, config.reference, config)
    path = reference_path(config.output)
    seconds = add_reference(trainer, batches.lengths, path, config.reference, load)
    clock.mark("reference")
    training.run(trainer, config, {**counts, **figures(batches), "reference_seconds": round(seconds, 2)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    training.leave()
