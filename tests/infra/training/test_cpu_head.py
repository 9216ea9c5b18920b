"""The language head of trainings on a CPU gives what TRL's gives."""

from __future__ import annotations

from typing import Any

import pytest

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@pytest.mark.parametrize("block", [1 << 26, 7 * 96])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("bias", [True, False])
def test_it_gives_what_trls_gives(block: int, cap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from trl.kernels import ChunkedLogProbFunction

    from infra.training import cpu_head

    monkeypatch.setattr(cpu_head, "BLOCK", block)
    torch.manual_seed(0)
    leaves = [torch.randn(20, 16), torch.randn(96, 16), torch.randn(96)]
    targets = torch.randint(0, 96, (20,))

    def made(function: Any) -> Any:
        hidden, weight, offset = (each.clone().requires_grad_() for each in leaves)
        found = function.apply(hidden, weight, offset if bias else None, targets, 1.5, 64, cap, 0.7, OUTPUTS)
        (found[0] * torch.arange(20)).sum().backward()
        return [*found, hidden.grad, weight.grad, offset.grad]

    for ours, theirs in zip(made(cpu_head.Head), made(ChunkedLogProbFunction), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours.float(), theirs.float(), atol=2e-5, rtol=1e-4)


def test_trls_trainers_use_it_and_a_batch_without_labels_has_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import trl.trainer.utils
    from transformers import LlamaConfig, LlamaForCausalLM

    from infra.training import cpu_head

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    trl.trainer.utils.add_fused_lm_head(model)
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 3, 4], [-100, 6, 7, -100]])
    theirs = model(input_ids=ids, labels=labels, fused_lm_head=True)
    for name in ("_ChunkedLogProbFunction", "_use_triton"):
        monkeypatch.setattr(trl.trainer.utils, name, getattr(trl.trainer.utils, name))  # put back after the test
    cpu_head.install()
    ours = model(input_ids=ids, labels=labels, fused_lm_head=True)
    assert torch.allclose(ours.log_probs, theirs.log_probs, atol=1e-6)
    nothing = model(input_ids=ids, labels=torch.full_like(labels, -100), fused_lm_head=True).log_probs.sum()
    nothing.backward()
    assert nothing == 0
