"""Measure how the requests of a step keep many servers busy: tokens/s of 1, 2, ... servers, against one.

    python bench/servers.py [--servers 1 2 4 8 16 64] [--seconds 60]

The servers are simulated (bench/simulated.py): each decodes 64 samples at a time, a token of each every 20 ms, whatever
else happens. The real client asks them, `infra.serving.pool.complete_on`, in four shards at once, as a step of a flow
does. The speed is that of the middle of the run, without the ramps at its start and end.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import bench_parser, report, surroundings
from bench.simulated import Simulated
from infra.serving.completions import Completion, Request, Sampling
from infra.serving.pool import Pool, complete_on

SHARDS, SAMPLES, SLOTS, STEP_MS, TOKENS = 4, 8, 64, 20.0, 1000
SAMPLE_S = TOKENS * STEP_MS / 1000


@dataclass(eq=False)
class SimulatedServer:
    """A simulated server, for a pool."""

    url: str
    served_name: str = "policy"
    headers: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """It lives as long as the bench."""

    def stop(self) -> None:
        """It ends with the bench."""


class MeasuredError(Exception):
    """Ends the requests once the speed has been measured."""


def decoded(url: str) -> float:
    """The tokens that all servers have decoded so far, by any of their addresses."""
    return float(httpx.get(f"{url}/decoded", timeout=60, trust_env=False).json()["tokens"])


def measured(count: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of `count` servers, and this process's CPU time per 1,000 responses."""
    ramp = 2 * SAMPLE_S
    responses_per_s = count * SLOTS / SAMPLES / SAMPLE_S
    names = [f"request-{number}" for number in range(round(responses_per_s * (2 * seconds + 4 * ramp)))]
    finished, over = 0, threading.Event()

    def keep(_request: Request, _completions: list[Completion]) -> None:
        nonlocal finished
        finished += 1
        if over.is_set():
            raise MeasuredError

    def refused(request: Request, reason: str) -> None:
        raise SystemExit(f"{request.request_id}: {reason}")

    with Simulated(count, SLOTS, STEP_MS, TOKENS) as servers, ThreadPoolExecutor(SHARDS) as threads:
        pool = Pool([SimulatedServer(url) for url in servers.urls])

        def shard(number: int) -> None:
            asking = complete_on(
                pool,
                [[name] for name in names[number::SHARDS]],
                lambda name: Request(name, list(range(500)), 0),
                Sampling(n=SAMPLES, max_tokens=4 * TOKENS),
                max_in_flight=SLOTS // SAMPLES,  # of each shard: four times what a server decodes at once
                on_result=keep,
                on_quarantine=refused,
            )
            asyncio.run(asking)

        running = [threads.submit(shard, number) for number in range(SHARDS)]
        time.sleep(ramp)
        before, began, done, cpu = decoded(servers.urls[0]), time.perf_counter(), finished, time.process_time()
        time.sleep(seconds)
        tokens, took = decoded(servers.urls[0]) - before, time.perf_counter() - began
        responses, used = finished - done, time.process_time() - cpu
        over.set()
        for each in running:
            if not isinstance(each.exception(), MeasuredError):
                each.result()
    return {
        "servers": count,
        "tokens_per_s": round(tokens / took),
        "responses_per_s": round(responses / took, 2),
        "cpu_s_per_1000_responses": round(1000 * used / responses, 2),
    }


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--seconds", type=float, default=60, help="length of the measured part")
    given = parser.parse_args()
    before = surroundings()
    found = [measured(count, given.seconds) for count in given.servers]
    one, ideal = found[0]["tokens_per_s"] / found[0]["servers"], SLOTS * 1000 / STEP_MS
    for each in found:
        each["of_linear"] = round(each["tokens_per_s"] / (each["servers"] * one), 3)
        each["of_ideal"] = round(each["tokens_per_s"] / (each["servers"] * ideal), 3)
    simulated = {"slots": SLOTS, "step_ms": STEP_MS, "tokens": TOKENS, "samples": SAMPLES}
    result = {"bench": "servers", "simulated": simulated, "found": found}
    report(result | before, given.out)


if __name__ == "__main__":
    os.environ.setdefault("NO_PROXY", "127.0.0.1")
    main()
