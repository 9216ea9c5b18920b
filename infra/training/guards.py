"""Stops a trainer with a reason: a loss or gradient that is not finite, a policy that drifts too far from pi_0."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from transformers import TrainerCallback

from infra.errors import GuardError
from infra.training.config import DpoConfig, RlConfig, SftConfig, TrainingConfig
from infra.training.limits import Entry, figures, guards_path, has_finite_norm, is_finite, log_ratios, mean_kl


class StopByGuards(TrainerCallback):  # type: ignore[misc]
    """Compares each step's log with the limits in `config.guards`, on every rank.

    What is logged is the same on all ranks, so that all stop at the same step. A trainer logs a step before it saves
    it, so that no checkpoint holds a state that a guard stops. Nothing is remembered here: a resumed trainer brings its
    log along.

    Args:
        counts: for DPO with `completion_tokens`.
    """

    def __init__(self, config: TrainingConfig, counts: Mapping[str, Any]) -> None:
        self.config, self.counts = config, counts

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Raise `GuardError` if a limit is exceeded. A step that is not finite is never saved."""
        if not logs or "loss" not in logs:
            return
        if is_finite(logs):
            reason = why_drifted(self.config, state.log_history, self.counts)
        else:
            control.should_save = False
            reason = why_broken(self.config, state.log_history)
        if reason:
            if state.is_world_process_zero:
                found = guard_figures(self.config, state.log_history, self.counts)
                guards_path(self.config.output).write_text(json.dumps(found))
            raise GuardError(f"step {state.global_step} of {state.max_steps}: {reason}")


def completion_tokens(rows: Dataset) -> dict[str, float]:
    """The mean number of tokens of the chosen and of the rejected completions."""
    lengths = {side: pc.list_value_length(rows.data.column(f"{side}_ids")) for side in ("chosen", "rejected")}
    return {f"{side}_tokens": float(pc.mean(found).as_py()) for side, found in lengths.items()}


def guard_figures(config: TrainingConfig, history: Sequence[Entry], counts: Mapping[str, Any]) -> dict[str, float]:
    """As `infra.training.limits.figures`."""
    return figures(history, config.guards, config.beta if isinstance(config, DpoConfig) else 1.0, counts)


def why_broken(config: TrainingConfig, history: Sequence[Entry]) -> str | None:
    """Why the training stops at its latest step, which is not finite; None if it may go on."""
    steps, limit = [entry for entry in history if "loss" in entry], config.guards.max_nonfinite_steps
    count = sum(not is_finite(entry) for entry in steps)
    if count <= limit:
        return None
    norm = f"{steps[-1].get('grad_norm', 0.0):.3g}" if has_finite_norm(steps[-1]) else "not finite"
    what = f"the loss is {steps[-1]['loss']:.3g}, the gradient norm {norm} (such steps: {count}, limit {limit})"
    if len(steps) == 1:
        return (
            f"{what}, before any update: the model's weights are at fault, or too large for its number format: take "
            "another checkpoint of it, or set bf16 to false"
        )
    return (
        f"{what}: the training diverged, and the same settings would again: lower learning_rate, now "
        f"{config.learning_rate:g}, or raise warmup_ratio, now {config.warmup_ratio:g}"
    )


def why_drifted(config: TrainingConfig, history: Sequence[Entry], counts: Mapping[str, Any]) -> str | None:
    """Why the training stops, since its policy is too far from pi_0; None if it is not, and for SFT."""
    if isinstance(config, SftConfig):
        return None
    finite = (entry for entry in reversed(history) if "loss" in entry and is_finite(entry))
    window = list(islice(finite, config.guards.window))
    steps, remedy = f"mean of {len(window)} steps", f"lower learning_rate, now {config.learning_rate:g}, or epochs"
    if isinstance(config, RlConfig):
        found, sampled, place = mean_kl(window), "samples", "rl.guards"
    else:
        found, sampled, place = log_ratios(window, config.beta, counts), "pairs", "dpo.guards"
        if found["max_chosen_fall"] > config.guards.max_chosen_fall:
            return (
                f"the log-probability of the chosen completions fell {found['max_chosen_fall']:.3g} nats per token "
                f"below pi_0's ({steps}): {remedy}, or set sft_coefficient; or raise {place}.max_chosen_fall, now "
                f"{config.guards.max_chosen_fall:g}, to go on"
            )
    if found.get("max_kl", 0.0) > config.guards.max_kl:
        return (
            f"KL to pi_0, estimated on the {sampled}, is {found['max_kl']:.3g} nats per token ({steps}): {remedy}, or "
            f"raise beta; or raise {place}.max_kl, now {config.guards.max_kl:g}, to go on"
        )
    return None
