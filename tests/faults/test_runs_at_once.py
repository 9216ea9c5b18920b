"""Concurrent runs over one store: each artifact is made once, by one of them, and all runs succeed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from runs import PrefectServer, ended, fake, made, on_s3
from s3_for_tests import s3_settings
from small import bootstrap_parameters, small_world

from infra.operations.inventory import artifacts, problems
from infra.settings import Settings
from infra.store.store import Store


def together(place: Path, configs: list[dict[str, Any]], environment: dict[str, str]) -> list[Path]:
    """Run the flow once per configuration, concurrently. Returns their logs."""
    logs = [place / f"run-{number}.log" for number in range(len(configs))]
    runs = [
        fake("bootstrap", {"config": config}, place, environment, f"run-{number}")
        for number, config in enumerate(configs)
    ]
    statuses = [ended(run) for run in runs]
    assert statuses == [0] * len(configs), "".join(log.read_text()[-3000:] for log in logs)
    return logs


def each_once(logs: list[Path], store: Store) -> list[str]:
    """The artifacts that these runs made, after checking that no two made the same one."""
    all_made = made(*logs)
    assert [name for name, count in Counter(all_made).items() if count > 1] == []
    found = [each for each in artifacts(store) if not each.folder.startswith("imported/")]
    assert sorted(each.folder for each in found) == all_made
    assert [line for each in found for line in problems(store, each)] == []
    assert store.list("claims") == []
    return all_made


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.faults)])
def place(request, tmp_path) -> tuple[Store, dict[str, str]]:
    """A store, and the settings that name it."""
    work = {"BOLT_WORK_DIR": str(tmp_path / "work")}
    if request.param == "local":
        return Store.open(Settings(store=str(tmp_path / "store"))), work | {"BOLT_STORE": str(tmp_path / "store")}
    url, bucket = request.getfixturevalue("s3_url"), request.getfixturevalue("s3_bucket")
    return Store.open(s3_settings(url, bucket)), work | on_s3(url, bucket)


def test_two_runs_of_one_flow_at_once(place, prefect: PrefectServer, tmp_path):
    store, environment = place
    config = bootstrap_parameters(small_world(tmp_path / "files"))
    logs = together(tmp_path, [config, config], prefect.environment() | environment | {"FAKE_HOLD": "1"})
    each_once(logs, store)
    ends = {log.read_text().strip().splitlines()[-1] for log in logs if "made longcot/" in log.read_text()}
    assert len({line for log in logs for line in log.read_text().splitlines() if line.startswith("made ")}) == 1, ends
    asked = (tmp_path / "asked.txt").read_text().split()
    assert len(asked) == len(set(asked)) == 12
    assert any("waiting for it" in log.read_text() for log in logs)


@pytest.mark.faults
def test_two_different_runs_that_share_steps(tmp_path, prefect: PrefectServer):
    store = Store.open(Settings(store=str(tmp_path / "store")))
    environment = {"BOLT_STORE": str(tmp_path / "store"), "BOLT_WORK_DIR": str(tmp_path / "work")}
    config = bootstrap_parameters(small_world(tmp_path / "files"))
    other = {**config, "select": {"percentile": 50}}
    logs = together(tmp_path, [config, other], prefect.environment() | environment)
    steps = Counter(name.split("/")[0] for name in each_once(logs, store))
    mined = ("collected-queries", "cleaned", "distinct", "held-out", "contaminated", "decontaminated", "queries")
    assert steps == {
        **dict.fromkeys((*mined, "examples", "scores"), 1),
        **dict.fromkeys(("responses", "filtered", "rewards"), 2),  # their shards
        "longcot": 2,
    }
