"""A fake vLLM server that speaks its HTTP API, and a fake `infra.serving.servers.Servers` that hands it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from endpoint import Endpoint

from infra.serving.pool import Pool
from infra.serving.vllm_server import ServerError, ServerOptions
from infra.store.manifest import Ref

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class FakeVllm(Endpoint):
    """Answers by path, and keeps the requests. `dies_after`: the number of requests after which it counts as dead.

    If an answer has a field `status`, it is the HTTP status. Other paths, such as /metrics, are answered with 404.
    """

    served_name = "fake"
    headers: Mapping[str, str] = {}

    def __init__(self, **answers: Answer) -> None:
        self.dies_after: int | None = None

        def reply(number: int) -> tuple[int, Any]:
            answer = answers.get(self.paths[number - 1].rsplit("/", 1)[-1])
            found = each_prompt(answer, self.asked[number - 1]) if answer else {"status": 404}
            return found.get("status", 200), found

        super().__init__(reply)

    def check(self) -> None:
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise ServerError("the server died")

    def stop(self) -> None: ...


def each_prompt(answer: Answer, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request of one prompt, or of several: then the choices of all, or the first failure."""
    prompts = body.get("prompt")
    if not (isinstance(prompts, list) and prompts and isinstance(prompts[0], list)):
        return answer(body)
    choices: list[dict[str, Any]] = []
    for prompt in prompts:
        found = answer({**body, "prompt": prompt})
        if "status" in found:
            return found
        choices += [{**each, "index": len(choices) + each["index"]} for each in found["choices"]]
    return {"choices": choices}


class TinyServers:
    """The part of `Servers` that steps use."""

    def __init__(self, work_dir: Path, server: FakeVllm | None = None) -> None:
        self.work_dir, self._server = work_dir, server
        self.started: list[Ref] = []

    def generation(self, model: Ref) -> FakeVllm:
        assert self._server is not None, "a step asked for a server that it does not need"
        self.started.append(model)
        return self._server

    reward = generation

    def scorer(self) -> ServerOptions:
        return ServerOptions(max_model_len=128, dtype="float32")

    def options(self, _role: str) -> ServerOptions:
        return self.scorer()

    def judges(self, model: Ref) -> Pool:
        return self.policies(model)

    def policies(self, model: Ref) -> Pool:
        return Pool([self.generation(model)])


def completions(texts: Callable[[int], tuple[str, str]]) -> Answer:
    """vLLM's /v1/completions: sample i is `texts(i)`, a text and its finish reason."""

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
    """OpenAI's /v1/chat/completions: replies with `text` of the first user turn. A token is a character."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        reply = text(next(message["content"] for message in body["messages"] if message["role"] == "user"))
        shown = "".join(message["content"] for message in body["messages"])
        usage = {"prompt_tokens": len(shown), "completion_tokens": len(reply)}
        return {"choices": [{"message": {"content": reply}, "finish_reason": "stop"}], "usage": usage}

    return answer


def classifications(reward: Callable[[list[int]], float]) -> Answer:
    """vLLM's /classify for a one-label model."""
    return lambda body: {"data": [{"index": i, "probs": [reward(ids)]} for i, ids in enumerate(body["input"])]}
