"""Trainer of stage 2, LongCoT SFT (BOLT, section on LongCoT SFT): run under torchrun by
`infra.processes.torchrun.launch`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from infra.text.chat import end_token
from infra.training import trainer as training
from infra.training.config import SftConfig
from infra.training.divided import Divided, batches_of, figures
from infra.training.switches import decided


class DividedSftTrainer(Divided, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT with checkpoints, on packed rows or rows of similar length."""


def converter(tokenizer: PreTrainedTokenizerBase) -> training.Convert:
    """A function that converts a row to `input_ids` and `labels`. The labels cover exactly the completion and its end
    token."""
    _, end = end_token(tokenizer)

    def convert(row: dict[str, str]) -> dict[str, Any]:
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        completion = training.completion_ids(tokenizer, row["completion"], end)
        ids = prompt + completion
        labels = [training.IGNORED] * len(prompt) + completion
        return {"input_ids": ids, "labels": labels, training.LENGTH: len(ids), training.TOKENS: len(ids)}

    return convert


def main(config_path: Path) -> None:
    """Train with the `SftConfig` in the JSON file `config_path`. Raises as `training.token_rows` and `training.run`."""
    config, found = decided(SftConfig.model_validate_json(config_path.read_text()))
    training.join_ranks()
    tokenizer = training.tokenizer_for(config)
    rows, counts = training.token_rows(config, converter(tokenizer))
    batches = batches_of(config, rows, found)
    arguments = SFTConfig(
        **training.arguments(config, batches),
        padding_free=config.packing,
        max_length=None,  # nothing is cut: `token_rows` has handled overlong rows
    )
    trainer = DividedSftTrainer(
        model=training.load_model(config.model, config),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=training.all_callbacks(config, counts),
    )
    trainer.batches = batches
    training.run(trainer, config, {**counts, **figures(batches)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    training.leave()
