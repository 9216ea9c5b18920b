"""Dropout that is no module of its own."""

from __future__ import annotations

from torch import nn


def switch_off_dropout(model: nn.Module) -> None:
    """Set the dropout inside of attention and blocks to 0. TRL's `disable_dropout` finds that of modules only.

    Preference and policy-gradient losses compare the policy, in training mode, with policies in evaluation mode. The
    model's configuration keeps its figures.
    """
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
