"""Alerts: how a flow run ended, posted as JSON to the webhook that `BOLT_WEBHOOK_URL` names.

The URL is a secret: it reaches no log, not even httpx's own lines. An alert that can't be posted is told in the log and
changes nothing of the run.
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
    """The webhook did not take an alert; the text never holds its URL."""


class _AgainError(PostError):
    """Another attempt may do: an outage, or the receiver is busy."""


def alert(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A state-change hook of every flow: post how the run ended. Without a webhook, nothing is done."""
    try:
        url = Settings.load().webhook_url
        if url is not None:
            post(url.get_secret_value(), content(flow, flow_run, state))
    except (PostError, ValueError) as error:  # ValueError: bad settings, whose values are never shown
        log.warning("no alert on the end of %s: %s", flow_run.name, error)


def content(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> dict[str, Any]:
    """What is posted. `text` is the whole in one line, which chat services show."""
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
    """Post JSON, at most `ATTEMPTS` times, `TIMEOUT_S` seconds each; only outages are tried again.

    Raises:
        PostError: it was refused, or the outage lasted.
    """
    attempts = Retrying(
        retry=retry_if_exception_type(_AgainError),
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
        raise _AgainError(f"the webhook cannot be reached ({type(error).__name__})") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PostError(f"the webhook cannot be used ({type(error).__name__})") from None
    if status == 429 or status >= 500:
        raise _AgainError(f"the webhook answered {status}")
    if status >= 300:
        raise PostError(f"the webhook answered {status}")


@contextmanager
def _unlogged(url: str) -> Iterator[None]:
    """Drop the lines in which httpx tells the URL that it asks."""

    def keep(record: logging.LogRecord) -> bool:
        return url not in record.getMessage()

    logger = logging.getLogger("httpx")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
