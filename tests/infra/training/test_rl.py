"""Policy gradients on samples: losses and gradients as computed by hand, on two ranks of real DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import PROMPT, make_model
from transformers import AutoModelForCausalLM

from infra.processes.torchrun import TrainerError, launch, metrics_path
from infra.text.chat import load_tokenizer
from infra.training.config import RlConfig, trained_path
from infra.training.limits import guards_path

SAMPLES = {
    "query_id": ["a", "a", "a", "b", "b", "b"],
    "prompt": [PROMPT] * 3 + [PROMPT.replace("w3", "w4 w5")] * 3,
    "response": ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11", "w12 w13", "w14 w15 w16 w17 w18", "w20 w21"],
    "ended": [True, False, True, True, True, False],
    "reward": [1.0, 0.0, 0.5, 2.0, 0.0, 0.25],
}
BETA = 0.3


def config_of(tmp_path: Path, rows: dict[str, list[Any]] = SAMPLES, **changes: Any) -> RlConfig:
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    given: dict[str, Any] = {"batch": 6, "micro_batch": 1, "epochs": 2, "max_length": 64, "learning_rate": 1e-3}
    given |= {"data": (tmp_path / "rows.parquet",), "output": tmp_path / "model", "temperature": 1.0, "bf16": False}
    models = {"model": make_model(tmp_path / "policy"), "reference": make_model(tmp_path / "pi_0", seed=1)}
    return RlConfig(**given | models | {"beta": BETA} | changes)


def trained(config: RlConfig, ranks: int = 2) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of a training's metrics with a loss, and its report."""
    log = config.output.with_name("train.log")
    launch("infra.training.rl", config, ranks=ranks, log_path=log, timeout_s=300)
    lines = [json.loads(line) for line in metrics_path(log).open()]
    return [line for line in lines if "loss" in line], json.loads(trained_path(config.output).read_text())


def log_probs(folder: Path, model: Any) -> list[torch.Tensor]:
    """The log-probability of each token of each sample, one sample at a time and without padding."""
    tokenizer, found = load_tokenizer(folder), []
    for prompt, response, ended in zip(SAMPLES["prompt"], SAMPLES["response"], SAMPLES["ended"], strict=True):
        before = tokenizer.encode(prompt, add_special_tokens=False)
        after = tokenizer.encode(response, add_special_tokens=False) + [tokenizer.eos_token_id] * ended
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].float()
        found.append(logits.log_softmax(-1)[torch.arange(len(after)), torch.tensor(after)])
    return found


def by_hand(config: RlConfig, advantages: list[float]) -> tuple[float, float]:
    """The loss of the first step and the norm of its gradient: there the policy is still the one that sampled."""
    model = AutoModelForCausalLM.from_pretrained(config.model).train()
    with torch.no_grad():
        reference = log_probs(config.model, AutoModelForCausalLM.from_pretrained(config.reference))
    loss = gradient = torch.zeros(())
    for ours, theirs, advantage in zip(log_probs(config.model, model), reference, advantages, strict=True):
        if config.method == "grpo":
            ratio = theirs - ours
            weight = (ours - ours.detach()).exp()  # 1, but its gradient is not 0
            penalty = config.beta * (weight * (ratio.exp() - ratio - 1)).mean()
            loss, gradient = loss - advantage + penalty, gradient - advantage * ours.mean() + penalty
        else:
            loss, gradient = loss - advantage, gradient - advantage * ours.sum()
    (gradient / len(advantages)).backward()
    norm = torch.stack([each.grad.norm() for each in model.parameters() if each.grad is not None]).norm()
    return float(loss.detach()) / len(advantages), float(norm)


def penalised(config: RlConfig) -> list[float]:
    """Each sample's reward less the divergence of its whole response."""
    policies = [AutoModelForCausalLM.from_pretrained(each) for each in (config.model, config.reference)]
    with torch.no_grad():
        ours, theirs = (log_probs(config.model, policy) for policy in policies)
    return [reward - BETA * float((a - b).sum()) for reward, a, b in zip(SAMPLES["reward"], ours, theirs, strict=True)]


def leave_one_out(rewards: list[float]) -> list[float]:
    return [each - (sum(rewards) - each) / (len(rewards) - 1) for each in rewards]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.faults)])
def test_rloo_matches_a_loss_and_a_gradient_by_hand(stage: int, tmp_path: Path) -> None:
    config = config_of(tmp_path, method="rloo", zero_stage=stage)
    rewards = penalised(config)
    loss, norm = by_hand(config, leave_one_out(rewards[:3]) + leave_one_out(rewards[3:]))
    lines, report = trained(config)
    assert lines[0]["loss"] == pytest.approx(loss, abs=1e-3)
    assert lines[0]["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert lines[0]["reward"] == pytest.approx(sum(SAMPLES["reward"]) / 6)
    assert lines[0]["clip_ratio/region_mean"] == 0
    assert report["steps"] == 2
    assert report["guards"]["max_kl"] == pytest.approx(sum(line["kl_to_pi_0"] for line in lines) / 2)


@pytest.mark.faults
@pytest.mark.slow
def test_reinforce_matches_a_loss_and_a_gradient_by_hand(tmp_path: Path) -> None:
    config = config_of(tmp_path, method="reinforce", baseline_decay=0.5)
    rewards = penalised(config)
    baselines = [sum(rewards[:3]) / 3] * 6  # the first query's mean, which the second one begins with
    loss, norm = by_hand(config, [reward - baseline for reward, baseline in zip(rewards, baselines, strict=True)])
    lines, _ = trained(config)
    assert lines[0]["loss"] == pytest.approx(loss, abs=1e-3)
    assert lines[0]["grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.faults)])
def test_grpo_matches_a_loss_and_a_gradient_by_hand(stage: int, tmp_path: Path) -> None:
    config = config_of(tmp_path, method="grpo", zero_stage=stage)
    groups = [torch.tensor(SAMPLES["reward"][:3]), torch.tensor(SAMPLES["reward"][3:])]
    advantages = [float(each) for group in groups for each in (group - group.mean()) / (group.std() + 1e-4)]
    loss, norm = by_hand(config, advantages)
    lines, _ = trained(config)
    assert lines[0]["loss"] == pytest.approx(loss, abs=1e-3)
    assert lines[0]["grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.slow
@pytest.mark.faults
def test_a_policy_far_from_pi_0_stops_the_training(tmp_path: Path) -> None:
    config = config_of(tmp_path, method="reinforce", learning_rate=0.05, epochs=12, guards={"window": 2})
    with pytest.raises(TrainerError, match=r"KL to pi_0, estimated on the samples, is .* or raise rl.guards"):
        trained(config)
    assert json.loads(guards_path(config.output).read_text())["max_kl"] > 0.5


@pytest.mark.slow
def test_bad_samples_are_skipped_and_counted_and_columns_are_checked(tmp_path: Path) -> None:
    rows = {name: [*column, column[0]] for name, column in SAMPLES.items()} | {"reward": [*SAMPLES["reward"], None]}
    _, report = trained(config_of(tmp_path, rows, method="rloo", epochs=1, max_bad_share=0.2), ranks=1)
    assert (report["samples"], report["skipped"]) == (6, {"reward is null": 1})
    texts = SAMPLES | {"reward": ["good"] * 6}
    with pytest.raises(TrainerError, match=r"column reward is of type string: expected numbers or booleans"):
        trained(config_of(tmp_path, texts, method="rloo"), ranks=1)
