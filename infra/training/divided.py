"""Trainers whose optimiser steps are divided into micro-batches by `infra.training.batches`."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from infra.training.batches import Batches, Layout, Sampler, pack_count
from infra.training.config import SftConfig, TrainingConfig
from infra.training.liger import Switch
from infra.training.resumable import Resumable
from infra.training.switches import told
from infra.training.trainer import LENGTH, ranks

log = logging.getLogger(__name__)


class Divided(Resumable):
    """What a TRL trainer inherits first, so that its steps are divided as `batches` says, and can be resumed."""

    batches: Batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The micro-batches of an epoch, those of this rank."""
        rows = self._remove_unused_columns(self.train_dataset, description="training")
        sampler, pin = Sampler(self.batches, lambda: self.state.global_step), self.args.dataloader_pin_memory
        loader = DataLoader(rows, batch_sampler=sampler, collate_fn=self.data_collator, pin_memory=pin)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared


def batches_of(config: TrainingConfig, rows: Dataset, found: dict[str, Switch]) -> Batches:
    """How the training's steps are divided into micro-batches. `config`, `found`: from `infra.training.switches`."""
    lengths, count = np.array(rows[LENGTH]), config.accumulation(ranks()) * ranks()
    layout: Layout = "equal" if found["length groups"].on else "random"
    if isinstance(config, SftConfig) and config.packing:
        layout, room, epochs = "packed", config.micro_batch * config.max_length, math.ceil(config.epochs)
        count = pack_count(lengths, config.batch, ranks(), room, epochs=epochs, seed=config.seed)
    elif isinstance(config, SftConfig):
        layout = "grouped"
    if torch.distributed.get_rank() == 0:
        log.info("used here: %s", told(found))
    return Batches(lengths, config.batch, count, ranks(), layout, config.seed)


def figures(batches: Batches) -> dict[str, Any]:
    """How the steps are divided, for the report; `fill` is the share of computed tokens that are no padding."""
    return {
        "layout": batches.layout,
        "micro_batches_per_step": batches.micro_batches,
        "rows_per_step": round(len(batches.lengths) / batches.steps, 2),
        "repeated": batches.repeated,
        "fill": round(int(batches.lengths.sum()) / batches.computed(), 4),
    }
