"""Requests to a server that fails in various ways; test_vllm_server has a real server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from endpoint import Endpoint

from infra.processes import watchdog
from infra.processes.watchdog import EndingError
from infra.serving.completions import Completion, CompletionError, Request, Sampling, classify, complete

SAMPLING = Sampling(n=2, max_tokens=3)
ANSWER = {
    "choices": [
        {"index": 1, "text": "b", "finish_reason": "length", "token_ids": [1, 2, 3]},
        {"index": 0, "text": "a", "finish_reason": "stop", "token_ids": [1, 2]},
    ],
    "usage": {"prompt_tokens": 4},
}


@pytest.fixture
def server() -> Iterator[Endpoint]:
    made = Endpoint(lambda _: (200, ANSWER))
    yield made
    made.close()


def sample(
    url: str, count: int = 1, alive: Callable[[], None] = lambda: None, attempts: int = 3, seed: int | None = None
) -> dict[str, list[Completion]]:
    found: dict[str, list[Completion]] = {}
    requests = (Request(f"r{i}", [5, 6], seed) for i in range(count))
    keep = lambda request, samples: found.update({request.request_id: samples})  # noqa: E731
    asyncio.run(complete(url, "m", requests, SAMPLING, max_in_flight=3, on_result=keep, alive=alive, attempts=attempts))
    return found


def test_samples_come_in_order_with_their_counts(server: Endpoint) -> None:
    first, second = sample(server.url)["r0"]
    assert (first.text, first.finish_reason, first.tokens) == ("a", "stop", 2)
    assert (second.text, second.finish_reason, second.tokens) == ("b", "length", 3)
    assert server.asked[0]["prompt"] == [5, 6]
    assert "seed" not in server.asked[0]


def test_a_seed_is_sent_when_given(server: Endpoint) -> None:
    sample(server.url, seed=7)
    assert server.asked[0]["seed"] == 7


def test_a_stop_string_stays_in_the_text_and_an_end_token_does_not(server: Endpoint) -> None:
    """vLLM cuts either off, and says which it was."""
    choices = [
        {"index": 0, "text": "a", "finish_reason": "stop", "stop_reason": "</x>", "token_ids": [1]},
        {"index": 1, "text": "b", "finish_reason": "stop", "stop_reason": None, "token_ids": [1]},
    ]
    server.reply = lambda _: (200, {**ANSWER, "choices": choices})
    assert [each.text for each in sample(server.url)["r0"]] == ["a</x>", "b"]


def test_a_constraint_is_sent_when_given(server: Endpoint) -> None:
    sample(server.url)
    constrained = SAMPLING.model_copy(update={"constraint": {"choice": ["a", "b"]}})
    requests, keep = [Request("r", [5], None)], lambda _request, _samples: None
    asyncio.run(complete(server.url, "m", requests, constrained, max_in_flight=1, on_result=keep, alive=lambda: None))
    assert [body.get("structured_outputs") for body in server.asked] == [None, {"choice": ["a", "b"]}]


def test_headers_are_sent_with_every_request(server: Endpoint) -> None:
    requests, keep = [Request(str(i), [5], None) for i in range(3)], lambda _request, _samples: None
    headers = {"Authorization": "Bearer key"}
    asyncio.run(
        complete(
            server.url, "m", requests, SAMPLING, max_in_flight=1, on_result=keep, alive=lambda: None, headers=headers
        )
    )
    assert server.keys == ["Bearer key"] * 3


def test_requests_in_flight_are_bounded(server: Endpoint) -> None:
    assert len(sample(server.url, count=20)) == 20
    assert server.max_open <= 3


def test_a_passing_failure_is_retried(server: Endpoint) -> None:
    server.reply = lambda number: (500, {"error": {"message": "busy"}}) if number < 3 else (200, ANSWER)
    assert sample(server.url)["r0"]
    assert len(server.asked) == 3


def test_a_lasting_failure_ends_with_the_servers_message(server: Endpoint) -> None:
    server.reply = lambda _: (503, {"error": {"message": "no memory"}})
    with pytest.raises(CompletionError, match=r"request r0 .*503: no memory"):
        sample(server.url)
    assert len(server.asked) == 3


def test_a_refusal_is_an_error_at_once(server: Endpoint) -> None:
    server.reply = lambda _: (400, {"error": {"message": "maximum context length is 256 tokens"}})
    with pytest.raises(CompletionError, match=r"request r0 .2 prompt tokens.*400: maximum context length is 256"):
        sample(server.url)
    assert len(server.asked) == 1


def test_too_few_samples_are_an_error(server: Endpoint) -> None:
    server.reply = lambda _: (200, {**ANSWER, "choices": ANSWER["choices"][:1]})
    with pytest.raises(CompletionError, match="asked for 2 samples, got 1"):
        sample(server.url)


def test_a_dead_server_is_reported_by_alive(server: Endpoint) -> None:
    server.close()

    def alive() -> None:
        raise RuntimeError("the server's last words")

    with pytest.raises(RuntimeError, match="last words"):
        sample(server.url, alive=alive)


def test_an_error_of_the_receiver_ends_the_run(server: Endpoint) -> None:
    def full(_request: Request, _samples: list[Completion]) -> None:
        raise OSError("disk full")

    requests = [Request(str(i), (1,), None) for i in range(50)]
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(complete(server.url, "m", requests, SAMPLING, max_in_flight=2, on_result=full, alive=lambda: None))
    assert len(server.asked) < 10


def test_a_process_that_has_to_end_waits_for_no_answer(server: Endpoint, monkeypatch) -> None:
    """A remote server does not end with this process, so its answer may come late."""
    ending = threading.Event()
    monkeypatch.setattr(watchdog, "ending", ending)

    def slow(_: object) -> tuple[int, object]:
        ending.set()
        time.sleep(5)
        return 200, ANSWER

    server.reply = slow
    began = time.monotonic()
    with pytest.raises(EndingError):
        sample(server.url, count=100)
    assert time.monotonic() - began < 5


def test_scores_keep_the_order_of_the_inputs(server: Endpoint) -> None:
    server.reply = lambda number: (
        200,
        {"data": [{"index": i, "probs": [float(sum(ids))]} for i, ids in enumerate(server.asked[number - 1]["input"])]},
    )
    inputs = [[i, 1] for i in range(7)]
    scores = asyncio.run(
        classify(server.url, "m", inputs, max_in_flight=1, alive=lambda: None, batch_size=3),
    )
    assert scores == [float(sum(ids)) for ids in inputs]
    assert [len(body["input"]) for body in server.asked] == [3, 3, 1]
    assert all(body["use_activation"] is False for body in server.asked)


def test_a_score_must_be_one_logit(server: Endpoint) -> None:
    server.reply = lambda _: (200, {"data": [{"index": 0, "probs": [0.1, 0.9]}]})
    with pytest.raises(CompletionError, match="one logit"):
        asyncio.run(classify(server.url, "m", ["text"], max_in_flight=1, alive=lambda: None))
