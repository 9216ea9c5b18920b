"""Dropout in attention: off where policies are compared, and on in SFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interrupted import config_of
from tiny import make_model

from infra.training.trainer import load_model


@pytest.mark.parametrize(("trainer", "same"), [("sft", False), ("dpo", True), ("rl", True), ("on_policy", True)])
def test_a_policy_in_training_is_the_one_that_is_compared(trainer: str, same: bool, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", attention_dropout=0.5)
    model = load_model(folder, config_of(trainer, tmp_path, folder))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        trained, compared = model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits
    assert torch.equal(trained, compared) is same
    assert model.config.attention_dropout == 0.5  # which is saved
