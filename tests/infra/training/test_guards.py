"""The trainers' guards: real trainings that diverge or drift stop on all ranks with a reason and leave no model."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import PROMPT, make_model

from infra.processes.torchrun import TrainerError, launch, metrics_path
from infra.training.checkpoints import candidates, checkpoints_folder, read
from infra.training.config import DpoConfig, SftConfig, trained_path
from infra.training.limits import DpoGuards, TrainingGuards, figures, guards_path, is_finite, log_ratios

TOKENS = {"chosen_tokens": 10.0, "rejected_tokens": 5.0}


def at(loss: float = 0.5, chosen: float = 0.0, rejected: float = 0.0, **more: float) -> dict[str, float]:
    return {"loss": loss, "grad_norm": 1.0, "rewards/chosen": chosen, "rewards/rejected": rejected, **more}


@pytest.mark.parametrize("broken", [at(math.nan), at(math.inf), at(grad_norm=math.inf), at(grad_norm=-1.0)])
def test_a_step_is_not_finite_if_its_loss_or_its_norm_is_not(broken: dict[str, float]) -> None:
    assert is_finite(at())
    assert is_finite({"loss": 0.1})  # DeepSpeed without ZeRO gives no norm in float32
    assert not is_finite(broken)
    assert figures([at(), broken, at()], TrainingGuards(), 1.0, {}) == {"max_nonfinite_steps": 1}


def test_the_figures_are_nats_per_token() -> None:
    found = log_ratios([at(chosen=-1.0, rejected=-2.0), at(chosen=-3.0, rejected=-4.0)], 0.1, TOKENS)
    assert found == pytest.approx({"max_chosen_fall": 20 / 10, "max_kl": (20 + 30) / 15})
    risen = log_ratios([at(chosen=3.0, rejected=-1.0)], 0.1, TOKENS)
    assert risen == pytest.approx({"max_chosen_fall": -3.0, "max_kl": 20 / 15})


def test_a_training_is_judged_by_its_worst_window() -> None:
    steps = [at(chosen=float(reward)) for reward in (0, -1, -9, -1, 0)]
    summary = {"train_runtime": 3.0}
    found = figures([*steps, summary], DpoGuards(window=2), 1.0, TOKENS)
    assert found == pytest.approx({"max_nonfinite_steps": 0, "max_chosen_fall": 0.5, "max_kl": 5 / 15})
    alone = figures(steps, DpoGuards(window=1), 1.0, TOKENS)
    assert alone["max_chosen_fall"] == pytest.approx(0.9)
    broken = figures([at(math.nan, chosen=math.nan, rejected=math.nan)], DpoGuards(), 1.0, TOKENS)
    assert broken == {"max_nonfinite_steps": 1}


@pytest.mark.parametrize(
    ("history", "word"),
    [
        ([at(math.nan)], "before any update: the model's weights are at fault"),
        ([at(), at(grad_norm=-1.0)], "the gradient norm not finite .* lower learning_rate"),
        ([at(chosen=-6.0)], "fell 0.6 nats per token .* raise dpo.guards.max_chosen_fall, now 0.5"),
        ([at(rejected=-9.0)], "KL to pi_0, .* is 0.6 nats .* raise dpo.guards.max_kl, now 0.5"),
        ([at(), at(chosen=-6.0)], None),  # the mean of the window
        ([at(chosen=4.0, rejected=-3.0)], None),
    ],
)
def test_each_reason_names_figure_limit_and_setting(history: list[Any], word: str | None, tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState

    from infra.errors import GuardError
    from infra.training.guards import StopByGuards

    config = DpoConfig(model=tmp_path, data=(tmp_path,), output=tmp_path / "out", reference=tmp_path, beta=1.0)
    guard, control = StopByGuards(config, TOKENS), TrainerControl(should_save=True)
    state = TrainerState(log_history=history, global_step=len(history), max_steps=9, is_world_process_zero=True)
    if word is None:
        guard.on_log(None, state, control, history[-1])
        assert control.should_save
        return
    with pytest.raises(GuardError, match=rf"^step {len(history)} of 9: .*{word}") as raised:
        guard.on_log(None, state, control, history[-1])
    assert len(f"infra.errors.GuardError: {raised.value}") <= 400  # all of it is shown as the cause
    assert json.loads(guards_path(config.output).read_text()).keys() <= {*DpoGuards.model_fields}


def test_a_step_that_is_not_finite_is_not_saved_even_if_it_is_allowed(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState

    from infra.training.guards import StopByGuards

    config = SftConfig(model=tmp_path, data=(tmp_path,), output=tmp_path / "out", guards={"max_nonfinite_steps": 1})
    control = TrainerControl(should_save=True)
    state = TrainerState(log_history=[at(math.nan)], global_step=1, is_world_process_zero=True)
    StopByGuards(config, {}).on_log(None, state, control, at(math.nan))
    assert not control.should_save


def settings(model: Path, folder: Path, rows: int = 16, **changes: Any) -> dict[str, Any]:
    columns = {"prompt": PROMPT, "completion": "w1 w2 w3", "chosen": "w1 w2 w3", "rejected": "w4 w5"}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({name: [text] * rows for name, text in columns.items()}), folder / "part-00000.parquet")
    plain = {"model": model, "data": (folder / "part-00000.parquet",), "output": folder / "out", "batch": 4}
    return {**plain, "micro_batch": 2, "max_length": 64, "epochs": 4, "learning_rate": 1e-3, "bf16": False} | changes


def stopped(module: str, config: Any, folder: Path, ranks: int = 2) -> str:
    """Train until a guard stops it; the text of the error. All ranks say the same, at the same step."""
    with pytest.raises(TrainerError) as raised:
        launch(module, config, ranks=ranks, log_path=folder / "train.log", timeout_s=300)
    assert not trained_path(config.output).exists()
    assert not config.output.exists() or not os.listdir(config.output)
    said = {
        line.split("GuardError: ")[1]
        for line in (folder / "train.log").read_text().splitlines()
        if "infra.errors.GuardError: " in line
    }
    assert len(said) == 1
    assert f"cause: infra.errors.GuardError: {said.pop()}; its last lines:" in str(raised.value)
    return str(raised.value)


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = metrics_path(folder / "train.log").read_text().splitlines()
    return [entry for line in lines if "loss" in (entry := json.loads(line))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("policy"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "bf16"),
    [
        pytest.param(0, False, marks=pytest.mark.faults),
        pytest.param(2, False, marks=pytest.mark.faults),
        (2, True),
        pytest.param(3, False, marks=pytest.mark.faults),
    ],
)
def test_a_training_that_diverges_stops(policy: Path, tmp_path: Path, stage: int, bf16: bool) -> None:
    changes = {"learning_rate": 1e30, "zero_stage": stage, "bf16": bf16, "warmup_ratio": 0.0}
    text = stopped("infra.training.sft", SftConfig(**settings(policy, tmp_path, **changes)), tmp_path)
    assert "lower learning_rate, now 1e+30" in text
    *before, last = logged(tmp_path)
    assert 1 <= len(before) < 15  # at once, not at the end
    assert all(map(is_finite, before))
    assert not is_finite(last)
    assert json.loads(guards_path(tmp_path / "out").read_text()) == {"max_nonfinite_steps": 1}


@pytest.mark.slow
def test_a_model_that_is_broken_from_the_start_is_told_from_one_that_diverged(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    broken = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m"))
    with torch.no_grad():  # finite weights, so that nothing refuses them before, but infinite logits
        broken.model.norm.weight.fill_(1e30)
        broken.lm_head.weight.mul_(1e30)
    broken.save_pretrained(tmp_path / "m")
    text = stopped("infra.training.sft", SftConfig(**settings(tmp_path / "m", tmp_path)), tmp_path)
    assert "step 1 of 16: the loss is nan" in text
    assert "the model's weights are at fault" in text


COLLAPSE = {"learning_rate": 0.3, "warmup_ratio": 0.0, "epochs": 16}


@pytest.mark.faults
@pytest.mark.slow
def test_dpo_stops_when_the_chosen_completions_become_unlikely(policy: Path, tmp_path: Path) -> None:
    config = DpoConfig(**settings(policy, tmp_path, reference=policy, guards={"window": 2}, **COLLAPSE))
    text = stopped("infra.training.dpo", config, tmp_path)
    assert "log-probability of the chosen completions fell" in text
    assert "raise dpo.guards.max_chosen_fall, now 0.5, to go on" in text
    last = logged(tmp_path)[-2:]
    assert -sum(entry["rewards/chosen"] for entry in last) / 2 / 0.1 / 4 > 0.5  # three words and the end token


@pytest.mark.slow
@pytest.mark.faults
def test_dpo_stops_when_it_is_far_from_pi_0_and_goes_on_with_a_higher_limit(policy: Path, tmp_path: Path) -> None:
    changes = {"reference": policy, "learning_rate": 3e-3, "epochs": 8, "sft_coefficient": 1.0, "checkpoint_minutes": 0}
    config = DpoConfig(**settings(policy, tmp_path, **changes))
    text = stopped("infra.training.dpo", config, tmp_path)
    assert "KL to pi_0, estimated on the pairs" in text
    assert "raise dpo.guards.max_kl, now 0.5, to go on" in text
    steps = logged(tmp_path)
    last = candidates(checkpoints_folder(config.output))[0]
    assert read(last).step == len(steps) - 1  # none of the step that was stopped

    again = config.model_copy(update={"guards": DpoGuards(max_kl=1e9, max_chosen_fall=1e9), "resume": last})
    assert "guards" not in read(last).settings  # so that another limit is no other training
    launch("infra.training.dpo", again, ranks=2, log_path=tmp_path / "train.log", timeout_s=300)
    report, whole = json.loads(trained_path(config.output).read_text()), logged(tmp_path)
    assert (report["steps"], report["resumed_at"], len(whole)) == (32, len(steps) - 1, 32)
    assert whole[: len(steps) - 1] == steps[:-1]
    assert (report["chosen_tokens"], report["rejected_tokens"]) == (4.0, 3.0)
    assert report["guards"] == pytest.approx(figures(whole, again.guards, again.beta, report))
    assert report["guards"]["max_kl"] > 0.5
    assert report["guards"]["max_nonfinite_steps"] == 0
