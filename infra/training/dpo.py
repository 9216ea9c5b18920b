"""Trainer of stage 3, one iteration of online DPO (BOLT, section on online training): run under torchrun by
`infra.processes.torchrun.launch`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from infra.text.chat import end_token
from infra.training import trainer as training
from infra.training.config import DpoConfig
from infra.training.guards import StopByGuards, completion_tokens
from infra.training.resumable import Resumable


class PretokenisedDpoTrainer(Resumable, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO, with checkpoints, on rows of token ids: neither a chat template nor joint tokenisation can shift the
    tokens that the loss covers."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def converter(tokenizer: PreTrainedTokenizerBase) -> training.Convert:
    """A function that converts a pair to `prompt_ids`, `chosen_ids` and `rejected_ids`. The loss covers all of the last
    two, including their end tokens."""
    _, end = end_token(tokenizer)

    def convert(row: dict[str, str]) -> dict[str, Any]:
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        chosen, rejected = (training.completion_ids(tokenizer, row[side], end) for side in ("chosen", "rejected"))
        sides = [len(prompt) + len(side) for side in (chosen, rejected)]
        ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        return {**ids, training.LENGTH: max(sides), training.TOKENS: sum(sides)}

    return convert


def main(config_path: Path) -> None:
    """Train with the `DpoConfig` in the JSON file `config_path`. Raises as `training.token_rows` and `training.run`."""
    config = DpoConfig.model_validate_json(config_path.read_text())
    training.join_ranks()
    losses = (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, config.sft_coefficient]}
        if config.sft_coefficient
        else {}
    )
    arguments = DPOConfig(**training.arguments(config), beta=config.beta, max_length=None, **losses)
    tokenizer = training.tokenizer_for(config)
    rows, counted = training.token_rows(config, converter(tokenizer), ["prompt", "chosen", "rejected"])
    counts = {**counted, **completion_tokens(rows)}
    trainer = PretokenisedDpoTrainer(
        model=training.load_model(config.model, config),
        ref_model=training.load_model(config.reference, config),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[training.MetricsFile(), StopByGuards(config, counts)],
    )
    training.run(trainer, config, counts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
