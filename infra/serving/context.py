"""How many tokens a model can read, by its config.json, and whether the settings stay within that.

It is counted as vLLM 0.32 counts (`_get_and_verify_max_len`), so that a server which would not start is not started. A
sliding window does not shorten the context: it is what one layer sees at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from infra.errors import BadInput
from infra.store.model_files import language_part

_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_ALREADY_SCALED = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}


def context_length(config: Mapping[str, Any]) -> tuple[int, str] | None:
    """The longest sequence of a model in tokens, and what its config.json says; None if it does not say.

    Stretched positions (`rope_scaling`, `rope_parameters`) count as the model's own, unless `max_position_embeddings`
    has them already.
    """
    told = language_part(config)
    lengths = {key: told[key] for key in _KEYS if _is_number(told.get(key))}
    if not lengths:
        return None
    key = "model_max_length" if lengths.get("model_max_length") else min(lengths, key=lambda name: lengths[name])
    length, said = lengths[key], f"{key} {lengths[key]:,}"
    if "gemma3" not in str(told.get("model_type")):
        for rope in _ropes(told):
            kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
            if str(kind) not in _ALREADY_SCALED and _is_number(factor):
                return math.floor(length * factor), f"{said}, stretched by {factor:g} ({kind})"
    return math.floor(length), said


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it can be counted with: JSON as Python reads it also holds NaN, Infinity and integers of any length."""
    return isinstance(value, int | float) and 0 <= value < 1e18


def _ropes(told: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """How positions are stretched: once for all layers, or by kind of layer."""
    for rope in (told.get("rope_scaling"), told.get("rope_parameters")):
        if isinstance(rope, Mapping):
            inner = [each for each in rope.values() if isinstance(each, Mapping)]
            yield from inner or [rope]


def check_length(title: str, config: Mapping[str, Any], length: int, setting: str) -> None:
    """Refuse a length in tokens, set at the parameter `setting`, that a model cannot read.

    Args:
        title: names the model.
        config: its config.json.

    Raises:
        BadInput: the length is more than the model's context.
    """
    found = context_length(config)
    if found and length > found[0]:
        raise BadInput(
            f"{title} reads {found[0]:,} tokens at most (config.json: {found[1]}), but {setting} is {length:,}: set "
            f"{setting} to {found[0]} or less, or take a model with a longer context"
        )


def has_own_length(extra_args: Sequence[str]) -> bool:
    """Whether options of vLLM's command line replace what config.json says, so that it cannot be judged."""
    return any(each.startswith("--hf-overrides") for each in extra_args)
