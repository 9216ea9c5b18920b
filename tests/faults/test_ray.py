"""The small method on a Ray cluster of two hosts that share only S3 and Prefect, with what goes wrong on clusters."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray_hosts import QUERIES, Hosts, clock_ahead, two_hosts
from runs import ended, wait_for
from s3_for_tests import SECRET

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2400)]
STAGES = ["instruct", "in-context", "sft", "online-1"]


def sampled(hosts: Hosts) -> dict[str, list[str]]:
    """The texts of all responses in the store, by query, as the tables have them."""
    code = (
        "import json\n"
        "from infra.settings import Settings; from infra.store.store import Store\n"
        "from infra.store.parts import find; from infra.store.tables import read_rows\n"
        "store, found = Store.open(Settings.load()), []\n"
        "for key in sorted({path.split('/')[1] for path in store.list('responses')}):\n"
        "    for row in read_rows(store, find(store, 'responses', key), ['query_id', 'sample', 'text']):\n"
        "        found.append(list(row.values()))\n"
        "print(json.dumps(found))"
    )
    texts: dict[str, list[str]] = {}
    rows = json.loads(hosts.within(code).splitlines()[-1])
    assert max(Counter((query, sample) for query, sample, _ in rows).values()) == 1
    for query, _, text in rows:
        texts.setdefault(query, []).append(text)
    return texts


def check(hosts: Hosts, summary: dict[str, Any], kept: dict[str, Any]) -> None:
    """The run is whole, and what had been finished was not asked again."""
    assert [stage["name"] for stage in summary["stages"]] == STAGES
    assert all(stage["problems"] == 24 and stage["samples"] == 48 for stage in summary["stages"])
    rows = Counter[str]()
    for step in summary["steps"]:
        rows[step["name"]] += step["rows"]
    assert rows["responses"] == QUERIES * 8
    texts = sampled(hosts)
    assert len(texts) == QUERIES
    for request, samples in kept.items():
        assert texts[request] == samples
    assert secret_files(hosts) == []
    assert hosts.objects("claims/") == []
    assert hosts.objects("ledgers/") == []


def secret_files(hosts: Hosts) -> list[Path]:
    """The files of Ray, Prefect and the run that hold the store's secret."""
    folders = (hosts.ray_folder, hosts.place)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if path.suffix != ".safetensors" and SECRET.encode() in path.read_bytes()]


def some_are_finished(hosts: Hosts) -> dict[str, Any]:
    """Wait until the store has finished requests of the bootstrap."""
    found: dict[str, Any] = wait_for(hosts.ledger, 600, 0.5)
    return found


def outages(hosts: Hosts) -> None:
    """Restart Prefect's server, and stop the store for a minute."""
    hosts.kill(0, "prefect server start")
    hosts.kill(0, "prefect.server.api.server")
    hosts.prefect()
    store = hosts.pids(0, "moto.server")
    for pid in store:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(60)
    for pid in store:
        os.kill(pid, signal.SIGCONT)


def test_a_node_with_all_servers_is_lost_while_it_samples_scores_and_trains(tmp_path: Path) -> None:
    with two_hosts(tmp_path, 1) as hosts:
        hosts.flow('config.ray.server={"host1": 0.1}', 'config.ray.training={"host1": 0.1}')
        kept = some_are_finished(hosts)
        for begun in ("ledgers/responses-", "claims/rewards-", "checkpoints/sft"):
            wait_for(lambda begun=begun: hosts.objects(begun), 900, 0.2)
            hosts.kill(1)
            time.sleep(5)
            hosts.node(1)
        check(hosts, hosts.finished(), kept)


def test_servers_die_prefect_restarts_the_store_is_away_and_a_clock_is_wrong(tmp_path: Path) -> None:
    with two_hosts(tmp_path, 2, **clock_ahead(tmp_path / "clock")) as hosts:
        hosts.flow()
        kept = some_are_finished(hosts)
        for _ in range(5):
            server = wait_for(lambda: hosts.pids(0, "openai.api_server") or hosts.pids(1, "openai.api_server"), 120)[0]
            os.kill(server, signal.SIGKILL)
            time.sleep(4)
        kept |= hosts.ledger()
        outages(hosts)
        check(hosts, hosts.finished(), kept)


def test_a_server_dies_in_each_of_five_steps_with_the_same_outages(tmp_path: Path) -> None:
    with two_hosts(tmp_path, 5, **clock_ahead(tmp_path / "clock")) as hosts:
        hosts.flow()
        kept = some_are_finished(hosts)
        hosts.kill_server("responses", "policy")
        kept |= some_are_finished(hosts)
        hosts.kill_server("rewards", "reward")
        outages(hosts)
        for step in ("answers-sft-sampled", "responses-online-1", "answers-online-1-sampled"):
            hosts.kill_server(step, "policy")
        check(hosts, hosts.finished(), kept)


def test_the_head_is_lost_and_the_same_run_goes_on_after_it_is_back(tmp_path: Path) -> None:
    with two_hosts(tmp_path, 3) as hosts:
        hosts.flow()
        kept = some_are_finished(hosts)
        for part in ("ray.scripts.scripts", "gcs_server", "raylet/raylet"):
            hosts.kill(0, part)
            hosts.kill(1, part)
        assert ended(hosts.processes["flow"], 180) != 0
        wait_for(lambda: not hosts.pids(0, "openai.api_server") and not hosts.pids(1, "openai.api_server"), 60)
        hosts.node(0)
        hosts.node(1)
        hosts.flow()
        check(hosts, hosts.finished(), kept)


def test_two_nodes_train_together(tmp_path: Path) -> None:
    with two_hosts(tmp_path, 4, private=False) as hosts:
        hosts.flow("config.ray.training_nodes=2", "config.sft.ranks=1", "config.online.dpo.ranks=1")
        check(hosts, hosts.finished(), {})
        logs = (tmp_path / "work" / "logs" / "agent-1.log").read_text()
        assert logs.count("the ranks ended with status 0") == 2  # of SFT and of DPO
