"""`kill -9` of every kind of process at random moments of real runs: the same command resumes, and nothing is lost.

BOLT_TEST_KILLS and BOLT_TEST_SEED set how many kills and which (for `make test-faults` of another length).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from runs import ROOT, PrefectServer, ended, started, wait_for
from s3_for_tests import free_port
from small import SMALLEST

from flows.__main__ import changed, deployment
from infra.operations.inventory import artifacts, problems
from infra.operations.stack import POOLS
from infra.settings import Settings
from infra.store.manifest import ref_of
from infra.store.store import Store
from infra.store.tables import read_rows

KILLS = int(os.environ.get("BOLT_TEST_KILLS", "40"))
SEED = int(os.environ.get("BOLT_TEST_SEED", "1"))
KINDS = ("flow", "worker", "vllm server", "engine", "rank", "launcher", "watchdog", "prefect server")
SET_BY_SIZE = ("queries", "examples", "problems", "responses", "grades", "answers")  # rows do not depend on the texts
SET_BY_SIZE += ("collected-", "cleaned", "distinct", "held-out", "contaminated", "decontaminated")


def kind_of(words: list[str]) -> str | None:
    """The kind of process that a command line is."""
    if "-ISB" in words:
        return "watchdog"
    if "vllm.entrypoints.openai.api_server" in words:
        return "vllm server"
    if words[0].startswith("VLLM::"):
        return "engine"
    if "torch.distributed.run" in words:
        return "launcher"
    if {"infra.training.sft", "infra.training.dpo"} & set(words):
        return "rank"
    if "prefect.engine" in words or {"flows", "bolt/nano"} <= set(words):
        return "flow"
    if {"worker", "start"} <= set(words):
        return "worker"
    return "prefect server" if {"prefect", "server", "start"} <= set(words) else None


class Site:
    """A Prefect server, a worker and a store, and the command that is run again and again."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.home = place / "prefect"
        self.home.mkdir(parents=True)
        self.port = free_port()
        self.server: subprocess.Popen[str] | None = None
        self.worker: subprocess.Popen[str] | None = None
        self.environment = PrefectServer(self.home, f"http://127.0.0.1:{self.port}/api").environment() | {
            "BOLT_STORE": str(place / "store"),
            "BOLT_WORK_DIR": str(place / "work"),
            "OMP_NUM_THREADS": "1",
        }

    def open(self) -> None:
        """Start server and worker, deploy everything."""
        self.keep_up()
        for pool in POOLS:
            self.cli("work-pool", "create", pool, "--type", "process")
        self.cli("--no-prompt", "deploy", "--all")
        self.keep_up(worker=True)

    def cli(self, *words: str) -> None:
        assert ended(started(["-m", "prefect", *words], self.place / "cli.log", self.environment)) == 0, words

    def keep_up(self, worker: bool = False) -> None:
        """Start the Prefect server and the worker if they are not up."""
        if self.server is None or self.server.poll() is not None:
            words = ["-m", "prefect", "server", "start", "--no-ui", "--port", str(self.port)]
            self.server = started(words, self.place / "server.log", self.environment)
        wait_for(self._answers, 90, 0.2)
        if worker and (self.worker is None or self.worker.poll() is not None):
            words = ["-m", "prefect", "worker", "start", "--pool", "bolt-gpu"]
            self.worker = started(words, self.place / "worker.log", self.environment)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/api/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    def run(self, through_worker: bool) -> subprocess.Popen[str]:
        """The command, or the same flow as a deployment's run."""
        log = self.place / "log.txt"
        if through_worker:
            parameters = json.dumps(changed(deployment("bolt/nano")["parameters"], SMALLEST))
            words = ["-m", "prefect", "deployment", "run", "bolt/nano", "--watch", "--params", parameters]
        else:
            words = ["-m", "flows", "bolt/nano", *(word for each in SMALLEST for word in ("--set", each))]
        return started(words, log, self.environment)

    def processes(self) -> dict[str, list[int]]:
        """Running processes of this site by kind, recognised by their environment or their output file."""
        found: dict[str, list[int]] = defaultdict(list)
        mark = f"BOLT_WORK_DIR={self.place / 'work'}\0".encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                ours = mark in (path / "environ").read_bytes() + b"\0"  # vLLM's engine overwrites its own
                if not (ours or os.readlink(path / "fd" / "1").startswith(str(self.place))):
                    continue
                kind = kind_of((path / "cmdline").read_text(errors="replace").split("\0"))
            except OSError:  # it just ended
                continue
            if kind:
                found[kind].append(int(path.name))
        return found

    def lost(self) -> bool:
        """Whether no flow runs, and none starts within half a minute."""
        deadline = time.monotonic() + 30
        while not self.processes()["flow"]:
            if time.monotonic() > deadline:
                return True
            time.sleep(0.5)
        return False

    def close(self) -> None:
        for pids in self.processes().values():
            for pid in pids:
                _kill(pid)
        for process in (self.server, self.worker):
            if process:
                process.kill()
                process.wait()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    try:
        made.open()
        yield made
    finally:
        made.close()


class Book:
    """What was finished before a kill, and so must never be made or requested again."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.manifests: dict[str, bytes] = {}
        self.samples: dict[tuple[str, str], list[str]] = {}  # by ledger and request

    def note(self) -> None:
        for path in (self.place / "store").glob("*/*/manifest.json"):
            name = f"{path.parts[-3]}/{path.parts[-2]}"
            held = self.manifests.setdefault(name, path.read_bytes())
            assert held == path.read_bytes(), f"{name} was made again"
        for path in (self.place / "work" / "ledgers").glob("*.jsonl"):
            try:
                lines = path.read_text().splitlines(keepends=True)[1:]
            except FileNotFoundError:  # its table was just published
                continue
            for line in lines:
                if line.endswith("\n"):
                    each = json.loads(line)
                    texts = [sample["text"] for sample in each["record"]["samples"]]
                    assert self.samples.setdefault((path.stem, each["id"]), texts) == texts, "asked again"

    def check(self, store: Store) -> None:
        """Everything that was recorded is unchanged in the store."""
        self.note()
        found = {each.folder: each.manifest for each in artifacts(store)}
        texts: dict[tuple[str, str], list[str]] = defaultdict(list)
        for folder, manifest in found.items():
            assert manifest, folder
            if manifest.step.startswith(("responses", "answers")):
                for row in read_rows(store, ref_of(store, manifest), ["query_id", "text"]):
                    texts[folder.replace("/", "-"), row["query_id"]].append(row["text"])
        for key, noted in self.samples.items():
            assert texts[key] == noted, f"{key} was asked again"


def counts(summary: dict[str, Any]) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """What must be equal in two runs: rows that do not depend on the samples, and the counts of each stage."""
    rows = {step["name"]: step["rows"] for step in summary["steps"] if step["name"].startswith(SET_BY_SIZE)}
    return rows, {stage["name"]: (stage["problems"], stage["samples"]) for stage in summary["stages"]}


def finished(place: Path) -> dict[str, Any]:
    """The newest summary, after checking every table against its inputs."""
    store = Store.open(Settings(store=str(place / "store")))
    found = list(artifacts(store))
    assert [line for each in found for line in problems(store, each)] == []
    assert store.list("claims") == []
    newest = max((place / "store" / "runs").glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    summary: dict[str, Any] = json.loads(newest.read_text())
    rows = {step["name"]: step["rows"] for step in summary["steps"]}
    assert rows["scores"] == rows["filtered"]
    for each in found:
        if each.manifest and each.manifest.kind == "table":
            columns = {column.name for column in each.manifest.columns}
            # A source may hold a query twice; a row of it must not be there twice.
            collected = each.folder.startswith("collected-")
            names = ("source", "source_row") if collected else ("query_id", "problem_id", "sample")
            key = [name for name in names if name in columns]
            ids = Counter(tuple(row.values()) for row in read_rows(store, ref_of(store, each.manifest), key))
            assert not key or max(ids.values(), default=1) == 1, f"{each.folder}: a row is there twice"
    assert not list((place / "work" / "ledgers").glob("*.jsonl"))
    return summary


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_random_kills_of_every_kind_of_process_lose_nothing(site: Site) -> None:
    chance = random.Random(SEED)
    began = time.monotonic()
    assert ended(site.run(through_worker=False), 600) == 0, (site.place / "log.txt").read_text()[-5000:]
    undisturbed = counts(finished(site.place))
    print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
    kills: Counter[str] = Counter()
    rounds = 0
    while kills.total() < KILLS:
        rounds += 1
        for folder in ("store", "work"):
            shutil.rmtree(site.place / folder)
        summary = killed_until_finished(site, chance, kills)
        assert counts(summary) == undisturbed
        print(f"round {rounds}: {kills.total()} kills, {dict(kills)}, {time.monotonic() - began:.0f} s", flush=True)
    left = site.processes()
    assert not left["vllm server"] + left["engine"] + left["rank"]
    if KILLS >= 40:
        assert min(kills[kind] for kind in KINDS) >= 2


def killed_until_finished(site: Site, chance: random.Random, kills: Counter[str]) -> dict[str, Any]:
    """Run the command again and again, killing something at random moments, until it has finished."""
    book, status, finished_before = Book(site.place), 1, set[str]()
    while status != 0:
        site.keep_up(worker=True)
        finished_before = set(book.manifests)
        run = site.run(through_worker=chance.random() < 0.3)
        while run.poll() is None:
            longest = 25
            if (
                kills.total() >= KILLS // 2 and kills[rarest(kills)] < 2
            ):  # trainings are short, so that one has to be waited for
                wait_for_one_of(site, run, rarest(kills))
                longest = 3
            elif chance.random() < 0.5:  # so that there is progress, however slow the machine
                wait_for_a_new_artifact(site, run)
            pause = time.monotonic() + chance.uniform(0, longest)
            while run.poll() is None and time.monotonic() < pause:
                time.sleep(0.1)
            if (
                run.poll() is None and site.lost()
            ):  # its worker was killed before it began, so that it stays Pending forever
                run.kill()
            elif run.poll() is None and kills.total() < KILLS:
                kill_one(site, chance, kills)
                book.note()
                site.keep_up(worker=True)
        status = run.wait()
        book.note()
    orphans_over(site)
    summary = finished(site.place)
    book.check(Store.open(Settings(store=str(site.place / "store"))))
    cached = {f"{step['name']}/{step['key']}" for step in summary["steps"] if step["cached"]}
    of_one_shard = {name for name in finished_before if not name.startswith(("imported/", "responses"))}
    assert of_one_shard <= cached
    return summary


def rarest(kills: Counter[str]) -> str:
    """The kind that was killed least often."""
    return min(KINDS, key=lambda kind: kills[kind])


def wait_for_one_of(site: Site, run: subprocess.Popen[str], kind: str) -> None:
    """Return when a process of this kind is up, or the run has ended, or after five minutes."""
    deadline = time.monotonic() + 300
    while not site.processes()[kind] and run.poll() is None and time.monotonic() < deadline and not site.lost():
        time.sleep(0.1)


def wait_for_a_new_artifact(site: Site, run: subprocess.Popen[str]) -> None:
    """Return when one more artifact is finished, or the run has ended, or after five minutes."""

    def there() -> int:
        return len(list((site.place / "store").glob("*/*/manifest.json")))

    before, deadline = there(), time.monotonic() + 300
    while there() <= before and run.poll() is None and time.monotonic() < deadline and not site.lost():
        time.sleep(0.1)


def orphans_over(site: Site) -> None:
    """Wait for runs whose worker was killed, and for processes that ended runs started."""
    wait_for(lambda: not any(site.processes()[kind] for kind in ("flow", "vllm server", "engine", "rank")), 300, 0.5)


def kill_one(site: Site, chance: random.Random, kills: Counter[str]) -> None:
    """Kill one process, of the running kind that was killed least often."""
    alive = site.processes()
    kind = min(alive, key=lambda each: (kills[each], chance.random()))
    _kill(chance.choice(alive[kind]))
    kills[kind] += 1
    if kind == "prefect server" and site.server:
        site.server.kill()
        site.server.wait()
    steps = sorted(path.name for path in (site.place / "store").glob("*") if path.name != "runs")
    print(f"kill {kills.total()}: {kind}; {len(steps)} steps so far", flush=True)


def test_the_kinds_are_recognised() -> None:
    python = "/usr/bin/python"
    assert kind_of([python, "-ISB", "watchdog.py", "3", "4", python, "-m", "infra.training.sft"]) == "watchdog"
    assert kind_of([python, "-m", "torch.distributed.run", "-m", "infra.training.sft", "x"]) == "launcher"
    assert kind_of([python, "-u", "-m", "infra.training.dpo", "x"]) == "rank"
    assert kind_of([python, "-m", "prefect", "worker", "start", "--pool", "bolt-gpu"]) == "worker"
    assert kind_of([python, "-m", "prefect", "server", "start", "--no-ui", "--port", "1"]) == "prefect server"
    assert kind_of(["VLLM::EngineCore", ""]) == "engine"
    assert kind_of(["bash"]) is None
    assert (ROOT / "flows" / "__main__.py").is_file()
