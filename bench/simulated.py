"""Simulated vLLM servers of a fixed speed, to measure at scales that this machine has no GPUs for.

    python bench/simulated.py --servers 8 [--slots 64] [--step-ms 20] [--tokens 1000] [--format bolt]

Each server answers `/v1/completions` on a port of its own as vLLM does, and computes nothing: it decodes up to
`--slots` samples at a time, a token of each per step, and lets the others wait. With `--step-ms 0` no sample takes any
time. A sample's length is drawn from a log-normal distribution, by the request's name; one that ends with a stop
string, a step, is a tenth as long in the mean. With `--format`, samples are well-formed responses of English words, a
token each, and otherwise words that mean nothing. A sample that is cut at its limit ends in the middle. `/classify`
gives random rewards, the same for the same tokens. All servers run in this one process, which prints their addresses as
a JSON list, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import sys
import time
from array import array
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import ROOT
from cot_formats import FORMATS
from cot_formats.responses import LongFormat

NAME = "simulated"
WORDS = ["a", "few", "words", "that", "mean", "nothing"]
SPREAD = 0.5
"""Standard deviation of the logarithm of a sample's length."""
THOUGHTS = 0.75
"""Share of a response's words that are thoughts."""


def english() -> list[str]:
    """The words of this project's in-context examples, each as often as they have it."""
    texts = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "prompts" / "examples").glob("*.md")))
    return [word for text in texts for word in re.findall(r"[a-z]+", text)]


class Engine:
    """One server's decoder."""

    def __init__(self, slots: int, step_s: float, tokens: float, format: LongFormat | None) -> None:
        self.step_s, self.tokens, self.format = step_s, tokens, format
        self.words = english() if format else WORDS
        self.free = asyncio.Semaphore(slots)
        self.decoding, self.decoded, self.counted = 0, 0.0, time.perf_counter()

    def count(self, more: int) -> None:
        """Add up the tokens decoded since the last call; from now on `more` samples are decoded."""
        now = time.perf_counter()
        if self.step_s:
            self.decoded += self.decoding * (now - self.counted) / self.step_s
        self.decoding, self.counted = self.decoding + more, now

    async def sampled(self, name: str, index: int, limit: int, stop: list[str]) -> dict[str, Any]:
        """One sample, after the time that it takes."""
        rng, mean = random.Random(f"{name}/{index}"), self.tokens / 10 if stop else self.tokens
        drawn = rng.lognormvariate(math.log(mean) - SPREAD**2 / 2, SPREAD)
        whole = max(1, round(drawn))
        tokens = min(limit, whole)
        async with self.free:
            self.count(1)
            try:
                await asyncio.sleep(tokens * self.step_s)
            finally:
                self.count(-1)
        found = {"index": index, "token_ids": [1] * tokens, "finish_reason": "stop" if tokens < limit else "length"}
        text = self.text(rng.choices(self.words, k=whole))
        text = text if tokens == whole else text[: len(text) * tokens // whole]
        return {**found, "text": text, "stop_reason": stop[0] if stop and tokens < limit else None}

    def text(self, words: list[str]) -> str:
        """The text of a whole sample."""
        if not self.format:
            return " ".join(["", *words])
        thoughts = max(1, round(THOUGHTS * len(words)))
        solution = words[thoughts:] or words[:1]
        return FORMATS[self.format].render(" ".join(words[:thoughts]), " ".join(solution))


async def completions(request: web.Request) -> web.Response:
    engine: Engine = request.app[ENGINE]
    asked = await request.json()
    several = isinstance(asked["prompt"][0], list)
    count = asked["n"] * (len(asked["prompt"]) if several else 1)
    name = request.headers.get("X-Request-Id", "")
    samples = (engine.sampled(name, index, asked["max_tokens"], asked["stop"]) for index in range(count))
    return web.json_response({"choices": await asyncio.gather(*samples)})


async def classify(request: web.Request) -> web.Response:
    """A reward for each input, between 0 and 1."""
    inputs = (await request.json())["input"]
    rewards = (random.Random(array("q", ids).tobytes()).random() for ids in inputs)
    return web.json_response({"data": [{"index": place, "probs": [each]} for place, each in enumerate(rewards)]})


async def models(_request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": NAME, "max_model_len": 2**20}]})


async def decoded(request: web.Request) -> web.Response:
    """The number of tokens that all servers have decoded so far."""
    engines = request.app[ENGINES]
    for each in engines:
        each.count(0)
    return web.json_response({"tokens": sum(each.decoded for each in engines)})


ENGINE = web.AppKey("engine", Engine)
ENGINES = web.AppKey("engines", list[Engine])


async def serve(given: argparse.Namespace) -> None:
    """Serve until standard input ends."""
    addresses, runners, engines = [], [], list[Engine]()
    for _ in range(given.servers):
        app = web.Application(client_max_size=2**26)
        app[ENGINE], app[ENGINES] = Engine(given.slots, given.step_ms / 1000, given.tokens, given.format), engines
        engines.append(app[ENGINE])
        app.add_routes([web.post("/v1/completions", completions), web.get("/v1/models", models)])
        app.add_routes([web.post("/classify", classify), web.get("/decoded", decoded)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        addresses.append("http://{}:{}".format(*runner.addresses[0][:2]))
        runners.append(runner)
    print(json.dumps(addresses), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for runner in runners:
        await runner.cleanup()


class Simulated:
    """The servers, in a process of their own; a context manager."""

    def __init__(self, servers: int, slots: int, step_ms: float, tokens: int, format: LongFormat | None = None) -> None:
        options: dict[str, object] = {"--servers": servers, "--slots": slots, "--step-ms": step_ms, "--tokens": tokens}
        options |= {"--format": format} if format else {}
        command = [sys.executable, str(Path(__file__)), *(f"{name}={value}" for name, value in options.items())]
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        assert self.process.stdout is not None
        self.urls: list[str] = json.loads(self.process.stdout.readline())

    def __enter__(self) -> Simulated:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()  # requests in flight are of no use any more
        self.process.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, required=True)
    parser.add_argument("--slots", type=int, default=64, help="samples that a server decodes at once")
    parser.add_argument("--step-ms", type=float, default=20, help="milliseconds of a decoding step")
    parser.add_argument("--tokens", type=int, default=1000, help="mean length of a sample")
    parser.add_argument("--format", choices=[*FORMATS], help="form of a sample's text")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
