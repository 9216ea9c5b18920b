"""Alerts: post the end of each flow run as JSON to the webhook at `BOLT_WEBHOOK_URL`.

The URL is a secret: it reaches no log, not even httpx's own lines. A failure to post is logged and does not affect the
run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from infra.settings import Settings

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun, State

log = logging.getLogger(__name__)

ATTEMPTS = 4
TIMEOUT_S = 10.0  # for each attempt
LONGEST_WAIT_S = 8.0  # between two attempts


class PostError(RuntimeError):
    """The webhook did not accept an alert; the text never contains its URL."""


class _TransientError(PostError):
    """Worth another attempt: an outage, or the receiver is busy."""


def alert(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State-change hook of every flow: post how the run ended. Does nothing if no webhook is set."""
    try:
        url = Settings.load().webhook_url
        if url is not None:
            post(url.get_secret_value(), content(flow, flow_run, state))
    except (PostError, ValueError) as error:  # ValueError: invalid settings, whose values are never shown
        log.warning("no alert on the end of %s: %s", flow_run.name, error)


def content(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> dict[str, Any]:
    """The JSON to post. `text` has everything in one line, which chat services display."""
    return {
        "text": f"{flow.name} {flow_run.name}: {state.name}" + (f": {state.message}" if state.message else ""),
        "flow": flow.name,
        "run": flow_run.name,
        "run_id": str(flow_run.id),
        "deployment_id": str(flow_run.deployment_id) if flow_run.deployment_id else None,
        "state": state.name,
        "state_type": state.type.value,
        "message": state.message,
        "at": state.timestamp.isoformat(),
    }


def post(url: str, body: dict[str, Any]) -> None:
    """Post JSON, with at most `ATTEMPTS` attempts of `TIMEOUT_S` seconds each. Only outages are retried.

    Raises:
        PostError: the webhook refused the alert, or the outage lasted.
    """
    attempts = Retrying(
        retry=retry_if_exception_type(_TransientError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(max=LONGEST_WAIT_S),
        reraise=True,
    )
    attempts(_post_once, url, body)


def _post_once(url: str, body: dict[str, Any]) -> None:
    try:
        with _unlogged(str(httpx.URL(url))):
            status = httpx.post(url, json=body, timeout=TIMEOUT_S).status_code
    except httpx.TransportError as error:
        raise _TransientError(f"the webhook cannot be reached ({type(error).__name__})") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PostError(f"the webhook cannot be used ({type(error).__name__})") from None
    if status == 429 or status >= 500:
        raise _TransientError(f"the webhook answered {status}")
    if status >= 300:
        raise PostError(f"the webhook answered {status}")


@contextmanager
def _unlogged(url: str) -> Iterator[None]:
    """Drop the log lines in which httpx shows the URL of a request."""

    def keep(record: logging.LogRecord) -> bool:
        return url not in record.getMessage()

    logger = logging.getLogger("httpx")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
