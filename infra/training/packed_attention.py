"""Exact attention over rows that lie end to end in one sequence: every row attends to itself alone.

On a GPU it is the FlashAttention that comes with torch, which needs no other package. On a CPU each row is computed by
itself. transformers would make a mask over the whole sequence, which takes the square of its length in time and memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "bolt_packed"
"""The name that `register` gives it, for `attn_implementation`."""


def register() -> None:
    """Make it known to transformers."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """No mask where there is no padding: the boundaries come with the batch."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row; over a batch without boundaries, such as a generation's, torch's own.

    Args:
        query: (1, heads, tokens, head size); `key` and `value` may have fewer heads.
        sliding_window: how many tokens a token sees at most, itself included.
        cu_seq_lens_q: (rows + 1), where each row starts, and the end; from TRL's padding-free batches.
        max_length_q: tokens of the longest row.

    Returns:
        (1, tokens, heads, head size), and no attention weights.

    Raises:
        ValueError: dropout is on, which this does not have.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        made, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return made, None
    if dropout:
        raise ValueError("packed rows cannot be trained with attention dropout: set packing to false")
    if query.is_cuda:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
        flat = [part.squeeze(0).transpose(0, 1).to(dtype) for part in (query, key, value)]
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        shared = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
        bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        return varlen_attn(*flat, *bounds, scale=scaling, window_size=window, **shared).unsqueeze(0), None  # type: ignore[arg-type, union-attr]
    groups = query.shape[1] // key.shape[1]
    sizes = cu_seq_lens_q.diff().tolist()
    queries, keys, values = (
        part.split(sizes, dim=2) for part in (query, repeat_kv(key, groups), repeat_kv(value, groups))
    )
    rows = [_row(*row, scaling, sliding_window) for row in zip(queries, keys, values, strict=True)]
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    tokens = query.shape[2]
    if window is None or tokens <= window:
        return scaled_dot_product_attention(query, key, value, scale=scaling, is_causal=True)
    place = torch.arange(tokens, device=query.device)
    apart = place[:, None] - place
    return scaled_dot_product_attention(query, key, value, attn_mask=(apart >= 0) & (apart < window), scale=scaling)
