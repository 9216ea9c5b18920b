"""A trainer that writes checkpoints and goes on from one.

DeepSpeed writes and reads its own files. This module decides when, survives a full disk, and writes the manifest last.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_pt_utils import get_model_param_count

from infra.store.manifest import Part
from infra.training.checkpoints import (
    Checkpoint,
    candidates,
    checkpoint_name,
    checkpoints_folder,
    described,
    finish,
    prune,
    read,
    remove,
)
from infra.training.config import TrainingConfig

log = logging.getLogger(__name__)

# The only classes beside tensors and plain containers that DeepSpeed's files may hold, since ranks run with
# TORCH_FORCE_WEIGHTS_ONLY_LOAD (infra/processes/torchrun.py).
torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])

ROOM = 1.1
"""Free disk space that a checkpoint needs, as a multiple of its expected size."""
BYTES_PER_PARAMETER = 16
"""Expected size of the first checkpoint: float32 weights and the two moments of AdamW, and the weights as they are."""
WRITE_ERRORS = (OSError, RuntimeError)  # torch.save raises RuntimeError where a file cannot be written to its end


class CheckpointFiles(TorchCheckpointEngine):  # type: ignore[misc]
    """Writes DeepSpeed's files of this rank. An error is kept for later, since the other ranks wait for this one."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.saved: list[Path] = []
        self.problem: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file, unless writing has failed before."""
        if self.problem is None:
            try:
                super().save(state_dict, path)
                self.saved.append(Path(path))
            except WRITE_ERRORS as error:
                self.problem = error


class CheckpointTimer(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint every `minutes`, by the clock of rank 0, but not after the last step."""

    def __init__(self, minutes: float) -> None:
        self.seconds, self.last = 60 * minutes, time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decide together with the other ranks."""
        due = torch.tensor([time.monotonic() - self.last >= self.seconds], dtype=torch.int32, device=args.device)
        torch.distributed.broadcast(due, 0)
        if due.item() and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count from the end of a checkpoint."""
        self.last = time.monotonic()


class Resumable(Trainer):  # type: ignore[misc]
    """What a TRL trainer inherits first, so that it writes checkpoints and goes on from one."""

    def prepare_resuming(self, config: TrainingConfig, settings: dict[str, Any]) -> None:
        """Set what is to be checkpointed. `settings` are those of `infra.training.checkpoints.Checkpoint`."""
        self.folder, self.settings = checkpoints_folder(config.output), settings
        before = read(config.resume) if config.resume else None  # it is deleted once two later ones are whole
        self.resumed_at: int | None = before.step if before else None
        self.seconds_before = before.seconds if before else 0.0
        self.began = time.monotonic()
        self.add_callback(CheckpointTimer(config.checkpoint_minutes))

    def seconds(self) -> float:
        """Seconds of this training so far, with those before it was resumed."""
        return self.seconds_before + time.monotonic() - self.began

    def _load_callback_state(self) -> None:
        """Go on counting tokens as well: TRL does not. The checkpoint's log has just been read."""
        super()._load_callback_state()
        self._total_train_tokens = self.state.log_history[-1]["num_tokens"]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, on all ranks. If that fails (the disk is full), training goes on without it."""
        target = self.folder / checkpoint_name(self.state.global_step)
        mine: list[Path] = []
        parts: list[Part] = []
        every_part: list[list[Part]] = [[] for _ in range(self.args.world_size)]

        def describe() -> None:
            parts.extend(described(target, path.relative_to(target).as_posix()) for path in mine)

        def complete() -> None:
            torch.distributed.all_gather_object(every_part, parts)
            if self.is_world_process_zero():
                self._complete(target, [part for each in every_part for part in each])

        stages: tuple[Callable[[], None], ...] = (
            lambda: self._make_room(target),
            lambda: mine.extend(self._write(target)),
            describe,
            complete,
        )
        for stage in stages:
            problem: Exception | None = None
            try:
                stage()
            except WRITE_ERRORS as error:
                problem = error
                log.warning(
                    "no checkpoint at step %d, %s; the training goes on: %s",
                    self.state.global_step,
                    self._last_good(target),
                    error,
                )
            failed = torch.tensor([problem is not None], dtype=torch.int32, device=self.args.device)
            torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX)
            if failed.item():
                if self.is_world_process_zero():
                    remove(target)
                torch.distributed.barrier()
                return

    def _make_room(self, target: Path) -> None:
        """Create the folder if the checkpoint will probably fit. Raises `OSError`."""
        if not self.is_world_process_zero():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        remove(target)  # what a killed process left
        last = candidates(self.folder)[:1]
        size = (
            sum(file.bytes for file in read(last[0]).files)
            if last
            else BYTES_PER_PARAMETER * get_model_param_count(self.model)
        )
        free = shutil.disk_usage(self.folder).free
        if free < ROOM * size:
            raise OSError(f"{size / 1e9:.2g} GB are needed in {self.folder}, {free / 1e9:.2g} GB are free")
        (target / self._tag()).mkdir(parents=True)

    def _tag(self) -> str:
        """DeepSpeed's own folder in a checkpoint."""
        return f"global_step{self.model_wrapped.global_steps}"

    def _write(self, target: Path) -> list[Path]:
        """Write this rank's files. Returns their paths. Raises `OSError` or `RuntimeError`, but not between ranks."""
        engine, rank = self.model_wrapped, self.args.process_index
        engine.checkpoint_engine = files = CheckpointFiles(engine._config)
        engine._copy_recovery_script = lambda _: None  # a script that reads the files with pickle
        engine.save_checkpoint(str(target), save_latest=False)
        if files.problem:
            raise files.problem
        self._save_rng_state(str(target))
        random = "rng_state.pth" if self.args.world_size == 1 else f"rng_state_{rank}.pth"
        written = [*files.saved, target / random]
        if self.is_world_process_zero():
            torch.save(self.lr_scheduler.state_dict(), target / "scheduler.pt")
            self.state.save_to_json(str(target / "trainer_state.json"))
            (target / "latest").write_text(self._tag())
            written += [target / name for name in ("scheduler.pt", "trainer_state.json", "latest")]
        return written

    def _complete(self, target: Path, files: list[Part]) -> None:
        """Write the manifest, on rank 0, and delete older checkpoints."""
        finish(
            target,
            Checkpoint(
                step=self.state.global_step,
                steps=self.state.max_steps,
                seconds=self.seconds(),
                settings=self.settings,
                files=tuple(files),
            ),
        )
        prune(self.folder)
        log.info("checkpoint at step %d of %d: %s", self.state.global_step, self.state.max_steps, target)

    def _last_good(self, target: Path) -> str:
        last = [folder for folder in candidates(self.folder) if folder != target][:1]
        return f"the last one is that of step {read(last[0]).step}" if last else "and there is none before it"
