"""DeepSpeed's configuration of a training run."""

from __future__ import annotations

from typing import Any

from infra.training.config import Recipe


def deepspeed_config(recipe: Recipe, ranks: int, packs: int | None = None) -> dict[str, Any]:
    """The configuration of a run over `ranks` processes; batch sizes in rows, or in packs of rows.

    The batch sizes are given as numbers, not as "auto", because ZeRO-3 reads them as soon as a model is loaded, before
    any trainer exists.

    Args:
        packs: micro-batches of an optimiser step over all ranks, if rows are packed.

    Raises:
        ValueError: as `Recipe.accumulation`.
    """
    accumulation = recipe.accumulation(ranks)
    zero: dict[str, Any] = {"stage": recipe.zero_stage}
    if recipe.zero_stage:
        zero |= {"overlap_comm": True, "contiguous_gradients": True}
    if recipe.zero_stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    return {
        "train_micro_batch_size_per_gpu": 1 if packs else recipe.micro_batch,
        "gradient_accumulation_steps": packs // ranks if packs else accumulation,
        "train_batch_size": packs or recipe.batch,
        "gradient_clipping": recipe.max_grad_norm,
        "bf16": {"enabled": recipe.bf16},
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }
