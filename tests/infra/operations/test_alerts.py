"""Alerts against a real HTTP server; the URL appears nowhere, and a failure to post does not affect the run."""

from __future__ import annotations

import importlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed
from pydantic import ValidationError

from infra.operations import alerts
from infra.operations.alerts import PostError, alert, post
from infra.settings import Settings

TOKEN = "a-secret-of-the-webhook"  # noqa: S105


class Hook:
    """A webhook that answers with each of `statuses` in turn, then with 204."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(outer.statuses.pop(0) if outer.statuses else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/{TOKEN}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Hook]:
    found = Hook()
    monkeypatch.setattr(alerts, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setenv("BOLT_WEBHOOK_URL", found.url)
    with caplog.at_level(logging.DEBUG):
        yield found
    found.http.shutdown()
    assert TOKEN not in caplog.text


@flow(name="bolt")
def some_flow() -> None: ...


RUN = FlowRun(id=uuid4(), flow_id=uuid4(), name="nimble-otter")


def ended() -> None:
    alert(some_flow, RUN, Failed(message="ServerError: it died | <b>"))


def test_the_end_of_a_run_is_posted(hook):
    ended()
    (body,) = hook.bodies
    assert body["text"] == "bolt nimble-otter: Failed: ServerError: it died | <b>"
    assert (body["flow"], body["run"], body["run_id"]) == ("bolt", "nimble-otter", str(RUN.id))
    assert (body["state"], body["state_type"], body["deployment_id"]) == ("Failed", "FAILED", None)


@pytest.mark.parametrize(("statuses", "posts"), [([503, 429], 3), ([500] * 9, 4), ([404], 1), ([302], 1)])
def test_only_outages_are_retried_and_not_forever(hook, caplog, statuses, posts):
    hook.statuses = list(statuses)
    ended()
    assert len(hook.bodies) == posts
    lasted = posts != len(statuses) + 1
    assert (f"no alert on the end of nimble-otter: the webhook answered {statuses[0]}" in caplog.text) == lasted


def test_an_unreachable_webhook_is_logged_without_its_url(hook, caplog, monkeypatch):
    monkeypatch.setenv("BOLT_WEBHOOK_URL", f"http://127.0.0.1:9/{TOKEN}")
    ended()
    assert "no alert on the end of nimble-otter: the webhook cannot be reached (ConnectError)" in caplog.text


@pytest.mark.parametrize("url", [f"http://127.0.0.1:99999/{TOKEN}", f"ftp://host/{TOKEN}", f"http://a\x00b/{TOKEN}"])
def test_an_invalid_address_is_an_error_that_does_not_contain_it(hook, url):
    with pytest.raises(PostError) as error:
        post(url, {})
    assert TOKEN not in str(error.value)


def test_without_a_webhook_nothing_is_posted(hook, monkeypatch):
    monkeypatch.delenv("BOLT_WEBHOOK_URL")
    ended()
    assert hook.bodies == []


def test_bad_settings_do_not_affect_the_run(hook, caplog, monkeypatch):
    monkeypatch.setenv("BOLT_STORE", "gs://bucket")
    ended()
    assert "no alert on the end of nimble-otter" in caplog.text


def test_the_url_is_a_secret_of_the_settings():
    settings = Settings(webhook_url=f"https://host/{TOKEN}")
    assert TOKEN not in f"{settings!r} {settings.model_dump_json()}"
    with pytest.raises(ValidationError, match="must look like https://host/path") as error:
        Settings(webhook_url=f"host/{TOKEN}")
    assert TOKEN not in str(error.value)


def test_every_flow_posts_every_end():
    """Every flow in prefect.yaml."""
    entries = yaml.safe_load((Path(__file__).parents[3] / "prefect.yaml").read_text())["deployments"]
    places = {each["entrypoint"].removesuffix(".py").replace("/", ".").replace(".py:", ":") for each in entries}
    assert len(places) == 14
    for module, _, name in (place.partition(":") for place in places):
        each = getattr(importlib.import_module(module), name)
        assert each.on_completion_hooks == each.on_failure_hooks == each.on_crashed_hooks == [alert]
