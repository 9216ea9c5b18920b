"""A training without a model's steps: `python reported.py CONFIG.json` reports three made-up steps to the trackers.

Prints what `infra.training.tracking.stopped` says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

from infra.training.config import SftConfig
from infra.training.trackers import PROJECT
from infra.training.tracking import callbacks, stopped

STEPS = 3


def main(config_path: Path) -> None:
    config = SftConfig.model_validate_json(config_path.read_text())
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    args = TrainingArguments(
        str(config.output), run_name=config.name, project=PROJECT, report_to="none", use_cpu=True, disable_tqdm=True
    )
    state, control = TrainerState(max_steps=STEPS, is_world_process_zero=True), TrainerControl()
    handler = CallbackHandler([DefaultFlowCallback(), *callbacks(config, 100)], model, None, None, None)
    handler.on_train_begin(args, state, control)
    for step in range(1, STEPS + 1):
        logs = {"loss": 1 / step, "learning_rate": 1e-3, "grad_norm": 0.5, "num_tokens": 1000.0 * step}
        state.global_step = step
        state.log_history.append({**logs, "step": step})
        handler.on_log(args, state, control, logs)
    handler.on_log(args, state, control, {"train_runtime": 1.0, "train_loss": 0.5})
    handler.on_train_end(args, state, control)
    torch.distributed.destroy_process_group()
    print(json.dumps(stopped(SimpleNamespace(callback_handler=handler))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
