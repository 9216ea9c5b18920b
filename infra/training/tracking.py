"""What a trainer logs of its speed, and the trackers that it reports to."""

from __future__ import annotations

import logging
import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks, rewrite_logs
from transformers.trainer_pt_utils import get_model_param_count

from infra.training.config import TrainingConfig
from infra.training.trackers import environment, without_secrets

log = logging.getLogger(__name__)

PEAKS = {
    "A100": 312e12,
    "A800": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A40": 150e12,
}
"""Peak of dense bfloat16 in floating-point operations per second, from NVIDIA's data sheets (which print twice as much,
"with sparsity", from Hopper on), by words of the name that CUDA gives. The first that fits counts."""
_SHOWN = 300  # characters of a tracker's error


def peak(device: str) -> float | None:
    """The peak of a GPU with this name; None if it is not known, or if it is a part of a GPU (MIG)."""
    if " MIG " in device:
        return None
    return next((flops for name, flops in PEAKS.items() if re.search(rf"\b{name}\b", device)), None)


def flops_per_token(parameters: int, layers: int, hidden: int, length: float) -> float:
    """Floating-point operations that training needs per token: PaLM, appendix B (arXiv 2204.02311), as in nanoGPT.

    6 per parameter, and 12 x layers x hidden x length for attention, of which the forward pass is a third. What is
    computed again for gradient checkpointing does not count, nor does DPO's reference policy, which computes before the
    training. That attention is causal is not subtracted.

    Args:
        parameters: those that are multiplied with: without the input embedding, unless it is the output's too.
        length: length of the token's sequence.
    """
    return 6 * parameters + 12 * layers * hidden * length


def training_flops(model: Any, length: float) -> float | None:
    """`flops_per_token` of a model; None for a mixture of experts, whose tokens use only some of the parameters."""
    config = model.config.get_text_config()
    if "num_experts_per_tok" in config.to_dict():
        return None
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    parameters = get_model_param_count(model) - embedding
    return flops_per_token(parameters, config.num_hidden_layers, config.hidden_size, length)


class Speed(TrainerCallback):  # type: ignore[misc]
    """Adds to what is logged: tokens per second over all ranks, MFU where the GPU's peak is known, and peak memory.

    Padding does not count. `mfu` is the share of the GPUs' peak, from 0 to 1. `memory_gb` is that of this rank so far:
    the GPU's as allocated by torch, without a GPU the process's. It must come before the callbacks that show the logs.
    """

    def __init__(self, length: float, *, bf16: bool) -> None:
        self.length = length
        self.on_gpu = torch.cuda.is_available()
        self.peak = peak(torch.cuda.get_device_name()) if self.on_gpu and bf16 else None
        self.flops: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Start the clock. A resumed trainer goes on counting tokens."""
        if self.peak:
            self.flops = training_flops(model, self.length)
        self.tokens = state.log_history[-1]["num_tokens"] if state.log_history else 0.0
        self.at = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add the figures of the steps since the last log."""
        if logs is None or "num_tokens" not in logs:  # the last log has totals
            return
        now = time.monotonic()
        rate = (logs["num_tokens"] - self.tokens) / (now - self.at)
        self.tokens, self.at = logs["num_tokens"], now
        added = {"tokens_per_second": round(rate, 1), "memory_gb": round(self._memory() / 1e9, 3)}
        if self.peak and self.flops:
            added["mfu"] = round(rate * self.flops / (self.peak * args.world_size), 4)
        logs.update(added)
        state.log_history[-1].update(added)  # which a resumed training begins its metrics with

    def _memory(self) -> int:
        """Bytes at the peak so far."""
        if self.on_gpu:
            return int(torch.cuda.max_memory_allocated())
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Reporter(TrainerCallback):  # type: ignore[misc]
    """One of transformers' integrations. An error in it is logged and ends the reporting, never the training.

    Attributes:
        stopped: what was wrong and at which step; "" if nothing was.
    """

    def __init__(self, tracker: str, name: str) -> None:
        self.tracker, self.name, self.stopped = tracker, name, ""
        self.integration: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin a run of the tracker."""

        def begin() -> None:
            if self.tracker == "tensorboard":
                replay(state.log_history)
            if self.tracker == "wandb":
                stay_offline_without_a_key()
            [integration] = get_reporting_integration_callbacks([self.tracker])
            self.integration = integration()
            self.integration.on_train_begin(args, state, control, **more)

        self._try(state, begin)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        """Report one step."""
        self._try(state, lambda: self.integration.on_log(args, state, control, logs={**(logs or {})}, **more))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """End the run."""

        def end() -> None:
            self.integration.on_train_end(args, state, control, **more)
            if self.tracker == "wandb":  # else it would wait for its uploads when the process ends
                import wandb

                wandb.finish()

        self._try(state, end)

    def _try(self, state: Any, event: Callable[[], None]) -> None:
        if self.stopped:
            return
        try:
            event()
        except Exception as error:  # noqa: BLE001  # whatever a tracker raises, the training goes on
            said = f"at step {state.global_step}: {type(error).__name__}: {' '.join(str(error).split())}"
            self.stopped = without_secrets(said)[:_SHOWN]
            log.warning("nothing more is reported to %s, %s", self.tracker, self.stopped)


def stay_offline_without_a_key() -> None:
    """Have W&B write to disk if nobody is logged in here, instead of asking for a key. Raises what W&B raises."""
    import wandb

    if "WANDB_MODE" in os.environ or wandb.login(prompt=False):
        return
    os.environ["WANDB_MODE"] = "offline"
    wandb.teardown()  # it has read its settings
    log.warning(
        "W&B: nobody is logged in (WANDB_API_KEY, or `wandb login`), so the run is written to %s only: send it later "
        "with `wandb sync`",
        os.environ["WANDB_DIR"],
    )


def replay(history: list[dict[str, Any]]) -> None:
    """Write to TensorBoard's folder the steps up to the checkpoint that a training is resumed from."""
    from torch.utils.tensorboard import SummaryWriter

    if not history:
        return
    with SummaryWriter(log_dir=os.environ["TENSORBOARD_LOGGING_DIR"]) as writer:
        for entry in history:
            figures = {
                name: value for name, value in entry.items() if name != "step" and isinstance(value, int | float)
            }
            for name, value in rewrite_logs(figures).items():
                writer.add_scalar(name, value, entry["step"])


def callbacks(config: TrainingConfig, length: float) -> list[TrainerCallback]:
    """The callbacks of a training, to come before all others: `Speed` and, on rank 0, the trackers.

    Args:
        length: mean over tokens of the length of their sequences.
    """
    speed = Speed(length, bf16=bool(config.bf16))
    if torch.distributed.get_rank() != 0:
        return [speed]
    os.environ.update(environment(config))
    for folder in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR"):  # W&B and SQLite create none
        Path(os.environ[folder]).mkdir(parents=True, exist_ok=True)
    for path in Path(os.environ["TENSORBOARD_LOGGING_DIR"]).glob("events.out.tfevents*"):
        path.unlink()  # an earlier attempt's: see `replay`
    return [speed, *(Reporter(tracker, config.name) for tracker in dict.fromkeys(config.report_to))]


def stopped(trainer: Any) -> dict[str, str]:
    """The trackers of a trainer that failed, and why."""
    reporters = (each for each in trainer.callback_handler.callbacks if isinstance(each, Reporter))
    return {each.tracker: each.stopped for each in reporters if each.stopped}
