"""Run one flow with faked answers of the models: `fake_flow.py FLOW PARAMETERS.json ASKED.txt`.

Everything else is real: Prefect, the store, claims, ledgers. Each sampling request is noted in ASKED.txt. With
FAKE_HOLD in the environment, no request is answered until a run whose log is beside ASKED.txt waits for another one.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import infra.serving.classifier
import infra.serving.servers
import tasks.responses.generate
from cot_formats import bolt
from infra.serving.completions import Completion
from infra.serving.pool import Pool

PAUSE_S = 0.1  # per request
HOLD_S = 60.0


class Healthy:
    """A server that is up."""

    url, served_name = "http://127.0.0.1:9", "fake"
    headers: Mapping[str, str] = {}

    def check(self) -> None: ...

    def stop(self) -> None: ...


def fake_answers(asked: Path) -> None:
    """Make this process use no server; every sampling request is written to the file `asked`."""

    async def complete_on(_pool: Any, groups: Any, request_of: Any, sampling: Any, *, on_result: Any, **_: Any) -> None:
        deadline = time.monotonic() + HOLD_S
        while "FAKE_HOLD" in os.environ and time.monotonic() < deadline:
            if any("waiting for it" in log.read_text() for log in asked.parent.glob("run-*.log")):
                break
            await asyncio.sleep(PAUSE_S)
        for request in map(request_of, chain.from_iterable(groups)):
            await asyncio.sleep(PAUSE_S)
            text = bolt.render("plan : one .", "answer : 1 .")
            on_result(request, [Completion(text, "stop", (1, 2)) for _ in range(sampling.n)])
            with asked.open("a") as out:
                out.write(f"{request.request_id}\n")

    async def classify(_url: str, _name: str, inputs: Any, **_: Any) -> list[float]:
        return [float(number % 3) for number in range(len(inputs))]

    infra.serving.servers.Servers._pool = lambda *_: Pool([Healthy()])  # type: ignore[method-assign,assignment]
    tasks.responses.generate.complete_on = complete_on  # type: ignore[assignment]
    infra.serving.classifier.classify = classify  # type: ignore[assignment]


def main(flow: str, parameters: Path, asked: Path) -> None:
    fake_answers(asked)
    run = getattr(importlib.import_module(f"flows.{flow}"), flow)
    made = run(**json.loads(parameters.read_text()))
    print(f"made {made.step}/{made.key}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
