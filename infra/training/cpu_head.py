"""The language head of a training on a CPU, in place of TRL's, which is made for GPUs.

TRL projects in tiles, with float32 products in the backward pass, and on a CPU the prompt's positions as well: 3 to 5
times slower there. Here the positions that the loss covers are projected as any other layer, in blocks of `BLOCK`.
"""

from __future__ import annotations

from functools import partial

import torch
import trl.trainer.utils
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.kernels import ChunkedLogProbFunction

BLOCK = 1 << 26
"""Logits in memory at once, about 1 GiB with their gradients. More are computed again in the backward pass."""
PerToken = tuple[torch.Tensor | None, ...]


def install() -> None:
    """Have TRL's trainers use it. Under ZeRO-3, where the head's weight comes and goes, TRL's own stays."""
    trl.trainer.utils._ChunkedLogProbFunction = Head
    trl.trainer.utils._use_triton = lambda _: True  # which means: project only the positions that the loss covers


class Head:
    """Stands for TRL's `ChunkedLogProbFunction`."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> PerToken:
        """What TRL's gives for each position; None for what is not in `outputs`.

        Log-probability, entropy, log of the summed squares of the probabilities, mean logit, and whether the target is
        the most probable.
        """
        if is_deepspeed_zero3_enabled():
            made: PerToken = ChunkedLogProbFunction.apply(
                hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs
            )
            return made
        size = max(1, BLOCK // weight.shape[0])
        blocks = list(zip(hidden.split(size), targets.split(size), strict=True))
        block = partial(
            _block, weight=weight, bias=bias, temperature=temperature, cap=softcap, scale=scale, outputs=outputs
        )
        if len(blocks) == 1:
            return block(*blocks[0])
        parts = [checkpoint(block, *each, use_reentrant=False) for each in blocks]
        return tuple(None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True))


def _block(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    *,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    cap: float | None,
    scale: float,
    outputs: tuple[str, ...],
) -> PerToken:
    logits = linear(hidden.to(weight.dtype), weight, bias).float()
    if scale != 1:
        logits = logits * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    if temperature != 1:
        logits = logits / temperature
    log_probs = logits.log_softmax(-1)
    found = log_probs.gather(-1, targets[:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1) if "entropy" in outputs else None
        squares = (2 * log_probs).logsumexp(-1) if "log_sum_sq_probs" in outputs else None
        mean = logits.mean(-1) if "mean_logits" in outputs else None
        top = logits.argmax(-1) == targets if "is_top1" in outputs else None
    return found, entropy, squares, mean, top
