"""Generation of 2,000 requests under `kill -9`: each is there once at the end, and none is sent again once finished.

BOLT_TEST_REQUESTS and BOLT_TEST_SEED set how many requests and when the kills come.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import PrefectServer, ended, started, wait_for
from small import command_lines

from flows.__main__ import deployment

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(7200)]

REQUESTS = int(os.environ.get("BOLT_TEST_REQUESTS", "2000"))
SEED = int(os.environ.get("BOLT_TEST_SEED", "1"))
SAMPLES = 2
RECEIVED = re.compile(r"Received request cmpl-(\S+?)-0")  # of vLLM's log, with --enable-log-requests
FLOW = Path(__file__).with_name("generation_flow.py")


class Generation:
    """One generation in a folder of its own, run again after each kill of its flow."""

    def __init__(self, place: Path, prefect: PrefectServer, servers: int) -> None:
        self.place = place
        given = deployment("bootstrap/nano")["parameters"]["config"]
        policy = given["serving"]["policy"] | {"kv_cache_gib": 0.5, "extra_args": ["--enable-log-requests"]}
        parameters = {name: given[name] for name in ("model", "examples", "queries", "prompt")} | {
            "queries": given["queries"] | {"draw": {"limit": REQUESTS}},
            "serving": given["serving"] | {"policy": policy, "policy_servers": servers},
            "generate": given["generate"] | {"samples": SAMPLES, "max_tokens": 48, "max_truncated_share": 1},
            "shards": 4,
        }
        self.parameters = place / "parameters.json"
        self.parameters.write_text(json.dumps(parameters))
        self.environment = prefect.environment() | {
            "BOLT_STORE": str(place / "store"),
            "BOLT_WORK_DIR": str(place / "work"),
            "OMP_NUM_THREADS": "1",
        }
        self.log = place / "flow.log"
        self.flow = self.start()

    def start(self) -> Any:
        return started([FLOW, self.parameters], self.log, self.environment)

    def servers(self) -> list[int]:
        """Process ids of the running vLLM servers, without their watchdogs."""
        found = command_lines([str(self.place)])
        return sorted(pid for pid, line in found if "openai.api_server" in line and "-ISB" not in line)

    def finished(self) -> set[str]:
        """The requests that are in a ledger or in a published table."""
        tables = [path.parent for path in self.place.glob("store/responses/*/manifest.json")]
        ids = {name for table in tables for name in self.column(table)}
        for ledger in self.place.glob("work/ledgers/*.jsonl"):
            try:
                lines = ledger.read_bytes().split(b"\n")[1:-1]
            except FileNotFoundError:  # its table was just published
                continue
            ids |= {json.loads(line)["id"] for line in lines}
        return ids

    def column(self, table: Path) -> list[str]:
        parts = sorted(table.glob("part-*.parquet"))
        return [name for part in parts for name in pq.read_table(part, columns=["query_id"])["query_id"].to_pylist()]

    def received(self) -> list[tuple[Path, str]]:
        """The requests that the servers received, according to their logs."""
        logs = sorted(self.place.glob("work/logs/policy-*.log"))
        return [(log, name) for log in logs for name in RECEIVED.findall(log.read_text(errors="replace"))]

    def reached(self, count: int) -> bool:
        assert self.flow.poll() is None or count == REQUESTS, self.log.read_text()[-3000:]
        return len(self.finished()) >= count

    def log_text(self) -> str:
        return self.log.read_text()


def asked_again(before: list[tuple[Path, str]], finished: set[str], after: list[tuple[Path, str]]) -> list[str]:
    """The requests that a server received although they were finished at an earlier moment."""
    seen, found = Counter(before), []
    for each in after:
        if seen[each] > 0:
            seen[each] -= 1
        elif each[1] in finished:
            found.append(each[1])
    return found


def check_whole(run: Generation, moments: list[tuple[set[str], list[tuple[Path, str]]]]) -> None:
    """Every request is there once with all its samples, and none was sent again after it was finished."""
    tables = [run.place / "store" / name for name in re.findall(r"^made (\S+)", run.log_text(), re.MULTILINE)]
    rows = Counter(name for table in tables for name in run.column(table))
    assert (len(tables), len(rows), set(rows.values())) == (4, REQUESTS, {SAMPLES})
    received = run.received()
    asked = Counter(name for _, name in received)
    assert set(asked) == set(rows)
    for finished, before in moments:
        assert asked_again(before, finished, received) == []
    again = sum(count - 1 for count in asked.values())
    at_kills = [len(finished) for finished, _ in moments]
    print(f"{REQUESTS} requests, finished at each kill {at_kills}, received {len(received)}, owed ones again {again}")


def test_flow_and_server_are_killed_in_turn(tmp_path: Path, prefect: PrefectServer) -> None:
    run = Generation(tmp_path, prefect, servers=1)
    counts = sorted(random.Random(SEED).sample(range(REQUESTS // 20, REQUESTS * 9 // 10), 5))
    moments = []
    for number, count in enumerate(counts):
        wait_for(lambda count=count: run.reached(count) and run.servers(), 1800, 0.2)
        moments.append((run.finished(), run.received()))
        if number % 2:
            os.kill(run.servers()[0], signal.SIGKILL)
        else:
            run.flow.send_signal(signal.SIGKILL)
            ended(run.flow)
            wait_for(lambda: not run.servers(), 60)
            moments[-1] = (run.finished(), run.received())
            run.flow = run.start()
    assert ended(run.flow, 1800) == 0, run.log_text()[-3000:]
    check_whole(run, moments)
    assert run.log_text().count("the last server is lost and is started again") == 2


def test_one_of_two_servers_is_killed_for_good(tmp_path: Path, prefect: PrefectServer) -> None:
    run = Generation(tmp_path, prefect, servers=2)
    wait_for(lambda: run.reached(REQUESTS // 3) and len(run.servers()) == 2, 1800, 0.2)
    moments = [(run.finished(), run.received())]
    os.kill(run.servers()[1], signal.SIGKILL)
    wait_for(lambda: run.reached(REQUESTS * 2 // 3), 1800, 0.2)
    moments.append((run.finished(), run.received()))
    assert len(run.servers()) == 1
    assert ended(run.flow, 1800) == 0, run.log_text()[-3000:]
    check_whole(run, moments)
    assert run.log_text().count("a server is lost; its requests go to the other 1") == 1
