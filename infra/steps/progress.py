"""Progress of a long step: a bar in Prefect's UI and a line in the log once a minute, from a thread of its own."""

from __future__ import annotations

import contextvars
import logging
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
    total: float,
    unit: str,
    *,
    detail: Callable[[], str] | None = None,
    bar_s: float = BAR_S,
    line_s: float = LINE_S,
) -> Iterator[None]:
    """While the block runs, show how far it is: a progress artifact every `bar_s` seconds, a log line every `line_s`.

    Both say how many of `total` are done, how many a second, the time left, and what `detail()` adds. The artifact
    belongs to the task run that we are in. Outside of one there is neither, and no artifact for a block that ends
    within the first `bar_s` seconds. Nothing that goes wrong here reaches the block: it is reported in the log.

    Args:
        done: how much is done, in `unit`s, what was done before the block included.
        total: how much there is to do.
        unit: what is counted, in the plural: "requests", "rows", "epochs".
    """
    from prefect.context import TaskRunContext

    if TaskRunContext.get() is None:
        yield
        return
    over, succeeded = threading.Event(), threading.Event()
    context = contextvars.copy_context()  # it holds the task run and the API's address
    told = Gauge(step, done, total, unit, detail)
    drawing = threading.Thread(
        target=context.run,
        args=(_draw, told, bar_s, line_s, over, succeeded),
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
    with progress(step, lambda: done, rows, "rows"):
        for batch in batches:
            yield batch
            done += batch.num_rows


@dataclass
class Gauge:
    """How far a step is, in words and in per cent."""

    step: str
    done: Callable[[], float]
    total: float
    unit: str
    detail: Callable[[], str] | None = None
    began: float = field(default_factory=time.monotonic)
    before: float | None = None

    def percent(self) -> float:
        """From 0 to 100, with one decimal."""
        share = self.done() / self.total if self.total else 1.0
        return round(100 * min(1.0, max(0.0, share)), 1)

    def text(self) -> str:
        """`12 of 40 requests, 1.5 a second, 1 min left`, and the details."""
        done, seconds = self.done(), time.monotonic() - self.began
        if self.before is None:
            self.before = done
        parts = [f"{_number(done)} of {_number(self.total)} {self.unit}"]
        made = done - self.before
        if made > 0 and seconds > 0:
            parts.append(f"{_number(made / seconds)} a second")
            parts.append(f"about {duration(seconds / made * max(0.0, self.total - done))} left")
        if self.detail:
            parts.append(self.detail())
        return f"{self.step}: {', '.join(parts)}"


def _draw(gauge: Gauge, bar_s: float, line_s: float, over: threading.Event, succeeded: threading.Event) -> None:
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    bar: UUID | None = None
    logged = time.monotonic()
    try:
        gauge.text()  # notes what was done before
        while not (ended := over.wait(bar_s)) or bar is not None:
            percent = 100.0 if succeeded.is_set() else gauge.percent()
            if bar is None:
                # A step is no coroutine, so these are none either.
                made = create_progress_artifact(percent, key=artifact_key(gauge.step), description=gauge.text())
                bar = cast(UUID, made)
            else:
                update_progress_artifact(bar, percent, gauge.text())
            if ended:
                return
            if time.monotonic() - logged >= line_s:
                log.info("%s", gauge.text())
                logged = time.monotonic()
    except Exception as error:  # noqa: BLE001  # whatever it is, it must not disturb the step
        log.warning("progress of %s is no longer shown: %s: %s", gauge.step, type(error).__name__, error)


def _number(value: float) -> str:
    """A figure for people: whole where it is large, else with two significant digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time in whole minutes, at least one."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "1 min"


def artifact_key(step: str) -> str:
    """The key of a step's progress artifact: what Prefect takes, lower-case letters, digits and dashes."""
    return "progress-" + re.sub(r"[^a-z0-9]+", "-", step.lower()).strip("-")
