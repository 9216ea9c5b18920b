"""DeepSpeed configurations, one for each ZeRO stage."""

from __future__ import annotations

from typing import Any, Literal


def deepspeed_config(
    zero_stage: Literal[0, 2, 3],
    *,
    bf16: bool,
    micro_batch: int,
    accumulation: int,
    ranks: int,
    max_grad_norm: float = 1.0,
) -> dict[str, Any]:
    """The configuration of one run; batch sizes in rows. ZeRO-2 spreads optimiser state and gradients, ZeRO-3 the
    weights too.

    The batch sizes are spelled out (not "auto") because ZeRO-3 reads them as soon as a model is loaded, before any
    trainer exists.
    """
    zero: dict[str, Any] = {"stage": zero_stage}
    if zero_stage:
        zero |= {"overlap_comm": True, "contiguous_gradients": True}
    if zero_stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * ranks,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }
