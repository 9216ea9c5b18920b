"""What the terminal shows of an error: one paragraph, once. A log file has everything, with the traces.

Prefect repeats the text of an error in a line for each failed task run and twice for the flow run, and its trace in two
of them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from infra.errors import BadInput
from infra.processes.causes import LAST_LINES

LONGEST = 1500  # characters of an error that are shown, unless it is the user's to correct
_REPEATED = re.compile(r"(Finished in state (?:Failed|Crashed))\(.*", re.DOTALL)
_EXCEPTION = re.compile(r"(Encountered exception during execution): .*", re.DOTALL)
_RETRY = re.compile(r"(?<=failed with exception: )(.*)(?= - Retr(?:y|ies) )", re.DOTALL)


def paragraph(error: BaseException) -> str:
    """An error in one paragraph: without the end of a process's log, whose path it names."""
    if isinstance(error, BadInput):
        return str(error)
    return _shortened(f"{type(error).__name__}: {error}")


class ForScreen(logging.Formatter):
    """Another formatter's lines, without traces and ends of logs, and without repetitions of the flow run's error.

    `told`: the flow run's error is shown at the end anyway, so that Prefect's line need not show it.
    """

    def __init__(self, inner: logging.Formatter, *, told: bool) -> None:
        super().__init__()
        self.inner, self.told = inner, told

    def format(self, record: logging.LogRecord) -> str:
        text = _REPEATED.sub(r"\1", record.getMessage())
        text = _RETRY.sub(lambda found: _shortened(found[1]), text)
        text = _EXCEPTION.sub(r"\1", text) if self.told else _shortened(text)
        changed = {"msg": text.partition(LAST_LINES)[0], "args": None, "exc_info": None, "exc_text": None}
        return self.inner.format(logging.makeLogRecord({**vars(record), **changed}))


def _shortened(text: str) -> str:
    text = text.partition(LAST_LINES)[0]
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def show_own_logs() -> None:
    """Let the log lines of this project through, the progress of long steps among them.

    Prefect gives the loggers in PREFECT_LOGGING_EXTRA_LOGGERS its handlers, but no level: they would inherit WARNING.
    """
    from prefect.settings import PREFECT_LOGGING_LEVEL

    for package in ("flows", "infra", "tasks"):
        logger = logging.getLogger(package)
        if logger.level == logging.NOTSET:
            logger.setLevel(PREFECT_LOGGING_LEVEL.value())


@contextmanager
def logged(*, debug: bool = False, told: bool = True) -> Iterator[Path]:
    """Keep all log lines, with the traces of errors, in a file, whose path it gives. The screen gets no traces unless
    `debug`. For `told` see `ForScreen`. Raises `BadInput` if there can be no such file."""
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "infra,tasks,flows")
    from prefect.logging.configuration import setup_logging

    setup_logging()
    given = os.environ.get("BOLT_WORK_DIR") or ".bolt"
    try:
        folder = Path(given).expanduser() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"flows-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"
        file = logging.FileHandler(path, encoding="utf-8")
    except (OSError, RuntimeError) as error:
        raise BadInput(f"BOLT_WORK_DIR: no logs can be kept in {given} ({error}): name a folder to write to") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    formatters = {handler: handler.formatter for handler in root.handlers if handler.formatter and not debug}
    for handler, formatter in formatters.items():
        handler.setFormatter(ForScreen(formatter, told=told))
    root.addHandler(file)
    try:
        yield path
    finally:
        root.removeHandler(file)
        for handler, formatter in formatters.items():
            handler.setFormatter(formatter)
        file.close()


@cache
def log_on_worker() -> None:
    """The same for the process that a worker starts for one flow run, until it ends. Elsewhere it does nothing."""
    if os.environ.get("PREFECT__FLOW_RUN_ID"):
        path = _UNTIL_THE_END.enter_context(logged(told=False))
        logging.getLogger("prefect.flows").info("log, with the traces of errors: %s", path)


_UNTIL_THE_END = ExitStack()
