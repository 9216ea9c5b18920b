"""Progress of a long step: a bar in Prefect's UI and a log line once a minute, both from a separate thread."""

from __future__ import annotations

import contextvars
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

import pyarrow as pa

log = logging.getLogger(__name__)

BAR_S = 5.0  # between two updates of the bar
LINE_S = 60.0  # between two lines in the log
_LAST_WAIT_S = 2.0  # for the last update of the bar


@contextmanager
def progress(
    step: str,
    done: Callable[[], float],
    total: float | Callable[[], float],
    unit: str,
    *,
    detail: Callable[[], str] | None = None,
    bar_s: float = BAR_S,
) -> Iterator[None]:
    """Show the progress of the block: update a progress artifact every `bar_s` seconds, log a line every minute.

    Both give the number done out of `total`, the rate, the time left, and what `detail()` adds. The artifact belongs to
    the current task run. Outside of a task run there is neither, and a block that ends within `bar_s` seconds gets no
    artifact. An error here never reaches the block: it is logged.

    Args:
        done: how much is done, in `unit`s, including what was done before the block.
        total: how much there is to do; a function's result may be infinite for as long as that is not known.
        unit: what is counted, in the plural: "requests", "rows", "epochs".
    """
    from prefect.context import TaskRunContext

    if TaskRunContext.get() is None:
        yield
        return
    over, succeeded = threading.Event(), threading.Event()
    context = contextvars.copy_context()  # it holds the task run and the API's address
    gauge = Gauge(step, done, total if callable(total) else lambda: total, unit, detail)
    drawing = threading.Thread(
        target=context.run,
        args=(_draw, gauge, bar_s, over, succeeded),
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
    """The batches, with the progress of their consumer: a batch is done once the next one is requested."""
    done = 0
    with progress(step, lambda: done, rows, "rows"):
        for batch in batches:
            yield batch
            done += batch.num_rows


@dataclass
class Gauge:
    """The progress of a step as text and as a percentage."""

    step: str
    done: Callable[[], float]
    total: Callable[[], float]
    unit: str
    detail: Callable[[], str] | None = None
    began: float = field(default_factory=time.monotonic)
    before: float | None = None

    def percent(self) -> float:
        """From 0 to 100, with one decimal."""
        total = self.total()
        share = self.done() / total if total else 1.0
        return round(100 * min(1.0, max(0.0, share)), 1)

    def text(self) -> str:
        """Such as `responses: 12 of 40 requests, 1.5 per second, about 1 min left`, and the details."""
        done, total = self.done(), self.total()
        if total == math.inf:
            return f"{self.step}: starting"
        if self.before is None:
            self.before, self.began = done, time.monotonic()
        parts = [f"{_number(done)} of {_number(total)} {self.unit}"]
        made, seconds = done - self.before, time.monotonic() - self.began
        if made > 0 and seconds > 0:
            parts.append(f"{_number(made / seconds)} per second")
            parts.append(f"about {duration(seconds / made * max(0.0, total - done))} left")
        if self.detail and (more := self.detail()):
            parts.append(more)
        return f"{self.step}: {', '.join(parts)}"


def _draw(gauge: Gauge, bar_s: float, over: threading.Event, succeeded: threading.Event) -> None:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    bar: UUID | None = None
    logged = time.monotonic()
    try:
        gauge.text()  # the rate counts from here, unless `total` is not known yet
        while not (ended := over.wait(bar_s)) or bar is not None:
            percent = 100.0 if succeeded.is_set() else gauge.percent()
            if bar is None:
                key = artifact_key("progress", gauge.step)
                # Called from a thread without an event loop, so they are synchronous.
                bar = cast(UUID, create_progress_artifact(percent, key=key, description=gauge.text()))
            else:
                update_progress_artifact(bar, percent, gauge.text())
            if ended:
                return
            if time.monotonic() - logged >= LINE_S:
                log.info("%s", gauge.text())
                logged = time.monotonic()
    except Exception as error:  # noqa: BLE001  # no error may disturb the step
        log.warning("progress of %s is no longer shown: %s: %s", gauge.step, type(error).__name__, error)


def _number(value: float) -> str:
    """A number for people: an integer if it is large, else two significant digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A duration in whole minutes, at least one."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "1 min"


def artifact_key(kind: str, step: str) -> str:
    """The key of a step's artifact of a kind: lower-case letters, digits and dashes, as Prefect requires."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", step.lower()).strip("-")
