"""A server for tests of the pool, which a request can kill."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infra.serving.vllm_server import ServerError


class Stub:
    """A server that answers until one of the requests `killers` kills it, or until `dies_after` requests.

    Once dead, it breaks every connection. Until `gate` is set, it answers nothing. It refuses the requests `refused`
    with the status `refusal`. `killed`: its death is that of a server that a signal ended.
    """

    served_name = "m"
    headers: Mapping[str, str] = {"Authorization": "Bearer word"}

    def __init__(
        self,
        *killers: str,
        dies_after: int | None = None,
        gate: threading.Event | None = None,
        refused: frozenset[str] = frozenset(),
        refusal: int = 400,
        killed: bool = False,
    ) -> None:
        self.received: list[str] = []
        self.sizes: list[int] = []
        self.dead, self.stopped, self.killed = False, False, killed
        self.open = self.max_open = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = self.headers["X-Request-Id"]
                with lock:
                    assert self.headers["Authorization"] == "Bearer word"
                    outer.received.append(name)
                    outer.open += 1
                    outer.max_open = max(outer.open, outer.max_open)
                    if name in killers or (dies_after is not None and len(outer.received) > dies_after):
                        outer.dead = True
                if gate is not None:
                    gate.wait(10)
                with lock:
                    outer.open -= 1
                if outer.dead:
                    self.close_connection = True
                    return
                if name in refused:
                    self.send_error(refusal, "the prompt has 9000 tokens, the model's maximum is 8192")
                    return
                prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
                outer.sizes.append(len(prompts))
                choices = [
                    {"index": place, "text": str(prompt[0]), "finish_reason": "stop", "token_ids": [1]}
                    for place, prompt in enumerate(prompts)
                ]
                text = json.dumps({"choices": choices}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None: ...

        class Http(ThreadingHTTPServer):
            request_queue_size = 128

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def check(self) -> None:
        if self.dead:
            error = ServerError("ended with status 137")
            error.killed = self.killed
            raise error

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    """Starts fake servers, which all end with the test."""
    made: list[Stub] = []

    def start(*killers: str, **more: Any) -> Stub:
        made.append(Stub(*killers, **more))
        return made[-1]

    yield start
    for server in made:
        server.close()
