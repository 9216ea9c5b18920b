"""What TRL's policy-gradient trainers have in common here."""

from __future__ import annotations

from typing import Any

import torch

from infra.training.limits import KL
from infra.training.log_probs import OLD, REFERENCE
from infra.training.resumable import Resumable


def divergence(policy: torch.Tensor, old: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """For each token, an estimate of KL(policy || reference) from log-probabilities, in nats; its mean over tokens that
    `old` sampled is unbiased, and it is never negative.

    It is k3 of Schulman, "Approximating KL divergence" (2020), exp(r) - r - 1 with r = reference - policy, weighted by
    the ratio of the policy to `old`. Without the weight, a single token that the policy was trained away from, by ten
    nats, say, would count as 22,000 nats.
    """
    return torch.exp(reference - old) - torch.exp(policy - old) * (1 + reference - policy)


class PolicyGradient(Resumable):
    """What such a trainer inherits first: it logs how far the policy is from pi_0, where a batch has `REFERENCE`.

    Attributes:
        log_probs: of the policy, as last computed: for a loss, or when it was sampled from.
        reference_log_probs: of the reference policy in memory, if there is one.
        sums: over the micro-batches of the current step: the divergence, and the tokens that it was computed on.
    """

    sums: torch.Tensor | float = 0.0

    def _get_per_token_logps_and_entropies(self, model: Any, *arguments: Any, **named: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(model, *arguments, **named)
        if model is self.ref_model:
            self.reference_log_probs = found[0]
        else:
            self.log_probs = found[0].detach()
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """TRL's loss."""
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        if REFERENCE in inputs:
            mask, old = inputs["completion_mask"], inputs.get(OLD)
            found = divergence(self.log_probs, self.log_probs if old is None else old, inputs[REFERENCE])
            sums = torch.stack([(found * mask).sum(), mask.sum()])
            self.sums = self.sums + self.accelerator.reduce(sums, reduction="sum")
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step."""
        if isinstance(self.sums, torch.Tensor):
            kl, tokens = self.sums.tolist()
            logs[KL] = kl / tokens
            self.sums = 0.0
        super().log(logs, start_time)
