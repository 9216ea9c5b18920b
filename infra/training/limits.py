"""The guards of a training: the limits that stop it, and the figures from its log that are compared with them.

Flows and tasks use this too, so it needs no torch. `infra.training.guards` holds the trainers to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

Entry = Mapping[str, Any]
"""What a trainer logs at one step: `loss`, `grad_norm`, and in DPO `rewards/chosen`, `rewards/rejected`, ..."""

KL = "kl_to_pi_0"
"""What a policy gradient logs: the mean over tokens of an estimate of KL(pi || pi_0), on the samples of a step
(`infra.training.policy_gradient.divergence`)."""
TITLES = {
    "max_nonfinite_steps": "steps that are not finite",
    "max_kl": "KL to pi_0, nats per token",
    "max_chosen_fall": "fall of the chosen log-probability, nats per token",
}
"""What each limit bounds, by its field."""


class TrainingGuards(BaseModel, frozen=True, extra="forbid"):
    """Limits that stop a training with a reason. They change no row, so that a run goes on once one is raised."""

    max_nonfinite_steps: int = Field(
        0,
        ge=0,
        description="Largest number of optimiser steps whose loss or gradient norm is not finite (this project's "
        "choice: none, since in float32 the first one breaks the weights for good; in bfloat16 with ZeRO, DeepSpeed "
        "skips the update of such a step). No checkpoint is saved at such a step.",
    )


class DriftGuards(TrainingGuards, frozen=True):
    """Limits that stop online training with a reason, per token of the completions."""

    window: int = Field(
        10,
        ge=1,
        description="Number of latest steps whose mean is compared with the limits, or as many as there are yet (this "
        "project's choice: 1,280 rows with the paper's batch, so that no odd batch stops a run).",
    )
    max_kl: float = Field(
        0.5,
        gt=0,
        description="Largest KL divergence from pi_0, in nats per token, estimated on the completions that are trained "
        "on (this project's choice: the best of 8 samples is only 1.2 nats per completion away, so that three "
        "iterations of it stay below 0.1 even for completions of 40 tokens).",
    )


class DpoGuards(DriftGuards, frozen=True):
    """Limits that stop DPO with a reason. Both figures are sums over completions, divided by their tokens; `max_kl`
    bounds the size of the mean log-ratio of policy and pi_0."""

    max_chosen_fall: float = Field(
        0.5,
        gt=0,
        description="How far the log-probability of the chosen completions may fall below pi_0's, in nats per token "
        "(this project's choice: a token is then 1.6 times less likely than under pi_0; a run of the nano "
        "world that lost 6 points of accuracy fell by 0.005).",
    )


class RlGuards(DriftGuards, frozen=True):
    """Limits that stop a policy gradient with a reason. With `on_policy` and a `beta` of 0, no KL is known."""


def guards_path(output: Path) -> Path:
    """The file in which a trainer that a guard stops leaves the figures, next to the folder of the model."""
    return output.parent / f"{output.name}.guards.json"


def has_finite_norm(entry: Entry) -> bool:
    """Whether a step's gradient norm is finite. DeepSpeed logs -1 for one that is not."""
    norm = entry.get("grad_norm", 0.0)
    return math.isfinite(norm) and norm >= 0


def is_finite(entry: Entry) -> bool:
    """Whether a step's loss and gradient norm are finite."""
    return math.isfinite(entry["loss"]) and has_finite_norm(entry)


def log_ratios(window: Sequence[Entry], beta: float, tokens: Mapping[str, float]) -> dict[str, float]:
    """What `max_kl` and `max_chosen_fall` bound, over the steps of a window.

    The log-ratio of a completion is log pi(y|x) - log pi_0(y|x): TRL logs its mean over the batch, times beta, as
    `rewards/chosen` and `rewards/rejected`. Its mean over samples of pi is an estimate of KL(pi || pi_0), over samples
    of pi_0 of -KL(pi_0 || pi). The pairs of an iteration were sampled by the policy that it starts with. So the size of
    the mean is the first at the first step of an iteration, and in the first iteration the second at every step. In
    between, the samples are as old as the iteration. The best and the worst sample of a query stand for all.

    Args:
        window: finite steps.
        tokens: mean tokens per completion, `chosen_tokens` and `rejected_tokens`.
    """
    chosen, rejected = (
        sum(entry[f"rewards/{side}"] for entry in window) / len(window) / beta for side in ("chosen", "rejected")
    )
    both = tokens["chosen_tokens"] + tokens["rejected_tokens"]
    return {"max_kl": abs(chosen + rejected) / both, "max_chosen_fall": -chosen / tokens["chosen_tokens"]}


def mean_kl(window: Sequence[Entry]) -> dict[str, float]:
    """What `max_kl` bounds in a policy gradient, over the steps of a window; nothing if pi_0 is not in memory."""
    found = [entry[KL] for entry in window if KL in entry]
    return {"max_kl": sum(found) / len(found)} if found else {}


def figures(
    history: Sequence[Entry], guards: TrainingGuards, beta: float, counts: Mapping[str, Any]
) -> dict[str, float]:
    """The figure of each guard over a whole training, by the field of its limit: the largest that occurred.

    Args:
        history: everything that the trainer logged; lines without a loss are left out.
        beta: of DPO; others do not use it.
        counts: for DPO as the `tokens` of `log_ratios`.
    """
    steps = [entry for entry in history if "loss" in entry]
    finite = [entry for entry in steps if is_finite(entry)]
    found: dict[str, float] = {"max_nonfinite_steps": len(steps) - len(finite)}
    if isinstance(guards, DriftGuards) and finite:
        windows = [finite[max(0, end - guards.window) : end] for end in range(1, len(finite) + 1)]
        if isinstance(guards, DpoGuards):
            each = [log_ratios(window, beta, counts) for window in windows]
        else:
            each = [mean_kl(window) for window in windows]
        found |= {field: max(at[field] for at in each) for field in each[0]}
    return found
