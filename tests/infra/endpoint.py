"""An HTTP server of this process, whose answers a test makes up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[int], tuple[int, Any] | tuple[int, Any, dict[str, str]]]


class Endpoint:
    """Answers what `reply` says to the n-th request, from 1: a status; JSON, or text and bytes as they are; headers.

    What was asked stands under n - 1 in `asked` (the JSON that was posted; of a GET none), `paths`, `keys` (the
    Authorization header) and `azure_keys` (the header `api-key`).
    """

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[Any] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.azure_keys: list[str | None] = []
        self.max_open = 0
        lock, outer, open_now = threading.Lock(), self, [0]

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                self.answer(None)

            def answer(self, body: Any) -> None:
                with lock:
                    outer.asked.append(body)
                    outer.paths.append(self.path)
                    outer.keys.append(self.headers["Authorization"])
                    outer.azure_keys.append(self.headers["api-key"])
                    number = len(outer.asked)
                    open_now[0] += 1
                    outer.max_open = max(open_now[0], outer.max_open)
                status, told, *more = outer.reply(number)
                with lock:
                    open_now[0] -= 1
                text = told if isinstance(told, str | bytes) else json.dumps(told)
                content = text.encode() if isinstance(text, str) else text
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in more[0].items() if more else ():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        class Http(ThreadingHTTPServer):
            request_queue_size = 128  # many connections at once: with the default of 5 some wait a second

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
