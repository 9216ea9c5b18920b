"""Progress of a long step: a bar in Prefect's UI, drawn by a thread of its own that cannot hold the step up."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

import pyarrow as pa

log = logging.getLogger(__name__)

EVERY_S = 5.0
_LAST_WAIT_S = 2.0  # for the bar's last drawing


@contextmanager
def progress(
    step: str, done: Callable[[], float], *, told: Callable[[], str] | None = None, every_s: float = EVERY_S
) -> Iterator[None]:
    """While the block runs, show `done()`, a share from 0 to 1, every `every_s` seconds as a progress artifact.

    Beside the step's name the artifact tells what `told()` says at that moment.

    The artifact belongs to the task run that we are in; outside of one, and for a block that is over before the first
    `every_s` seconds are, there is none. Nothing that goes wrong here reaches the block: it is told in the log.
    """
    from prefect.context import TaskRunContext

    if TaskRunContext.get() is None:
        yield
        return
    over, succeeded = threading.Event(), threading.Event()
    context = contextvars.copy_context()  # it holds the task run and the API's address
    drawing = threading.Thread(
        target=context.run,
        args=(_draw, step, done, told, every_s, over, succeeded),
        daemon=True,
        name=f"progress {step}",
    )
    drawing.start()
    try:
        yield
        succeeded.set()
    finally:
        over.set()
        drawing.join(_LAST_WAIT_S)


def counted(step: str, batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches, with the progress of whoever takes them: of all `rows` those of the batches that are done with."""
    done = 0
    with progress(step, lambda: done / rows if rows else 1.0):
        for batch in batches:
            yield batch
            done += batch.num_rows


def _draw(
    step: str,
    done: Callable[[], float],
    told: Callable[[], str] | None,
    every_s: float,
    over: threading.Event,
    succeeded: threading.Event,
) -> None:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    def description() -> str:
        return f"{step}: {told()}" if told else step

    try:
        if over.wait(every_s):
            return
        # A step is no coroutine, so these are none either.
        key, text = artifact_key(step), description()
        bar = cast(UUID, create_progress_artifact(_percent(done()), key=key, description=text))
        while not over.wait(every_s):
            update_progress_artifact(bar, _percent(done()), description())
        update_progress_artifact(bar, 100.0 if succeeded.is_set() else _percent(done()), description())
    except Exception as error:  # noqa: BLE001  # whatever it is, it must not disturb the step
        log.warning("no more progress of %s is shown: %s: %s", step, type(error).__name__, error)


def _percent(share: float) -> float:
    return round(100 * min(1.0, max(0.0, share)), 1)


def artifact_key(step: str) -> str:
    """The key of a step's progress artifact: what Prefect takes, lower-case letters, digits and dashes."""
    return "progress-" + re.sub(r"[^a-z0-9]+", "-", step.lower()).strip("-")
