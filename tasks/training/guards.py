"""Shows in Prefect's UI what a guard stopped a training for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from infra.processes.torchrun import TrainerError
from infra.steps.progress import artifact_key
from infra.training.config import TrainingConfig
from infra.training.limits import TITLES, guards_path


@contextmanager
def stop_shown(step: str, config: TrainingConfig) -> Iterator[None]:
    """If a guard stops the training in the block, its figures become the table artifact `guards-STEP` in Prefect.

    The error of the block is raised as it is. Outside of a task run there is no artifact.
    """
    left = guards_path(config.output)
    left.unlink(missing_ok=True)
    try:
        yield
    except TrainerError:
        if left.exists():
            _publish(step, config, json.loads(left.read_text()))
        raise


def _publish(step: str, config: TrainingConfig, figures: dict[str, float]) -> None:
    from prefect.artifacts import create_table_artifact
    from prefect.context import TaskRunContext

    if TaskRunContext.get() is None:
        return
    limits = config.guards.model_dump()
    rows = [
        {"guard": TITLES[field], "value": value, "limit": limits[field], "setting": f"guards.{field}"}
        for field, value in figures.items()
    ]
    create_table_artifact(
        rows, key=artifact_key("guards", step), description=f"{step} was stopped: a figure is over its limit"
    )
