"""The whole method, small: real Prefect, vLLM, torchrun with DeepSpeed on two ranks; killed midway, then run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from small import SMALL, command_lines, environment

from infra.processes.watchdog import _descendants
from infra.settings import Settings
from infra.store.parts import find
from infra.store.store import Store
from infra.store.tables import read_rows

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.end_to_end, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "nano" / "models" / "instruct" / "model.safetensors").is_file():
        pytest.fail("nano/models/instruct is not in the checkout: the end-to-end test needs the shipped nano models")
    return tmp_path_factory.mktemp("whole")


def started(place: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows", "bolt/nano"]
    for assignment in (*SMALL, *more):
        command += ["--set", assignment]
    log = (place / "log.txt").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment(place), stdout=subprocess.PIPE, stderr=log, text=True)


def finished(place: Path, *more: str) -> dict[str, Any]:
    run = started(place, *more)
    out, _ = run.communicate(timeout=900)
    assert run.returncode == 0, (place / "log.txt").read_text()[-6000:]
    summary: dict[str, Any] = json.loads(Path(out.strip().splitlines()[-1]).read_text())
    return summary


def ledger_lines(place: Path) -> list[str]:
    ledgers = sorted((place / "work" / "ledgers").glob("responses-*.jsonl"))
    return [line for path in ledgers for line in path.read_text().splitlines(keepends=True)[1:]]


def sampled_texts(place: Path) -> dict[str, list[str]]:
    """The texts of all samples in the shards of responses, by query."""
    store, texts = Store.open(Settings(store=str(place / "store"))), defaultdict(list)
    for folder in (place / "store" / "responses").iterdir():
        shard = find(store, "responses", folder.name)
        assert shard
        for row in read_rows(store, shard, ["query_id", "text"]):
            texts[row["query_id"]].append(row["text"])
    return texts


def processes_below(place: Path) -> list[str]:
    """Command lines of living processes that mention the test's work folder or store."""
    return [line for _, line in command_lines([str(place / "work"), str(place / "store")])]


def test_a_killed_run_resumes_from_what_was_finished(place: Path) -> None:
    run = started(place)
    deadline = time.monotonic() + 400
    while not ledger_lines(place):
        assert run.poll() is None, (place / "log.txt").read_text()[-6000:]
        assert time.monotonic() < deadline, "no request was finished in 400 s"
        time.sleep(0.05)
    below = _descendants(run.pid)
    of_prefect = [pid for pid, _ in command_lines(["prefect.server.api.server:create_app"]) if pid in below]
    assert of_prefect
    run.send_signal(signal.SIGKILL)
    run.wait()
    for pid in of_prefect:  # its temporary server outlives the kill, which is Prefect's own matter
        os.kill(pid, signal.SIGKILL)
    kept = [json.loads(line) for line in ledger_lines(place) if line.endswith("\n")]
    assert kept
    deadline = time.monotonic() + 60
    while processes_below(place):
        assert time.monotonic() < deadline, f"orphans of the killed run: {processes_below(place)}"
        time.sleep(0.2)

    summary = finished(place)

    texts = sampled_texts(place)
    for line in kept:  # finished requests were not sent again
        assert texts[line["id"]] == [sample["text"] for sample in line["record"]["samples"]]
    assert not ledger_lines(place)
    assert not list((place / "work" / "training").iterdir())
    assert [stage["name"] for stage in summary["stages"]] == ["instruct", "in-context", "sft", "online-1"]
    assert all(stage["problems"] == 24 and stage["samples"] == 48 for stage in summary["stages"])
    rows = {step["name"]: step["rows"] for step in summary["steps"]}
    assert rows["queries"] == 100
    assert rows["responses"] == 100 * 8
    assert rows["responses-online-1"] == 24 * 4
    assert rows["examples"] == 10
    instruct, in_context = summary["stages"][:2]
    assert instruct["thought_tokens"] == 0
    assert in_context["thought_tokens"] > 20


def test_the_second_run_is_all_cached(place: Path) -> None:
    summary = finished(place)
    assert [step["name"] for step in summary["steps"] if not step["cached"]] == []


def test_the_run_graph_shows_what_each_step_read(place: Path) -> None:
    """As the Prefect UI draws it: one link from every task that made or found an input, and no other."""
    command = [sys.executable, str(ROOT / "tests" / "graph.py"), str(place / "store")]
    done = subprocess.run(command, cwd=ROOT, env=environment(place), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 40


def test_rows_can_be_followed_from_a_pair_to_its_query(place: Path) -> None:
    written = next((place / "store" / "runs").glob("*/summary.json"), None)
    summary = json.loads(written.read_text()) if written else finished(place)  # an earlier test ran it
    keys = {step["name"]: step["key"] for step in summary["steps"]}
    store = Store.open(Settings(store=str(place / "store")))
    tables = {name: find(store, name, keys[name]) for name in ("pairs-1", "scores-online-1", "queries-online-1")}
    assert all(tables.values())
    pairs, scores, queries = (list(read_rows(store, ref)) for ref in tables.values() if ref)
    scored = {(row["query_id"], row["sample"]): row["total"] for row in scores}
    asked = {row["query_id"]: row["query"] for row in queries}
    assert pairs
    for pair in pairs:
        assert asked[pair["query_id"]] in pair["prompt"]
        of_query = [total for (query_id, _), total in scored.items() if query_id == pair["query_id"]]
        assert pair["chosen_score"] == scored[pair["query_id"], pair["chosen_sample"]] == max(of_query)
        assert pair["rejected_score"] == scored[pair["query_id"], pair["rejected_sample"]] == min(of_query)


RL = (
    "config.online.rl.learning_rate=1e-4",
    "config.online.rl.batch=16",
    "config.online.rl.micro_batch=4",
    "config.online.rl.max_length=640",
    "config.online.rl.overlong=drop",
)


@pytest.mark.faults  # small ones: tests/infra/training/test_rl.py and tests/tasks/training/test_on_policy.py
@pytest.mark.parametrize(
    ("method", "given", "made"),
    [("grpo", (), {"samples-1", "grpo-1"}), ("rloo", ("config.online.rl.on_policy=true",), {"rloo-1"})],
)
def test_another_method_goes_on_from_the_same_sft_model(
    place: Path, method: str, given: tuple[str, ...], made: set[str]
) -> None:
    """What is sampled and scored before is the same, so that only the training and what follows is made."""
    finished(place)  # if an earlier test has not done so
    summary = finished(place, f"config.online.method={method}", *RL, *given)
    after = {f"{what}-online-1-{how}" for what in ("answers", "grades") for how in ("sampled", "greedy")}
    anew = {step["name"] for step in summary["steps"] if not step["cached"]}
    assert "answers-online-1-sampled" in anew
    assert anew - after - {"guards-0"} == made | {"guards-1"}  # equal answers of another model have their grades
    assert summary["model"].startswith(f"{method}-1/")
    store = Store.open(Settings(store=str(place / "store")))
    guards = [row["guard"] for row in summary["guards"] if row["policy"] == 1]
    assert "KL to pi_0, nats per token" in guards
    key = summary["model"].partition("/")[2]
    if given:
        table = find(store, "rloo-1-rollouts", key)
        assert table
        assert table.rows == 24 * 4


@pytest.mark.faults  # small ones: tests/infra/steps/test_step.py and test_step_in_flows.py
def test_a_damaged_part_is_made_again_and_nothing_else(place: Path) -> None:
    summary = finished(place)
    key = next(step["key"] for step in summary["steps"] if step["name"] == "longcot")
    part = place / "store" / "longcot" / key / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9] + b"garbage!!")
    again = finished(place)
    assert [step["name"] for step in again["steps"] if not step["cached"]] == ["longcot"]
