"""What every process of a run on a Ray cluster does first, on whatever node Ray starts it."""

from __future__ import annotations

import logging
from typing import Any

from infra.processes.openmp import keep_unset

LOGGERS = ("flows", "infra", "tasks")


def environment() -> dict[str, Any]:
    """Ray's runtime environment of a run: the log lines of steps reach Prefect, as on one machine."""
    from prefect.settings import PREFECT_LOGGING_LEVEL

    variables = {
        "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(LOGGERS),
        "PREFECT_LOGGING_LEVEL": str(PREFECT_LOGGING_LEVEL.value()),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # the fleet and its servers are in no task
    }
    return {"env_vars": variables, "worker_process_setup_hook": f"{__name__}.begin"}


def begin() -> None:
    """Give the project's loggers Prefect's handlers and level, and trainers and servers all of the node's cores."""
    from prefect.logging.configuration import setup_logging
    from prefect.settings import PREFECT_LOGGING_LEVEL

    keep_unset()
    setup_logging()
    for name in LOGGERS:
        logging.getLogger(name).setLevel(PREFECT_LOGGING_LEVEL.value())
