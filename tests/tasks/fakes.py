"""A stand-in for vLLM that speaks its HTTP forms, and one for `infra.servers.Servers` that hands it out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from infra.manifest import Ref
from infra.pool import Pool
from infra.vllm_server import ServerError, ServerOptions

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class FakeVllm:
    """Answers POST requests by path and keeps what it was asked. `dies_after`: requests until it counts as dead.

    An answer's `status` is the HTTP status; none is 200. `keys`: the Authorization header of each request.
    """

    served_name = "fake"
    headers: Mapping[str, str] = {}

    def __init__(self, **answers: Answer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.dies_after: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.keys.append(self.headers["Authorization"])
                answer = answers[self.path.rsplit("/", 1)[-1]](body)
                text = json.dumps(answer).encode()
                self.send_response(answer.get("status", 200))
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None: ...

        class Http(ThreadingHTTPServer):
            request_queue_size = 128  # many connections at once: with the default of 5 some wait a second

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def check(self) -> None:
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise ServerError("the server died")

    def stop(self) -> None: ...

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class TinyServers:
    """The part of `Servers` that steps use."""

    def __init__(self, work_dir: Path, server: FakeVllm | None = None) -> None:
        self.work_dir, self._server = work_dir, server
        self.started: list[Ref] = []

    def generation(self, model: Ref) -> FakeVllm:
        assert self._server is not None, "a step asked for a server without need"
        self.started.append(model)
        return self._server

    reward = generation

    def scorer(self) -> ServerOptions:
        return ServerOptions(max_model_len=128, dtype="float32")

    def policies(self, model: Ref) -> Pool:
        return Pool([self.generation(model)])


def completions(texts: Callable[[int], tuple[str, str]]) -> Answer:
    """vLLM's /v1/completions: sample number i is `texts(i)`, a text and its finish reason."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for index in range(body["n"]):
            text, reason = texts(index)
            choices.append(
                {"index": index, "text": text, "finish_reason": reason, "token_ids": list(range(len(text.split()) + 1))}
            )
        return {"choices": choices[::-1], "usage": {"prompt_tokens": len(body["prompt"])}}

    return answer


def chats(text: Callable[[str], str]) -> Answer:
    """OpenAI's /v1/chat/completions: `text` of the first turn of the user. Tokens: characters asked, and answered."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        said = text(next(message["content"] for message in body["messages"] if message["role"] == "user"))
        shown = "".join(message["content"] for message in body["messages"])
        usage = {"prompt_tokens": len(shown), "completion_tokens": len(said)}
        return {"choices": [{"message": {"content": said}, "finish_reason": "stop"}], "usage": usage}

    return answer


def classifications(reward: Callable[[list[int]], float]) -> Answer:
    """vLLM's /classify for a one-label model."""
    return lambda body: {"data": [{"index": i, "probs": [reward(ids)]} for i, ids in enumerate(body["input"])]}
